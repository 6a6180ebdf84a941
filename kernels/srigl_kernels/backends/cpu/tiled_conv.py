"""Convolutions that pass on their activations in tiles, as the native CPU kernel reads them."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu.library import TILED_CONV
from srigl_kernels.backends.cpu.matmul import ACTIVATIONS, Packed
from srigl_kernels.batching import in_one_call
from srigl_kernels.conv_geometry import Geometry

TILE = 64
"""Pixels of a tile."""

POINTWISE = Geometry((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), 1)
"""The convolution that a product of images `[..., H, W, C]` is."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=["size"])
@dataclasses.dataclass(frozen=True, eq=False)
class Tiled:
  """Images `[..., H, W, C]` in tiles of 64 pixels, each channel by channel.

  Attributes:
    data: `[..., F]` float32, where `F` is `image_floats(size)`. What lies beyond the pixels of the
      last tile, which is 16, 32 or 64 wide, has no meaning.
    size: `(H, W, C)`.
  """

  data: Array
  size: tuple[int, int, int]


def image_floats(size: tuple[int, int, int]) -> int:
  """Floats of an image of this `(H, W, C)` in tiles."""
  height, width, channels = size
  pixels, left = divmod(height * width, TILE)
  last = next(w for w in (0, 16, 32, 64) if w >= left)
  return (pixels * TILE + last) * channels


def conv(
  x: Array | Tiled,
  packed: Packed,
  bias: Array | None,
  activation: str | None,
  geometry: Geometry,
  residual: Array | Tiled | None,
  to_tiles: bool,
) -> Any:
  """The convolution, as of `conv.conv`, in float32.

  Args:
    x: `[..., H, W, C]` float32.
    packed: the layer, its values float32 or bfloat16 and at least one of its neurons active.
    bias: `[N]`, or None.
    activation: a name in `ACTIVATIONS`.
    geometry: of two spatial axes and one group.
    residual: `[..., H_out, W_out, N]` float32, or None. A result in tiles has one in tiles.
    to_tiles: whether the result is in tiles.

  Returns:
    `[..., H_out, W_out, N]`, an array or `Tiled`.

  Raises:
    ValueError: if a residual is not in tiles, but the result is to be.
  """
  if to_tiles and residual is not None and not isinstance(residual, Tiled):
    raise ValueError("A result in tiles needs a residual in tiles, or none.")
  *_, height, width, channels = x.size if isinstance(x, Tiled) else x.shape
  x_size = (height, width, channels)
  y_height, y_width = geometry.output_size((height, width))
  y_size = (y_height, y_width, packed.out_features)
  tiled = isinstance(x, Tiled), isinstance(residual, Tiled), to_tiles
  bias = jnp.zeros(0) if bias is None else bias.astype(jnp.float32)
  call = _batched_call(ACTIVATIONS[activation], geometry, x_size, y_size, tiled)
  rows = tuple(a.data if isinstance(a, Tiled) else a for a in (x, residual))
  y = call(rows, packed.tile_pattern, packed.tile_values, bias)
  return Tiled(y, y_size) if to_tiles else y


@functools.cache
def _batched_call(
  activation: int,
  geometry: Geometry,
  x_size: tuple[int, int, int],
  y_size: tuple[int, int, int],
  tiled: tuple[bool, bool, bool],
) -> Any:

  def call(rows, pattern: Array, values: Array, bias: Array) -> Array:
    x, residual = rows
    leading = x.shape[: -1 if tiled[0] else -3]
    own = (image_floats(y_size),) if tiled[2] else y_size
    return jax.ffi.ffi_call(TILED_CONV, jax.ShapeDtypeStruct((*leading, *own), jnp.float32))(
      x,
      pattern,
      values,
      bias,
      jnp.zeros(0) if residual is None else residual,
      activation=np.int64(activation),
      kernel=np.array(geometry.kernel_size, np.int64),
      strides=np.array(geometry.strides, np.int64),
      dilation=np.array(geometry.dilation, np.int64),
      padding=np.array(geometry.padding, np.int64).reshape(-1),
      x_size=np.array(x_size, np.int64),
      y_size=np.array(y_size, np.int64),
      tiled=np.array(tiled, np.int64),
    )

  return in_one_call(call)
