"""The kernel of the gradient in the values on GPUs: products of pairs of rows, summed over lanes.

    d[r, j] = sum_b g[b, r] * x[b, indices[r, j]]

the products of a dense layer's gradient that its pattern has, and no others. x and g come in tiles
of `lanes` rows of the batch, as in `gpu_weighted_sums`. The tiles are dealt out to at most
`_GROUPS` groups of programs, each of which adds to an array of its own, without atomics: that order
is fixed, and so is the result. Within a group a program has the same rows in every tile.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_kernels.backends.pallas import lowering
from srigl_kernels.backends.pallas.gpu_weighted_sums import (
  MULTIPROCESSORS,
  SMALL_BATCH,
  Blocks,
  as_tiles,
  check_size,
  choose_blocks,
  outer,
)

_GROUPS = 8  # arrays of partial sums


def pattern_products(
  g: Array, x: Array, indices: Array, *, interpret: bool = False, blocks: Blocks | None = None
) -> Array:
  """The products of the module's docstring.

  Args:
    g: `[B, A]` float32 or bfloat16, B at least 1.
    x: `[B, I]` float32 or bfloat16.
    indices: `[A, K]` integers in 0..I-1, neither size 0.
    interpret: whether to run in interpret mode.
    blocks: how to cut it, instead of `choose_blocks`; its `splits` are for each group.

  Returns:
    `[A, K]` float32.

  Raises:
    ValueError: if an array has 2**31 elements or more.
  """
  num_rows, row_size = indices.shape
  batch, num_inputs = x.shape
  if blocks is None:
    itemsize = max(x.dtype.itemsize, g.dtype.itemsize)
    blocks = choose_blocks(batch, num_rows, row_size, num_inputs, itemsize)
    if batch > SMALL_BATCH:
      groups = min(_GROUPS, math.ceil(batch / blocks.lanes))
      splits = min(MULTIPROCESSORS // groups, math.ceil(num_rows / blocks.rows))
      blocks = blocks._replace(splits=splits)
  check_size(batch + blocks.lanes, max(num_rows, num_inputs))
  xs, gs = as_tiles(x, blocks.lanes), as_tiles(g, blocks.lanes)
  each = math.ceil(len(xs) / _GROUPS)
  num_groups = math.ceil(len(xs) / each)
  check_size(num_groups, num_rows, row_size)
  kernel = functools.partial(_kernel, each=each, blocks=blocks, interpret=interpret)
  out = jax.ShapeDtypeStruct((num_groups, num_rows, row_size), jnp.float32)
  partial = lowering.gpu_call(
    kernel,
    out,
    grid=(blocks.splits, num_groups),
    num_warps=blocks.warps,
    interpret=interpret,
    name="condensed_products",
  )(gs, xs, indices)
  return partial.sum(0)


def _kernel(
  g_ref: Any,
  x_ref: Any,
  indices_ref: Any,
  out_ref: Any,
  *,
  each: int,
  blocks: Blocks,
  interpret: bool,
) -> None:
  """A program: some tiles of x and g, every `splits`-th block of rows."""
  split, group = lowering.program_id(0), lowering.program_id(1)
  num_tiles = x_ref.shape[0]
  num_rows, row_size = indices_ref.shape
  shape = (blocks.rows, blocks.entries)
  cube = (*shape, blocks.lanes)

  def in_tile(i: Array, carry: Any) -> Any:
    tile = group * each + i

    def block(j: Array, carry: Any) -> Any:
      rows = (split + j * blocks.splits) * blocks.rows + lax.iota(jnp.int32, blocks.rows)
      plane = (blocks.rows, blocks.lanes)
      lanes = lax.broadcasted_iota(jnp.int32, plane, 1)
      is_row = outer(rows < num_rows, plane, 0)
      factors = lowering.load(g_ref, (tile, outer(rows, plane, 0), lanes), is_row)
      factors = factors.astype(jnp.float32)[:, None, :]

      def step(k: Array, carry: Any) -> Any:
        entries = k * blocks.entries + lax.iota(jnp.int32, blocks.entries)
        index = (group, outer(rows, shape, 0), outer(entries, shape, 1))
        is_entry = outer(rows < num_rows, shape, 0) & outer(entries < row_size, shape, 1)
        indices = lowering.load(indices_ref, index[1:], is_entry).astype(jnp.int32)
        lanes = lax.broadcasted_iota(jnp.int32, cube, 2)
        picked = lowering.load(x_ref, (tile, jnp.broadcast_to(indices[:, :, None], cube), lanes))
        products = (factors * picked.astype(jnp.float32)).sum(2)
        # What earlier tiles left; nothing is read in the first one.
        products += lowering.load(out_ref, index, is_entry & (i > 0))
        lowering.store(out_ref, index, products, is_entry)
        return carry

      return lax.fori_loop(0, math.ceil(row_size / blocks.entries), step, carry)

    carry = lax.fori_loop(0, math.ceil(num_rows / (blocks.rows * blocks.splits)), block, carry)
    lowering.barrier(interpret)  # the next tile reads what this one wrote
    return carry

  lax.fori_loop(0, jnp.minimum(each, num_tiles - group * each), in_tile, 0)
