"""The k largest of stored entries, and the k largest gradients of a layer that is never stored.

Both choose what `topk.topk_mask` would choose of the dense `[I, N]` matrix: among equal keys the
lower flat index, that is the lower input and then the lower neuron, first.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.topk import ALWAYS, ranking_key
from srigl_kernels.backends.xla import dot, tiles
from srigl_kernels.training_conv import ConvProbe, kernel_gradient

_WAYS = 16  # intervals that one pass over the gradients divides what is left into

Gradients = Callable[[Array | int, int], Array]
"""`(first, num_neurons) -> [I, num_neurons]` float32: a block of a layer's dense gradient."""

Entries = Callable[[Array | int, int], tuple[Array, Array, Array]]
"""`(first, size) -> (keys, inputs, neurons)` of consecutive stored entries, `[size]` each: uint32
(at most `2**31 - 1`, and 0 for those that take no part), int32 and int32. They are formed for some
entries at a time: those of all would take as much memory as the optimizer's state."""

Count = Callable[[Array], Array]

ENTRIES_AT_ONCE = 2**17


LayerSignals = tuple[Array, Array] | ConvProbe
"""What a layer's dense gradient is formed of: the inputs `[B, I]` of a product and the gradient
`[B, N]` in its outputs, or those of a convolution."""


@dataclasses.dataclass(frozen=True, eq=False)
class DenseGradient:
  """A layer's dense gradient in blocks of neurons: one of the `Gradients`.

  Attributes:
    signals: of the layer.
    axis_name: a mapped axis to average over, or None; its name is bound where the class is used.
  """

  signals: LayerSignals
  axis_name: str | None = None

  @property
  def is_product_of_one_device(self) -> bool:
    """Whether it is `xᵀ g` of `signals = (x, g)`."""
    return not self._is_averaged and not isinstance(self.signals, ConvProbe)

  @property
  def _is_averaged(self) -> bool:
    # Under `pmap` with one device there is an axis, and nothing to average.
    return self.axis_name is not None and lax.axis_size(self.axis_name) > 1

  def __call__(self, first: Array | int, size: int) -> Array:
    """A block `[I, size]`."""
    signals = self.signals
    x, g = (signals.x, signals.g) if isinstance(signals, ConvProbe) else signals
    # The barriers keep the product from being fused with what reads it, in each pass another way:
    # the same block must have the same bits every time.
    a, b = lax.optimization_barrier((x, lax.dynamic_slice_in_dim(g, first, size, axis=g.ndim - 1)))
    if isinstance(signals, ConvProbe):
      product = kernel_gradient(a, b, signals.geometry)
    else:
      product = dot(a.T, b)
    product = lax.pmean(product, self.axis_name) if self._is_averaged else product
    return lax.optimization_barrier(product)


class Threshold(NamedTuple):
  """Which entries of a layer are among its largest: those with a larger key, and some of its ties.

  Attributes:
    key: `[]` uint32, the ranking key that they reach.
    row, column: `[]` int32; of those with just this key, the ones before this position.
  """

  key: Array
  row: Array
  column: Array

  def chosen(self, keys: Array, rows: Array, columns: Array) -> Array:
    """Which entries are among the largest, bool; by their keys, inputs and neurons."""
    before = (rows < self.row) | ((rows == self.row) & (columns < self.column))
    return (keys > self.key) | ((keys == self.key) & before)

  def chosen_block(self, keys: Array, first: Array | int) -> Array:
    """The same of the keys `[I, n]` of the neurons from `first` on."""
    rows = lax.broadcasted_iota(jnp.int32, keys.shape, 0)
    columns = lax.broadcasted_iota(jnp.int32, keys.shape, 1) + first
    return self.chosen(keys, rows, columns)


def largest_entries(entries: Entries, capacity: int, k: Array) -> Threshold:
  """Finds the k largest of a layer's stored entries by counting, some at a time.

  Args:
    entries: of the layer; inputs and neurons below `2**31 - 1`.
    capacity: `C`, their number.
    k: `[]` int32, from 0 to the number of keys above 0.
  """

  def counting(reaches: Callable[..., Array]) -> Count:
    def count(candidates: Array) -> Array:
      def step(first: Array | int, size: int, total: Array) -> Array:
        keys, inputs, neurons = entries(first, size)
        ranks = keys, _lower_first(inputs), _lower_first(neurons)
        return total + jnp.stack([reaches(*ranks, c).sum(dtype=jnp.int32) for c in candidates])

      return tiles(step, capacity, ENTRIES_AT_ONCE, jnp.zeros(_WAYS - 1, jnp.int32))

    return count

  key, reaching, above = search(counting(lambda keys, _, __, c: keys >= c), k, jnp.int32(capacity))

  def first_ties() -> tuple[Array, Array]:
    left = k - above
    of_row = counting(lambda keys, rows, _, c: (keys == key) & (rows >= c))
    row, in_rows, above_row = search(of_row, left, reaching - above)
    of_column = counting(
      lambda keys, rows, columns, c: (keys == key) & (rows == row) & (columns >= c)
    )
    column = lax.cond(
      in_rows > left,
      lambda: search(of_column, left - above_row, in_rows)[0],
      lambda: jnp.uint32(1),  # the whole row
    )
    return (ALWAYS - row).astype(jnp.int32), (ALWAYS - column).astype(jnp.int32) + 1

  everything = jnp.int32(ALWAYS), jnp.int32(0)
  row, column = lax.cond(reaching > k, first_ties, lambda: everything)
  return Threshold(key, row, column)


def _lower_first(x: Array) -> Array:
  return (ALWAYS - x).astype(jnp.uint32)


def largest_gradients(
  gradients: Gradients, num_inputs: int, num_neurons: int, k: Array, block: int
) -> Threshold:
  """Finds the k largest gradient magnitudes of a layer by counting, a block at a time.

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

  def count(candidates: Array) -> Array:
    reaching = lambda keys: jnp.stack([(keys >= c).sum(dtype=jnp.int32) for c in candidates])
    return over_blocks(
      lambda keys, first, total: total + reaching(keys), jnp.zeros(_WAYS - 1, jnp.int32)
    )

  key, reaching, above = search(count, k, jnp.int32(num_inputs * num_neurons))

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
  return Threshold(key, row, column)


def search(count: Count, k: Array, total: Array) -> tuple[Array, Array, Array]:
  """The largest number that at least k of some numbers reach.

  Each pass divides the interval in which it lies by 16. It ends when just k reach the number found,
  mostly after five or six.

  Args:
    count: how many of them reach each of 15 candidates, `[15]` uint32 -> `[15]` int32.
    k: `[]` int32.
    total: `[]` int32, how many they are.

  Returns:
    The number, `[]` uint32, or one that is less but as many reach; how many reach it; and how many
    are larger, if it is k or more that reach it.
  """

  def narrow(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
    low, high, reaching, above = state
    step = jnp.maximum((high - low) // _WAYS, 1)
    candidates = jnp.minimum(low + step * jnp.arange(1, _WAYS, dtype=jnp.uint32), high - 1)
    counts = count(candidates)
    enough = counts >= k
    return (
      jnp.maximum(low, jnp.where(enough, candidates, 0).max()),
      jnp.minimum(high, jnp.where(enough, jnp.uint32(ALWAYS + 1), candidates).min()),
      jnp.minimum(reaching, jnp.where(enough, counts, reaching).min()),
      jnp.maximum(above, jnp.where(enough, 0, counts).max()),
    )

  start = jnp.uint32(0), jnp.uint32(ALWAYS + 1), total, jnp.int32(0)
  unsettled = lambda state: (state[2] != k) & (state[1] - state[0] > 1)
  key, _, reaching, above = lax.while_loop(unsettled, narrow, start)
  return key, reaching, above


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
