"""What the CUDA kernels read: the rows of a layer, and its weights in tiles.

Rows are what gathering reads: `[A, K]` filled up to whole 16-byte loads, for inference in an order
that lets lanes which read at once meet different banks of shared memory. Tiles are what tensor
cores are fed from: a list of weights, with 16-bit positions, for each 64 rows by 128 inputs. Shapes
follow from those of the layer, so that another pattern needs no compilation.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.format import Condensed

TILE_ROWS, TILE_COLUMNS = 64, 128  # as in kernels.h
_BANKS = 32
_BANK_GROUPS = 8  # of 16 bytes
_VECTOR = 8
_MAX_WEIGHTS = 2**31 - 1


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tiles:
  """The places of the weights of a matrix `[R, C]` in tiles, `V` vectors of eight in all.

  Attributes:
    positions: `[8 V]` uint16, in the tile, row by row; what fills up lies behind it.
    starts: `[tiles + 1]` int32, the first vector of each tile; those of one block of rows together.
    sources: `[8 V]` int32: which of the layer's values, flat; their number where there is none.
      None in a layer for inference.
  """

  positions: Array
  starts: Array
  sources: Array | None

  def pack(self, values: Array) -> Array:
    """Values `[A, K]` in the order of the positions, `[8 V]`; zeros where there are none."""
    return values.reshape(-1).at[self.sources].get(mode="fill", fill_value=0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """The pattern of a layer.

  Attributes:
    indices: `[A, K']` of the layer's type, rows filled up with zeros to a multiple of eight; those
      of a layer for inference in the order that `order_rows` gives.
    tiles: of the matrix `[A, I]`.
    transposed: tiles of the matrix `[I, A]`, for the gradient in x; or None.
    active: `[A]` int32, the active neurons; `[0]` if all are.
    rows: `[N]` int32, the row of each neuron, -1 if ablated; `[0]` if all are active.
    in_features: `I`.
    out_features: `N`.
  """

  indices: Array
  tiles: Tiles
  transposed: Tiles | None
  active: Array
  rows: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """A pattern with the values, in both orders.

  Attributes:
    pattern: of the layer.
    row_values: `[A, K']` float32 or bfloat16, rows filled up with zeros.
    tile_values: `[8 V]`, in the order of the tiles.
  """

  pattern: Pattern
  row_values: Array
  tile_values: Array

  @property
  def out_features(self) -> int:
    """`N`."""
    return self.pattern.out_features


def pack(condensed: Condensed) -> Packed:
  """The layout of a layer for inference, also of traced arrays."""
  pattern = _pattern(condensed, with_transposed=False)
  tile_values = pattern.tiles.pack(condensed.values)
  order = order_rows(condensed.indices, condensed.values.dtype.itemsize)
  in_order = lambda rows: _fill_rows(jnp.take_along_axis(rows, order, axis=1))
  pattern = dataclasses.replace(
    pattern,
    indices=in_order(condensed.indices),
    tiles=dataclasses.replace(pattern.tiles, sources=None),
  )
  return Packed(pattern, in_order(condensed.values), tile_values)


def pack_pattern(condensed: Condensed) -> Pattern:
  """The layout of a layer whose values change; the values are not read."""
  return _pattern(condensed, with_transposed=True)


def with_values(layout: Pattern | Packed, values: Array) -> Packed:
  """What `matmul` reads: a pattern gets the values `[A, K]`; a packed layer keeps its own."""
  if isinstance(layout, Packed):
    return layout  # whose rows are in an order of their own
  return Packed(layout, _fill_rows(values), layout.tiles.pack(values))


def _pattern(condensed: Condensed, *, with_transposed: bool) -> Pattern:
  num_active, fan_in = condensed.indices.shape
  num_inputs = condensed.in_features
  columns = condensed.indices.reshape(-1).astype(jnp.int32)
  rows = jnp.repeat(jnp.arange(num_active, dtype=jnp.int32), fan_in)
  return Pattern(
    _fill_rows(condensed.indices),
    make_tiles(rows, columns, num_active, num_inputs),
    make_tiles(columns, rows, num_inputs, num_active) if with_transposed else None,
    *neurons_of_rows(condensed),
    num_inputs,
    condensed.out_features,
  )


def neurons_of_rows(condensed: Condensed) -> tuple[Array, Array]:
  """`active` and `rows` of `Pattern`."""
  num_active, num_neurons = condensed.num_active, condensed.out_features
  if num_active == num_neurons:
    return jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
  rows = jnp.full(num_neurons, -1, jnp.int32)
  return condensed.active, rows.at[condensed.active].set(jnp.arange(num_active, dtype=jnp.int32))


def _fill_rows(rows: Array) -> Array:
  return jnp.pad(rows, ((0, 0), (0, -rows.shape[1] % _VECTOR)))


def bank_of(indices: Array, itemsize: int) -> Array:
  """Which eighth of shared memory's banks an input lies in.

  As `Place` of gather.cu has it where a lane takes 16 bytes.
  """
  return (indices ^ (indices >> (3 if itemsize == 2 else 2))) % _BANK_GROUPS


@functools.partial(jax.jit, static_argnums=1)
def order_rows(indices: Array, itemsize: int) -> Array:
  """An order of the weights of each row `[A, K]` in which neighbours meet different banks.

  Lanes take vectors of eight weights, and what eight lanes next to each other read at once are the
  weights of one place in their vectors. So weights are dealt out in rounds, one of each bank: in
  blocks of eight vectors, to the first place of all of them, then to the second.

  Args:
    indices: `[A, K]` of the layer.
    itemsize: bytes of a value.

  Returns:
    `[A, K]` int32, permutations of the places.
  """
  fan_in = indices.shape[1]
  places = jnp.broadcast_to(jnp.arange(fan_in, dtype=jnp.int32), indices.shape)
  bank = bank_of(indices.astype(jnp.int32), itemsize)
  by_bank = jnp.argsort(bank, axis=1, stable=True).astype(jnp.int32)
  bank = jnp.take_along_axis(bank, by_bank, axis=1)
  is_first = jnp.concatenate([jnp.ones_like(bank[:, :1], bool), bank[:, 1:] != bank[:, :-1]], 1)
  before = places - jax.lax.cummax(jnp.where(is_first[:, :fan_in], places, 0), axis=1)
  dealt = jnp.argsort(before * _BANK_GROUPS + bank, axis=1)
  # Where in the row the n-th that is dealt goes.
  n = np.arange(fan_in)
  block = n // (_VECTOR * _BANK_GROUPS)
  vectors = np.minimum(-(-fan_in // _VECTOR) - block * _BANK_GROUPS, _BANK_GROUPS)
  turn, lane = np.divmod(n % (_VECTOR * _BANK_GROUPS), np.maximum(vectors, 1))
  target = (block * _BANK_GROUPS + lane) * _VECTOR + turn
  # The last vector may be filled up: its missing places are closed.
  return jnp.take_along_axis(by_bank, dealt, axis=1)[:, np.argsort(target)]


@jax.jit(static_argnums=(2, 3))
def make_tiles(rows: Array, columns: Array, num_rows: int, num_columns: int) -> Tiles:
  """Puts weights into tiles.

  Within a tile they are dealt out so that those which 32 lanes write at once lie in different banks
  of shared memory as far as the pattern allows: a lane takes eight weights that follow each other.

  Args:
    rows: `[E]` int32, of each weight.
    columns: `[E]` int32.
    num_rows: of the matrix.
    num_columns: of the matrix.

  Raises:
    ValueError: if there are too many weights for 32-bit places.
  """
  num_weights, num_chunks = rows.size, math.ceil(num_columns / TILE_COLUMNS)
  num_tiles = math.ceil(num_rows / TILE_ROWS) * num_chunks
  # Whole vectors in every tile, whatever the pattern.
  num_vectors = (num_weights + (_VECTOR - 1) * min(num_tiles, num_weights)) // _VECTOR
  if _VECTOR * num_vectors > _MAX_WEIGHTS:
    raise ValueError(
      f"A layer of {num_weights} weights is more than backend='cuda' can address (2**31 - 1 with "
      "what fills them up): cut it in parts, or take backend='xla'."
    )
  tile = rows // TILE_ROWS * num_chunks + columns // TILE_COLUMNS
  row, column = rows % TILE_ROWS, columns % TILE_COLUMNS
  counts = jnp.zeros(num_tiles, jnp.int32).at[tile].add(1)
  ends = jnp.cumsum(-(-counts // _VECTOR), dtype=jnp.int32)
  starts = jnp.concatenate([jnp.zeros(1, jnp.int32), ends])

  # Rounds of one weight of each bank: by how many of its bank and tile come before it.
  bank = (column + 4 * row) % _BANKS
  order = jnp.lexsort((bank, tile))
  before = position_in_run(tile[order] * _BANKS + bank[order])
  order = order[jnp.lexsort((bank[order], before, tile[order]))]

  place = position_in_run(tile[order])
  own_tile = tile[order]
  # The first weights of a tile go to the first place of its lanes, 32 to a group of vectors.
  group, within = jnp.divmod(place, _BANKS * _VECTOR)
  vectors = starts[own_tile + 1] - starts[own_tile]
  lanes = jnp.minimum(vectors - group * _BANKS, _BANKS)
  turn, lane = jnp.divmod(within, jnp.maximum(lanes, 1))
  target = (starts[own_tile] + group * _BANKS + lane) * _VECTOR + turn
  size = _VECTOR * num_vectors
  positions = jnp.full(size, TILE_ROWS * TILE_COLUMNS, jnp.uint16)
  positions = positions.at[target].set((row * TILE_COLUMNS + column)[order].astype(jnp.uint16))
  sources = jnp.full(size, num_weights, jnp.int32).at[target].set(order.astype(jnp.int32))
  return Tiles(positions, starts, sources)


def position_in_run(keys: Array) -> Array:
  """For each of some sorted keys, how many equal ones come before it."""
  places = jnp.arange(keys.size, dtype=jnp.int32)
  is_first = jnp.concatenate([jnp.ones(min(keys.size, 1), bool), keys[1:] != keys[:-1]])
  return places - jax.lax.cummax(jnp.where(is_first, places, 0))
