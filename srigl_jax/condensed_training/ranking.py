"""The k largest of stored entries, and the k largest gradients of a layer that is never stored.

Both choose what `topk.topk_mask` would choose of the dense `[I, N]` matrix: among equal keys the
lower flat index, that is the lower input and then the lower neuron, first.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.topk import ALWAYS, ranking_key, topk_threshold
from srigl_kernels.backends.xla import dot, tiles

_WAYS = 16  # intervals that one pass over the gradients divides what is left into

Gradients = Callable[[Array | int, int], Array]
"""`(first, num_neurons) -> [I, num_neurons]` float32: a block of a layer's dense gradient."""


def dense_gradient(x: Array, g: Array, *, axis_name: str | None = None) -> Gradients:
  """A layer's dense gradient `xᵀ g` in blocks of neurons.

  Args:
    x: `[B, I]`, the layer's inputs.
    g: `[B, N]`, gradient of the loss in its outputs.
    axis_name: a mapped axis to average over, or None.
  """

  def block(first: Array | int, size: int) -> Array:
    # The barriers keep the product from being fused with what reads it, in each pass another way:
    # the same block must have the same bits every time.
    a, b = lax.optimization_barrier((x, lax.dynamic_slice_in_dim(g, first, size, axis=1)))
    product = dot(a.T, b)
    product = product if axis_name is None else lax.pmean(product, axis_name)
    return lax.optimization_barrier(product)

  return block


def topk_entries(keys: Array, inputs: Array, neurons: Array, k: Array) -> Array:
  """Marks the k largest of a layer's stored entries.

  Args:
    keys: `[C]` uint32, at most `2**31 - 1`; of 0 for entries that take no part.
    inputs: `[C]` int32, below `2**31 - 1`.
    neurons: `[C]` int32, below `2**31 - 1`.
    k: `[]` int32, from 0 to the number of keys above 0.

  Returns:
    `[C]` bool with k entries set. Ties: the lower input, then the lower neuron.
  """
  lower_first = lambda x: (ALWAYS - x).astype(jnp.uint32)

  def choose(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    stage, chosen, tied, left = state
    rank = lax.select_n(stage, keys, lower_first(inputs), lower_first(neurons))
    rank = jnp.where(tied, rank, 0)
    threshold, num_reaching = topk_threshold(rank, left)
    chosen |= rank > threshold
    tied &= rank == threshold
    settled = num_reaching <= left
    chosen |= tied & settled
    left -= jnp.where(settled, left, (rank > threshold).sum(dtype=jnp.int32))
    return stage + 1, chosen, tied, left

  start = jnp.int32(0), jnp.zeros(keys.shape, bool), keys > 0, k
  return lax.while_loop(lambda state: state[3] > 0, choose, start)[1]


class GradientThreshold(NamedTuple):
  """Which gradients of a layer are among its largest.

  Attributes:
    key: `[]` uint32, the ranking key that they reach.
    row, column: `[]` int32; of those with just this key, the ones before this position.
  """

  key: Array
  row: Array
  column: Array

  def chosen(self, keys: Array, first: Array | int) -> Array:
    """Which of the keys `[I, n]` of the neurons from `first` on are among the largest, bool."""
    rows = lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    columns = lax.broadcasted_iota(jnp.int32, keys.shape, 1) + first
    before = (rows < self.row) | ((rows == self.row) & (columns < self.column))
    return (keys > self.key) | ((keys == self.key) & before)


def largest_gradients(
  gradients: Gradients, num_inputs: int, num_neurons: int, k: Array, block: int
) -> GradientThreshold:
  """Finds the k largest gradient magnitudes of a layer by counting, a block at a time.

  Each pass forms the gradient once and divides the interval of keys in which the threshold lies
  by 16; it ends when just k reach the threshold, mostly after five or six.

  Args:
    gradients: the dense gradient, in blocks.
    num_inputs: `I`.
    num_neurons: `N`.
    k: `[]` int32, from 0 to `I * N`.
    block: neurons whose gradients are formed at once.
  """

  def over_blocks(step: Callable[[Array, Array | int, Array], Array], carry: Array) -> Array:
    visit = lambda first, size, carry: step(ranking_key(gradients(first, size)), first, carry)
    return tiles(visit, num_neurons, block, carry)

  def narrow(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    low, high, reaching, above = state
    step = jnp.maximum((high - low) // _WAYS, 1)
    candidates = jnp.minimum(low + step * jnp.arange(1, _WAYS, dtype=jnp.uint32), high - 1)
    count = lambda keys: jnp.stack([(keys >= c).sum(dtype=jnp.int32) for c in candidates])
    counts = over_blocks(
      lambda keys, first, total: total + count(keys), jnp.zeros(_WAYS - 1, jnp.int32)
    )
    enough = counts >= k
    return (
      jnp.maximum(low, jnp.where(enough, candidates, 0).max()),
      jnp.minimum(high, jnp.where(enough, jnp.uint32(ALWAYS + 1), candidates).min()),
      jnp.minimum(reaching, jnp.where(enough, counts, reaching).min()),
      jnp.maximum(above, jnp.where(enough, 0, counts).max()),
    )

  whole = jnp.int32(num_inputs * num_neurons)
  start = jnp.uint32(0), jnp.uint32(ALWAYS + 1), whole, jnp.int32(0)
  unsettled = lambda state: (state[2] != k) & (state[1] - state[0] > 1)
  key, _, reaching, above = lax.while_loop(unsettled, narrow, start)

  def first_ties() -> tuple[Array, Array]:
    """The position that `k - above` of the equal keys come before."""
    ties = over_blocks(
      lambda keys, first, total: total + (keys == key).sum(1, dtype=jnp.int32),
      jnp.zeros(num_inputs, jnp.int32),
    )
    upto = jnp.cumsum(ties)
    row = (upto <= k - above).sum(dtype=jnp.int32)
    left = k - above - jnp.where(row > 0, upto[row - 1], 0)
    tied = over_blocks(
      lambda keys, first, tied: lax.dynamic_update_slice_in_dim(
        tied, lax.dynamic_index_in_dim(keys, row, keepdims=False) == key, first, axis=0
      ),
      jnp.zeros(num_neurons, bool),
    )
    return row, (jnp.cumsum(tied, dtype=jnp.int32) <= left).sum(dtype=jnp.int32)

  everything = jnp.int32(num_inputs), jnp.int32(0)
  row, column = lax.cond(reaching > k, first_ties, lambda: everything)
  return GradientThreshold(key, row, column)


def nth_in_column(upto: Array, n: Array, column: Array) -> Array:
  """The row of the chosen entry number n (from 0) of a column, by binary search.

  Args:
    upto: `[I, size]` int32, chosen entries of the column up to and including this row.
    n: `[S]` int32.
    column: `[S]` int32.
  """
  num_rows = upto.shape[0]
  row = jnp.zeros_like(n)
  for bit in reversed(range(math.ceil(math.log2(num_rows + 1)))):
    further = row + 2**bit
    before = upto.at[further - 1, column].get(mode="clip") <= n
    row = jnp.where((further <= num_rows) & before, further, row)
  return row
