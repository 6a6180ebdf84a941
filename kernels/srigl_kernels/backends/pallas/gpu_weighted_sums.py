"""The kernel of the condensed product on GPUs: sums of weighted rows, in tiles.

    y[b, column[r]] = activation(sum_j values[j] * x[b, indices[j]] + bias[column[r]])

`j` runs over the entries of row `r`: as many for each row (the product), or from a list of starts
(its transpose). x comes in tiles of `lanes` rows of the batch, `[tiles, I, lanes]`, so that what
one entry reads is contiguous.

A program holds a block of `rows` x `entries` x `lanes` sums in registers, adds to all of them in
every step, and adds up the entries at the end. So indices and values are read as they lie, in runs
of `entries`, and many loads are in flight.

From some batch on, a program does one tile of x and every n-th block of rows, so that its tile
comes from the first-level cache (as large as shared memory, of which it is part, and filled by the
loads themselves). What bounds it is that cache: 128 bytes a clock and multiprocessor, which for
float32 are 32 products. Smaller batches are bound by reading values and indices once; there `lanes`
is the batch, and a program does few rows with long runs of entries.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_kernels.backends.padding import power
from srigl_kernels.backends.pallas import lowering
from srigl_kernels.epilogue import ACTIVATIONS

MULTIPROCESSORS = 132  # of an H100; another number costs balance, not correctness
SMALL_BATCH = 16
_CACHE_BYTES = 192 * 2**10  # what of a multiprocessor's first-level cache a tile may take
_ROW_BYTES = 128  # of a cache line, what one entry reads of a tile
_MAX_ELEMENTS = 2**31 - 1  # offsets are int32


class Blocks(NamedTuple):
  """How the work is cut; all but `splits` are powers of two.

  Attributes:
    rows: of the pattern, in a block.
    entries: of a row, in a step.
    lanes: rows of the batch, in a tile of x.
    splits: programs for each tile of x, which share the blocks of rows.
    warps: of a program.
  """

  rows: int
  entries: int
  lanes: int
  splits: int
  warps: int


def choose_blocks(
  batch: int, num_rows: int, num_entries: int, num_inputs: int, itemsize: int
) -> Blocks:
  """Blocks for a product: from the arithmetic above, not from measurements.

  Args:
    batch: rows of x.
    num_rows: of the pattern.
    num_entries: of a row, on average.
    num_inputs: columns of x.
    itemsize: bytes of an element of x.
  """
  if batch <= SMALL_BATCH:
    lanes = power(batch)
    entries = min(power(num_entries), max(16, 256 // lanes))
    # Two programs for each multiprocessor, and at most 32 sums for each of 128 threads.
    rows = min(power(num_rows // (2 * MULTIPROCESSORS) + 1), max(1, 4096 // (entries * lanes)))
    return Blocks(rows, entries, lanes, math.ceil(num_rows / rows), 4)
  lanes = min(power(batch), _ROW_BYTES // itemsize)
  tiles = math.ceil(batch / lanes)
  splits = max(1, MULTIPROCESSORS // tiles)
  # A tile that does not fit is swept once for each block, as indices ascend: take larger ones.
  rows = 16 if num_inputs * lanes * itemsize <= _CACHE_BYTES else 64
  rows = min(rows, power(math.ceil(num_rows / splits)))
  entries = min(power(num_entries), max(4, 8192 // (rows * lanes)))
  return Blocks(rows, entries, lanes, min(splits, math.ceil(num_rows / rows)), 16)


def as_tiles(x: Array, lanes: int) -> Array:
  """X `[B, I]` as `[tiles, I, lanes]`, rows of zeros filling up the last tile."""
  num_tiles = math.ceil(x.shape[0] / lanes)
  x = jnp.pad(x, ((0, num_tiles * lanes - x.shape[0]), (0, 0)))
  return x.reshape(num_tiles, lanes, -1).transpose(0, 2, 1)


def weighted_sums(
  x: Array,
  values: Array,
  indices: Array,
  *,
  num_rows: int,
  starts: Array | None = None,
  columns: Array | None = None,
  num_columns: int | None = None,
  bias: Array | None = None,
  activation: str | None = None,
  interpret: bool = False,
  blocks: Blocks | None = None,
) -> Array:
  """The sums of the module's docstring.

  Args:
    x: `[B, I]` float32 or bfloat16.
    values: `[entries of all rows]` float32 or bfloat16.
    indices: of the same shape, integers in 0..I-1.
    num_rows: of the pattern; at least 1, and there is at least one entry.
    starts: `[num_rows + 1]` int32, where the entries of each row begin; by default all rows have
      as many.
    columns: `[num_columns]` int32, each column once: those of the rows come first, the others have
      no entries. By default row `r` is column `r`.
    num_columns: of the result; `num_rows` by default.
    bias: `[num_columns]`, or None.
    activation: a name in `ACTIVATIONS`.
    interpret: whether to run in interpret mode.
    blocks: how to cut it, instead of `choose_blocks`.

  Returns:
    `[B, num_columns]` of x's type, from sums in float32.

  Raises:
    ValueError: if an array has 2**31 elements or more.
  """
  num_columns = num_rows if num_columns is None else num_columns
  batch, num_inputs = x.shape
  blocks = blocks or choose_blocks(
    batch, num_rows, math.ceil(values.size / num_rows), num_inputs, x.dtype.itemsize
  )
  check_size(batch + blocks.lanes, max(num_columns, num_inputs))
  check_size(values.size, 1)
  tiles = as_tiles(x, blocks.lanes)
  optional = {"starts": starts, "columns": columns, "bias": bias}
  given = {name: array for name, array in optional.items() if array is not None}
  kernel = functools.partial(
    _kernel,
    names=tuple(given),
    num_rows=num_rows,
    row_size=values.size // num_rows,
    num_columns=num_columns,
    activation=activation,
    blocks=blocks,
    interpret=interpret,
  )
  return lowering.gpu_call(
    kernel,
    jax.ShapeDtypeStruct((batch, num_columns), x.dtype),
    grid=(blocks.splits, tiles.shape[0]),
    num_warps=blocks.warps,
    interpret=interpret,
    name="condensed_sums",
  )(tiles, values, indices, *given.values())


def check_size(*sizes: int) -> None:
  """Raises a ValueError for an array of more elements than the kernels can count."""
  if math.prod(sizes) > _MAX_ELEMENTS:
    raise ValueError(
      f"An array of {' x '.join(map(str, sizes))} elements is more than the pallas backend can "
      "address (2**31 - 1): cut the batch into parts, or take backend='xla'."
    )


def _kernel(
  x_ref: Any,
  values_ref: Any,
  indices_ref: Any,
  *refs: Any,
  names: tuple[str, ...],
  num_rows: int,
  row_size: int,
  num_columns: int,
  activation: str | None,
  blocks: Blocks,
  interpret: bool,
) -> None:
  """A program: one tile of x, every `splits`-th block of rows, and of columns without entries."""
  optional_output, y_ref = dict(zip(names, refs[:-1], strict=True)), refs[-1]
  starts_ref = optional_output.pop("starts", None)
  split, tile = lowering.program_id(0), lowering.program_id(1)
  num_full = math.ceil(num_rows / blocks.rows)
  num_blocks = num_full + math.ceil((num_columns - num_rows) / blocks.rows)

  def block(i: Array, carry: Any) -> Any:
    number = split + i * blocks.splits
    has_entries = number < num_full
    # Rows without entries follow those with, from a block of their own on.
    is_empty = (number >= num_full).astype(jnp.int32)
    first = number * blocks.rows - is_empty * (num_full * blocks.rows - num_rows)
    rows = first + lax.iota(jnp.int32, blocks.rows)
    is_row = rows < num_rows + is_empty * (num_columns - num_rows)
    sums = _sums(
      x_ref, values_ref, indices_ref, starts_ref, tile, rows,
      is_row & has_entries, row_size, blocks, interpret,
    )  # fmt: skip
    store_rows(y_ref, sums.T, rows, is_row, tile * blocks.lanes, activation, **optional_output)
    return carry

  # The last round has blocks for some programs only; to the others every row is beyond the end.
  lax.fori_loop(0, math.ceil(num_blocks / blocks.splits), block, 0)


def _sums(
  x_ref: Any,
  values_ref: Any,
  indices_ref: Any,
  starts_ref: Any,
  tile: Array,
  rows: Array,
  has_entries: Array,
  row_size: int,
  blocks: Blocks,
  interpret: bool,
) -> Array:
  """`[rows, lanes]` float32, the sums of some rows; zeros where there are no entries."""
  shape = (blocks.rows, blocks.entries)
  cube = (*shape, blocks.lanes)
  if starts_ref is None:
    first = rows * row_size
    sizes = jnp.where(has_entries, row_size, 0)
  else:
    first = lowering.load(starts_ref, rows, has_entries)
    sizes = lowering.load(starts_ref, rows + 1, has_entries) - first

  def step(i: Array, sums: Array) -> Array:
    entries = i * blocks.entries + lax.iota(jnp.int32, blocks.entries)
    is_entry = outer(entries, shape, 1) < outer(sizes, shape, 0)
    places = outer(first, shape, 0) + outer(entries, shape, 1)
    values = lowering.load(values_ref, places, is_entry).astype(jnp.float32)
    indices = lowering.load(indices_ref, places, is_entry).astype(jnp.int32)
    lanes = lax.broadcasted_iota(jnp.int32, cube, 2)
    picked = lowering.load(x_ref, (tile, jnp.broadcast_to(indices[:, :, None], cube), lanes))
    values = jnp.broadcast_to(values[:, :, None], cube)
    return lowering.multiply_add(values, picked.astype(jnp.float32), sums, interpret)

  num_steps = (sizes.max() + blocks.entries - 1) // blocks.entries
  return lax.fori_loop(0, num_steps, step, jnp.zeros(cube, jnp.float32)).sum(1)


def store_rows(
  y_ref: Any,
  sums: Array,
  rows: Array,
  is_row: Array,
  first: Array,
  activation: str | None,
  *,
  columns: Any = None,
  bias: Any = None,
) -> None:
  """What follows the sums of a block: bias, activation, and their places in the result.

  Args:
    y_ref: `[B, N]`, the result.
    sums: `[lanes, rows]` float32.
    rows: `[rows]` int32, of the pattern.
    is_row: `[rows]`, False for what is beyond the pattern.
    first: row of the batch that lane 0 is; lanes beyond the batch are dropped.
    activation: a name in `ACTIVATIONS`.
    columns: `[N]`, the column of each row; or None if it is the row.
    bias: `[N]`, or None.
  """
  places = rows if columns is None else lowering.load(columns, rows, is_row)
  if bias is not None:
    sums += lowering.load(bias, places, is_row).astype(jnp.float32)[None, :]
  # The interpreter writes back what it read where the mask is False: that must be nobody's place.
  places = jnp.where(is_row, places, y_ref.shape[1])
  batch_rows = first + lax.iota(jnp.int32, sums.shape[0])
  index = (outer(batch_rows, sums.shape, 0), outer(places, sums.shape, 1))
  is_in = outer(batch_rows < y_ref.shape[0], sums.shape, 0) & outer(is_row, sums.shape, 1)
  lowering.store(y_ref, index, ACTIVATIONS[activation](sums), is_in)


def outer(vector: Array, shape: tuple[int, ...], axis: int) -> Array:
  """A vector along one axis of a matrix, repeated along the other."""
  return lax.broadcast_in_dim(vector, shape, (axis,))
