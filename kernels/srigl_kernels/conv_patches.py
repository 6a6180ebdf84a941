"""Convolution as a product: the patches of the image are the rows of a matrix.

What a backend without a convolution of its own runs. Memory: lines of the output are taken
together as long as their patches need no more than `xla.TEMPORARY_BYTES`, at least one; the
product adds what it needs.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from srigl_kernels.backends import xla
from srigl_kernels.conv_geometry import Geometry


def conv(
  matmul: Callable[[Array, Any, Array | None, str | None], Array],
  x: Array,
  layout: Any,
  bias: Array | None,
  activation: str | None,
  geometry: Geometry,
) -> Array:
  """The convolution, by a backend's product.

  Args:
    matmul: `(rows [R, I], layout, bias, activation) -> [R, N]`.
    x: `[B, *S, C]` float32 or bfloat16.
    layout: of the layer without groups.
    bias: `[N]`, or None.
    activation: as for `matmul`.
    geometry: the convolution.

  Returns:
    `[B, *S_out, N]` of x's type.
  """
  size = geometry.output_size(x.shape[1:-1])
  num_neurons, pixels = layout.out_features, math.prod(size[1:])
  num_inputs = math.prod(geometry.kernel_size) * x.shape[-1]
  num_lines = x.shape[0] * size[0]
  # The lines read, padded, and the patches, each of them twice.
  floats = geometry.kernel_size[0] * math.prod(x.shape[2:]) + pixels * num_inputs
  known = [n for n in (num_lines, size[0], 1) if isinstance(n, int)]  # sizes may be symbolic
  count = xla.fit(4 * 2 * floats, known[0]) if isinstance(floats, int) else 1

  def step(i, out):
    # The last tile overlaps the one before: XLA on CPU would put a smaller one into a copy of out.
    start = jnp.minimum(i * count, num_lines - count)
    rows = _patches(x, start, count, geometry, size).reshape(-1, num_inputs)
    y = matmul(rows, layout, bias, activation).reshape(count, pixels, num_neurons)
    return xla.store(out, y, start, x.dtype)

  out = xla.as_bits(jnp.zeros((num_lines, pixels, num_neurons), x.dtype))
  out = lax.bitcast_convert_type(lax.fori_loop(0, -(-num_lines // count), step, out), x.dtype)
  return out.reshape(x.shape[0], *size, num_neurons)


def _patches(
  x: Array, start: Array, count: int, geometry: Geometry, size: tuple[int, ...]
) -> Array:
  """`[count, *S_out[1:], *kernel, C]`: the patches of some lines, those of all images in a row."""
  x, start = lax.optimization_barrier((x, start))  # see `xla._load`
  line = start + jnp.arange(count)
  first = line % size[0] * geometry.strides[0] - geometry.padding[0][0]
  tap = jnp.arange(geometry.kernel_size[0]) * geometry.dilation[0]
  y = first[:, None] + tap[None]
  height = x.shape[1]
  # Beyond the image is beyond the end, where the gather reads 0.
  line_of = (line // size[0] * height)[:, None] + y
  place = jnp.where((y >= 0) & (y < height), line_of, x.shape[0] * height)
  read = x.reshape(-1, *x.shape[2:]).at[place].get(mode="fill", fill_value=0)
  rest = [(low, high, 0) for low, high in geometry.padding[1:]]
  read = lax.pad(read, jnp.zeros((), x.dtype), [(0, 0, 0), (0, 0, 0), *rest, (0, 0, 0)])

  def pick(offsets):  # the pixels below one tap of the other axes
    starts = [k * d for k, d in zip(offsets, geometry.dilation[1:], strict=True)]
    ends = [
      a + (n - 1) * s + 1 for a, n, s in zip(starts, size[1:], geometry.strides[1:], strict=True)
    ]
    return lax.slice(
      read,
      (0, 0, *starts, 0),
      (*read.shape[:2], *ends, read.shape[-1]),
      (1, 1, *geometry.strides[1:], 1),
    )

  taps = [pick(offsets) for offsets in itertools.product(*map(range, geometry.kernel_size[1:]))]
  return jnp.moveaxis(jnp.stack(taps, axis=-2), 1, -3)
