"""Which images of a program its convolutions can pass on in tiles, and what computes them then."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from srigl_jax.programs.steps import Step, readers_of
from srigl_kernels import pooling
from srigl_kernels.backends.cpu import tiled_conv, tiled_max_pool
from srigl_kernels.conv_geometry import Geometry


def find_tiled(
  steps: Sequence[Step], outputs: Sequence[Any], quantized: Collection[int]
) -> set[int]:
  """The tensors that are passed on in tiles: the native kernels then need not turn them around.

  Those that a native convolution in float32 writes, and that such alone read, as images or as what
  they add. A product of images `[..., H, W, C]` is a convolution, too, and so is a max-pooling if
  both its image and its result can be in tiles.

  Args:
    steps: what is computed, in order.
    outputs: of the program.
    quantized: the tensors that are passed on in 8 bits.
  """
  readers, quantized = readers_of(steps, outputs), set(quantized)
  pools = {step.output: step for step in steps if _pool_of(step) is not None}
  convs = {step.output: step for step in steps if _is_conv(step) and step.output not in quantized}
  fits = {**convs, **pools}
  reads = lambda reader, x: (
    reader is not None
    and reader.output in fits
    and not quantized & set(reader.inputs)
    and (reader.output in pools or not _is_weight(x, reader))
  )
  found = {x for x in fits if x in readers and all(reads(r, x) for r in readers[x])}
  while True:
    # Kernels that write tiles add what is in tiles, and poolings pass on what they get.
    needs = lambda x: [fits[x].residual] if x in convs else fits[x].inputs
    given = lambda x: [r.output for r in readers[x] if r is not None and r.output in pools]
    left = {x for x in found if all(y is None or y in found for y in (*needs(x), *given(x)))}
    if left == found:
      return found
    found = left


def _is_weight(x: int, step: Step) -> bool:
  """Whether a product has a tensor among its weights."""
  product = step.product
  assert product is not None
  return x in jax.tree.leaves((product.condensed, product.layouts))


def _is_conv(step: Step) -> bool:
  """Whether a step is a native convolution of two spatial axes in float32."""
  if not step.is_packed:
    return False
  avals = step.avals
  packed, (y,) = avals.layouts["cpu"], step.op.out_avals
  is_float = packed.tile_values.dtype == jnp.float32 and not packed.is_quantized
  return is_float and avals.x.dtype == y.dtype == jnp.float32 and avals.x.ndim == y.ndim == 4


def _pool_of(step: Step) -> Geometry | None:
  """The geometry of a max-pooling that the native kernel takes, else None."""
  op = step.op
  if op.primitive is not jax.lax.reduce_window_max_p:
    return None
  (x,), params = op.in_avals, op.params
  if x.ndim != 4 or x.dtype != jnp.float32 or not pooling.is_max_pool(x, params):
    return None
  names = ("window_dimensions", "window_strides", "padding")
  (images, *window), (step_over, *strides), (outside, *padding) = (params[name] for name in names)
  size = tuple(x.shape[1:])
  if not all(isinstance(n, int) for n in x.shape) or (images, step_over) != (1, 1):
    return None
  if any(outside):
    return None
  pads = (tuple(padding[0]), tuple(padding[1]))
  geometry = Geometry(tuple(window[:2]), tuple(strides[:2]), (1, 1), pads, 1)
  return None if tiled_max_pool.why_not(size, geometry) else geometry


def uses(step: Step, tiled: Collection[int]) -> bool:
  """Whether a step reads or writes a tensor in tiles."""
  return step.output in tiled or any(x in tiled for x in step.inputs)


def compute(step: Step, env: Mapping[int, Any], to_tiles: bool) -> Any:
  """What a convolution or a pooling gives.

  Args:
    step: of the ones that read or write a tensor in tiles.
    env: the tensors, some of them `Tiled`.
    to_tiles: whether its result is to be in tiles.
  """
  read = lambda x: env[x] if isinstance(x, int) else x
  product = step.product
  if product is None:
    geometry = _pool_of(step)
    assert geometry is not None
    return tiled_max_pool.max_pool(read(step.op.inputs[0]), geometry)
  packed, bias = jax.tree.map(read, (product.layouts["cpu"], product.condensed.bias))
  geometry = product.params["static"]
  where = geometry[0] if geometry else tiled_conv.POINTWISE
  residual = None if step.residual is None else read(step.residual)
  return tiled_conv.conv(read(product.x), packed, bias, step.activation, where, residual, to_tiles)
