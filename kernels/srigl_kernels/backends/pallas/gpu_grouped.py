"""The kernel of grouped layers on GPUs: gathered rows of x, and a small matrix product for each.

A program computes one group for one tile of the batch: in every step it gathers `entries` rows of
the tile, each contiguous, and multiplies them with the group's values, `[size, entries]`, on matrix
units. What is read of x is `K` rows for `size * K` products of each lane, so at 90 % sparsity and
`size` 16 a tenth of a dense product's arithmetic for more than half of its traffic: it is bound by
the second-level cache, and gains with the size of the group. Programs that run at the same time
work on the same tile.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_kernels.backends.padding import power
from srigl_kernels.backends.pallas import lowering
from srigl_kernels.backends.pallas.gpu_weighted_sums import as_tiles, check_size, outer, store_rows

_LEAST = 16  # what a matrix unit takes along each axis


class Blocks(NamedTuple):
  """How the work is cut.

  Attributes:
    entries: of a group, in a step; a power of two of at least 16.
    lanes: rows of the batch, in a tile of x; likewise.
    warps: of a program.
  """

  entries: int
  lanes: int
  warps: int


def choose_blocks(batch: int, num_entries: int, itemsize: int) -> Blocks:
  """Blocks for a product: from arithmetic, not from measurements.

  Args:
    batch: rows of x.
    num_entries: `K`.
    itemsize: bytes of an element of x.
  """
  lanes = min(max(power(batch), _LEAST), 256 // itemsize)
  entries = min(max(power(num_entries), _LEAST), 64)
  return Blocks(entries, lanes, 4)


def grouped_sums(
  x: Array,
  values: Array,
  indices: Array,
  *,
  num_rows: int,
  columns: Array | None = None,
  num_columns: int | None = None,
  bias: Array | None = None,
  activation: str | None = None,
  interpret: bool = False,
  blocks: Blocks | None = None,
) -> Array:
  """The product of a grouped layer with x; arguments not listed are those of `weighted_sums`.

  Args:
    x: `[B, I]` float32 or bfloat16, B at least 1.
    values: `[G, size, K]` float32 or bfloat16; `size` is a power of two of at least 16.
    indices: `[G, K]` integers in 0..I-1; neither size is 0.
    num_rows: rows of the groups that count, the last group being the one that may lack some.
    columns: `[num_columns]` int32, each column once, those of the rows first; by default row `r`
      is column `r`.
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
  num_groups, size, fan_in = values.shape
  num_columns = num_rows if num_columns is None else num_columns
  batch, num_inputs = x.shape
  blocks = blocks or choose_blocks(batch, fan_in, x.dtype.itemsize)
  check_size(batch + blocks.lanes, max(num_columns, num_inputs))
  check_size(num_groups, size, fan_in)
  tiles = as_tiles(x, blocks.lanes)
  optional = {"columns": columns, "bias": bias}
  given = {name: array for name, array in optional.items() if array is not None}
  kernel = functools.partial(
    _kernel, names=tuple(given), num_rows=num_rows, activation=activation, blocks=blocks
  )
  num_empty = math.ceil((num_columns - num_rows) / size)
  return lowering.gpu_call(
    kernel,
    jax.ShapeDtypeStruct((batch, num_columns), x.dtype),
    grid=(num_groups + num_empty, len(tiles)),
    num_warps=blocks.warps,
    num_stages=3,
    interpret=interpret,
    name="grouped_sums",
  )(tiles, values, indices, *given.values())


def _kernel(
  x_ref: Any,
  values_ref: Any,
  indices_ref: Any,
  *refs: Any,
  names: tuple[str, ...],
  num_rows: int,
  activation: str | None,
  blocks: Blocks,
) -> None:
  """A program: one group, or as many columns without one, for one tile of x."""
  optional, y_ref = dict(zip(names, refs[:-1], strict=True)), refs[-1]
  number, tile = lowering.program_id(0), lowering.program_id(1)
  num_groups, size, fan_in = values_ref.shape
  is_empty = (number >= num_groups).astype(jnp.int32)
  gathered, weights = (blocks.entries, blocks.lanes), (size, blocks.entries)
  lanes = lax.broadcasted_iota(jnp.int32, gathered, 1)
  # Columns without a group read that of number 0, times no steps.
  read = number * (1 - is_empty)

  def step(i: Array, sums: Array) -> Array:
    entries = i * blocks.entries + lax.iota(jnp.int32, blocks.entries)
    is_entry = entries < fan_in
    indices = lowering.load(indices_ref, (read, entries), is_entry).astype(jnp.int32)
    picked = lowering.load(x_ref, (tile, outer(indices, gathered, 0), lanes))
    values = lowering.load(
      values_ref,
      (read, lax.broadcasted_iota(jnp.int32, weights, 0), outer(entries, weights, 1)),
      outer(is_entry, weights, 1),
    )
    if values.dtype != picked.dtype:
      values, picked = values.astype(jnp.float32), picked.astype(jnp.float32)
    return sums + jnp.dot(picked.T, values.T, preferred_element_type=jnp.float32)

  num_steps = math.ceil(fan_in / blocks.entries) * (1 - is_empty)
  sums = lax.fori_loop(0, num_steps, step, jnp.zeros((blocks.lanes, size), jnp.float32))
  # Rows without a group follow those with, from a program of their own on.
  rows = number * size - is_empty * (num_groups * size - num_rows) + lax.iota(jnp.int32, size)
  is_row = rows < num_rows + is_empty * (y_ref.shape[1] - num_rows)
  store_rows(y_ref, sums, rows, is_row, tile * blocks.lanes, activation, **optional)
