"""The backend "cuda": CUDA C++ kernels for NVIDIA GPUs from sm_80 on, called through `jax.ffi`.

For few rows of x the kernel gathers, with products in float32. For many it spreads weights out in
tiles that tensor cores multiply, as a dense layer's; `srigl_kernels.cost_model` says from where on.
There products of float32 follow `jax_default_matmul_precision` as those of a dense layer do. By
default they are of numbers rounded to TF32; with "high" or "highest" three TF32 products stand for
one of float32, to about its own error. Where x or the values are bfloat16 and the other is not,
both are float32.

Sums are float32, in an order that depends on shapes only: no atomics, results do not vary from run
to run. An input that is infinite or NaN may reach neurons that have no weight for it.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels import cost_model
from srigl_kernels.backends import xla
from srigl_kernels.backends.cuda import library
from srigl_kernels.backends.cuda.layout import TILE_COLUMNS, TILE_ROWS, Packed, Pattern, Tiles
from srigl_kernels.batching import in_a_loop, over_rows
from srigl_kernels.epilogue import apply_epilogue
from srigl_kernels.format import Condensed
from srigl_kernels.matmul_precision import current_precision

ACTIVATION_NUMBERS = {None: 0, "relu": 1, "gelu": 2}
"""What kernels call the activations."""

_BFLOAT16, _TF32, _THREE_TF32 = 0, 1, 2
# Settings under which a dense product of float32 is rounded to TF32, or more coarsely.
_ROUNDED = (None, "default", "fastest", "bfloat16", "tensorfloat32", "TF32_TF32_F32")
# Clocks of shared memory and barriers that a tile of so many rows of x takes for a chunk of inputs.
_TILE_CLOCKS = {8: 560, 16: 620, 32: 820, 48: 970, 64: 1400}
_CHUNK_CLOCKS = 900  # at least, where a multiprocessor has nothing else to do meanwhile
_FINISH_CLOCKS = 3000  # of the second kernel, which adds up parts
_BYTES_PER_CLOCK = 1600  # of memory
_MULTIPROCESSORS = 132  # of an H100; another number costs balance, not correctness
_MAX_GRID = 65_535  # tiles of the batch


def matmul(
  x: Array,
  layout: Packed,
  bias: Array | None = None,
  activation: str | None = None,
  *,
  kernel: str | None = None,
) -> Array:
  """The product as `reference.matmul` defines it, of a layout from `pack` or `with_values`.

  Args:
    x: `[B, I]` float32 or bfloat16.
    layout: from `layout.pack` or `layout.with_values`.
    bias: `[N]`, or None.
    activation: None, `"relu"` or `"gelu"`.
    kernel: `"gather"` or `"tiles"`; by default as the batch asks for.

  Raises:
    ValueError: if the batch is too large.
  """
  if 0 in x.shape or not layout.row_values.size:
    return apply_epilogue(jnp.zeros((x.shape[0], layout.out_features)), bias, activation, x.dtype)
  dtype = common_dtype(x, layout.row_values)
  kernel = kernel or _fastest_kernel(x.shape, dtype, layout)
  call = _gather(activation) if kernel == "gather" else _tiles(activation, mode_of(dtype))
  bias = jnp.zeros(0) if bias is None else bias.astype(jnp.float32)
  return call(x.astype(dtype), _cast(layout, dtype), bias).astype(x.dtype)


def _fastest_kernel(shape: tuple[Any, ...], dtype: Any, layout: Packed) -> str:
  batch, num_inputs = shape
  if not isinstance(batch, int):  # symbolic, of any size
    return "tiles"
  exact = " highest" if mode_of(dtype) == _THREE_TF32 else ""
  sizes = cost_model.Sizes(num_inputs, layout.out_features, *layout.row_values.shape)
  how = f"gpu {jnp.dtype(dtype).name}{exact}"
  return cost_model.fastest_kernel("cuda", how, sizes, batch)[0].removeprefix("cuda_")


def input_gradient(g: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.input_gradient`; a layout for inference has no transposed tiles, is left to that."""
  if isinstance(layout, Packed) or layout.transposed is None:
    return xla.input_gradient(g, condensed)
  if 0 in g.shape or not condensed.values.size:
    return jnp.zeros((g.shape[0], condensed.in_features), g.dtype)
  dtype = common_dtype(g, condensed.values)
  values = layout.transposed.pack(condensed.values.astype(dtype))
  call = _transposed(condensed.in_features, mode_of(dtype))
  columns = _active_columns(g, condensed).astype(dtype)
  return call(columns, layout.transposed, values).astype(g.dtype)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.values_gradient`; a layout for inference is left to that."""
  if isinstance(layout, Packed):
    return xla.values_gradient(g, x, condensed)
  if 0 in x.shape or not condensed.values.size:
    return jnp.zeros_like(condensed.values)
  dtype = common_dtype(g, x, condensed.values)
  call = _products(condensed.values.shape, mode_of(dtype))
  dvalues = call(_active_columns(g, condensed).astype(dtype), x.astype(dtype), layout.tiles)
  return dvalues.astype(condensed.values.dtype)


def common_dtype(*arrays: Array) -> Any:
  """Bfloat16 if all are, else float32."""
  return jnp.bfloat16 if all(a.dtype == jnp.bfloat16 for a in arrays) else jnp.float32


def mode_of(dtype: Any) -> int:
  """What tensor cores multiply, as `Mode` in kernels.h."""
  if dtype == jnp.bfloat16:
    return _BFLOAT16
  return _TF32 if current_precision() in _ROUNDED else _THREE_TF32


def _cast(layout: Packed, dtype: Any) -> Packed:
  return Packed(layout.pattern, layout.row_values.astype(dtype), layout.tile_values.astype(dtype))


def _active_columns(g: Array, condensed: Condensed) -> Array:
  """`[B, A']`, the columns of active neurons, filled up with zeros to whole 16-byte loads."""
  missing = -condensed.num_active % 8
  if condensed.num_active == condensed.out_features and not missing:
    return g
  beyond = np.full(missing, condensed.out_features, np.int32)
  columns = jnp.concatenate([condensed.active, beyond])
  return g.at[:, columns].get(mode="fill", fill_value=0)


@functools.cache
def _gather(activation: str | None) -> Any:
  def call(x: Array, layout: Packed, bias: Array) -> Array:
    pattern = layout.pattern
    y = jax.ShapeDtypeStruct((x.shape[0], pattern.out_features), x.dtype)
    return jax.ffi.ffi_call(library.GATHER, y)(
      x, layout.row_values, pattern.indices, pattern.active, bias,
      activation=np.int64(ACTIVATION_NUMBERS[activation]),
    )  # fmt: skip

  return over_rows(call)


@functools.cache
def _tiles(activation: str | None, mode: int) -> Any:
  def call(x: Array, layout: Packed, bias: Array) -> Array:
    pattern = layout.pattern
    return _tile_sums(
      x, layout.tile_values, pattern.tiles, pattern.active, pattern.rows, bias,
      pattern.indices.shape[0], pattern.out_features, activation, mode,
    )  # fmt: skip

  return over_rows(call)


@functools.cache
def _transposed(num_inputs: int, mode: int) -> Any:
  def call(g: Array, tiles: Tiles, values: Array) -> Array:
    none = jnp.zeros(0, jnp.int32)
    no_bias = jnp.zeros(0)
    return _tile_sums(g, values, tiles, none, none, no_bias, num_inputs, num_inputs, None, mode)

  return over_rows(call)


def _tile_sums(
  x: Array,
  values: Array,
  tiles: Tiles,
  active: Array,
  rows: Array,
  bias: Array,
  num_rows: int,
  num_outputs: int,
  activation: str | None,
  mode: int,
) -> Array:
  batch, num_inputs = x.shape
  batch_tile, splits = _cut(batch, num_rows, num_inputs)
  sums = (splits, batch, num_rows) if splits > 1 else (0, 0, 0)
  y, _ = jax.ffi.ffi_call(
    library.TILES,
    (
      jax.ShapeDtypeStruct((batch, num_outputs), x.dtype),
      jax.ShapeDtypeStruct(sums, jnp.float32),
    ),
  )(
    x, values, tiles.positions, tiles.starts, active, rows, bias,
    activation=np.int64(ACTIVATION_NUMBERS[activation]),
    mode=np.int64(mode),
    batch_tile=np.int64(batch_tile),
  )  # fmt: skip
  return y


def _cut(batch: int, num_rows: int, num_inputs: int) -> tuple[int, int]:
  """Rows of x in a tile, and how many blocks of threads share the inputs of one.

  Raises:
    ValueError: if the batch has too many tiles.
  """
  chunks = math.ceil(num_inputs / TILE_COLUMNS)
  if not isinstance(batch, int):  # symbolic, of any size
    return max(_TILE_CLOCKS), 1

  def clocks(tile: int, splits: int) -> float:
    tiles = math.ceil(num_rows / TILE_ROWS) * math.ceil(batch / tile)
    rounds = math.ceil(tiles * splits / _MULTIPROCESSORS)
    each = max(rounds * _TILE_CLOCKS[tile], math.ceil(rounds / 3) * _CHUNK_CLOCKS)
    parts = _FINISH_CLOCKS + 8 * splits * batch * num_rows / _BYTES_PER_CLOCK
    return each * math.ceil(chunks / splits) + (parts if splits > 1 else 0)

  tiles = [n for n in _TILE_CLOCKS if n < 2 * batch or n == min(_TILE_CLOCKS)]
  cuts = [(tile, splits) for tile in tiles for splits in (1, 2, 4, 8) if splits <= chunks]
  tile, splits = min(cuts, key=lambda cut: clocks(*cut))
  if math.ceil(batch / tile) > _MAX_GRID:
    most = _MAX_GRID * tile
    raise ValueError(f"backend='cuda' takes up to {most} rows of x at once, not {batch}.")
  return tile, splits


@functools.cache
def _products(shape: tuple[int, int], mode: int) -> Any:
  """The call; under vmap a loop of calls, as every example has a gradient of its own."""

  @in_a_loop
  def call(g: Array, x: Array, tiles: Tiles) -> Array:
    return jax.ffi.ffi_call(library.PRODUCTS, jax.ShapeDtypeStruct(shape, x.dtype))(
      g, x, tiles.positions, tiles.starts, tiles.sources, mode=np.int64(mode)
    )

  return call
