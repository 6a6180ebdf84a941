"""Max-poolings of images in tiles by a native CPU kernel."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu.library import TILED_MAX_POOL
from srigl_kernels.backends.cpu.tiled_conv import TILE, Tiled, image_floats
from srigl_kernels.batching import in_one_call
from srigl_kernels.conv_geometry import Geometry

_MOST_TAPS = 64  # numbers of a window
_MOST_FLOATS = 1 << 17  # of a channel, of the lines that a tile of results reads

_Size = tuple[int, int, int]


def why_not(size: Sequence[int], geometry: Geometry) -> str:
  """Why `max_pool` does not take a pooling, empty if it does.

  Args:
    size: `(H, W, C)` of the images.
    geometry: of two spatial axes; the window is its kernel.
  """
  (height, width), (rows, columns) = geometry.kernel_size, geometry.strides
  if geometry.dilation != (1, 1) or len(size) != 3:
    return "it is dilated, or has other axes than two"
  out_size = geometry.output_size(size[:2])
  if min(*size, *out_size) < 1 or max(*size, *out_size) > 1 << 20:
    return "images are empty, or larger than 2**20"
  if height * width > _MOST_TAPS:
    return f"a window has more than {_MOST_TAPS} numbers"
  lines = min(TILE // out_size[1] + 1, out_size[0]) * rows + height
  if lines * ((out_size[1] + 1) * columns + width) > _MOST_FLOATS:
    return "the lines that a tile reads are too long"
  return ""


def max_pool(x: Tiled, geometry: Geometry) -> Tiled:
  """The largest number of each window, NaN if one is; -infinity outside of the image.

  Args:
    x: images `[..., H, W, C]` float32 in tiles.
    geometry: of two spatial axes; the window is its kernel.

  Returns:
    `[..., H_out, W_out, C]` in tiles. It has no derivative. Under `jax.vmap` it is one call.

  Raises:
    ValueError: if it does not take the pooling.
  """
  problem = why_not(x.size, geometry)
  if problem:
    raise ValueError(f"The native max-pooling cannot run: {problem}.")
  height, width = geometry.output_size(x.size[:2])
  size = height, width, x.size[2]
  return Tiled(_call(geometry, x.size, size)((x.data,)), size)


@functools.cache
def _call(geometry: Geometry, x_size: _Size, y_size: _Size) -> Any:

  def call(rows: tuple[Array]) -> Array:
    (x,) = rows
    result = jax.ShapeDtypeStruct((*x.shape[:-1], image_floats(y_size)), jnp.float32)
    return jax.ffi.ffi_call(TILED_MAX_POOL, result)(
      x,
      kernel=np.array(geometry.kernel_size, np.int64),
      strides=np.array(geometry.strides, np.int64),
      padding=np.array(geometry.padding, np.int64).reshape(-1),
      x_size=np.array(x_size, np.int64),
      y_size=np.array(y_size, np.int64),
    )

  return in_one_call(call)
