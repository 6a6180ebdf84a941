"""The k largest entries of a matrix, or of each of its columns, with a traced k.

Sorting is the obvious way and the slow one: what is wanted is a threshold. Non-negative
floats order as their bit patterns do, so 31 counting passes (bisection on the bits) find the
k-th largest exactly, whatever the distribution; `python -m experiments.benchmark_training`
compares whole topology updates with sorting ones. On a GPU, where each pass is a launch, keys are
sorted after all; both choose the same entries.

The passes run over a view `[R, T, C]` of the matrix (zeros added at the end) and sum its middle
axis first, then the first. That is for XLA's CPU compiler, which fuses the comparison into a sum
over up to 32 entries, but splits a longer one and writes the compared entries out before; two
short sums it fuses into one that is much slower, so that R must be more than 32.
"""

import functools
import math

import jax.numpy as jnp
from jax import Array, lax

_KEY_BITS = 31
ALWAYS = 2**_KEY_BITS - 1  # the largest key: outranks every magnitude
_WHOLE, _COLUMNS = (0, 1, 2), (0, 1)  # axes of a tiled view that make up one set to choose from


def ranking_key(x: Array) -> Array:
  """Ranking keys of `|x|`, any float dtype, as uint32 in `1 .. 2**31 - 2`; 0 is left free.

  float16 and bfloat16 are exact in float32; float64 is rounded to it. Infinities rank above
  every finite number and NaN above those. Key 0 ranks below every magnitude, zero included:
  callers give it to entries that take no part.
  """
  bits = lax.bitcast_convert_type(jnp.abs(x.astype(jnp.float32)), jnp.uint32)
  return jnp.minimum(bits, ALWAYS - 2) + 1


def topk_mask(keys: Array, k: Array | int) -> Array:
  """Marks the k largest keys of a whole array.

  Args:
    keys: uint32 of any shape, at most `2**31 - 1`.
    k: `[]` int32, may be traced; taken as 0 below 0, and as the number of keys above.

  Returns:
    bool of that shape with k entries set, or all. Ties: the lower flat index wins.
  """
  k = jnp.maximum(jnp.asarray(k, jnp.int32), 0).reshape(1, 1, 1)
  return _topk_mask(_tiles(keys), k, _WHOLE).reshape(-1)[: keys.size].reshape(keys.shape)


def topk_mask_per_column(keys: Array, k: Array) -> Array:
  """Marks the k largest keys of each column.

  Args:
    keys: `[I, N]` uint32, at most `2**31 - 1`.
    k: `[N]` or `[]` int32, may be traced; taken as 0 below 0, and as `I` above.

  Returns:
    `[I, N]` bool with `min(k, I)` entries set in each column. Ties: the lower row wins.
  """
  num_rows, num_columns = keys.shape
  k = jnp.broadcast_to(jnp.maximum(jnp.asarray(k, jnp.int32), 0), (num_columns,))
  chosen = _topk_mask(_column_tiles(keys), k.reshape(1, 1, -1), _COLUMNS)
  return chosen.reshape(-1, num_columns)[:num_rows]


def topk_threshold(keys: Array, k: Array) -> tuple[Array, Array]:
  """The largest number that k keys or more reach, 0 if there are fewer; and how many reach it.

  Args:
    keys: `[C]` uint32, at most `2**31 - 1`.
    k: `[]` int32, not negative.

  Returns:
    `[]` uint32 and `[]` int32.
  """
  threshold, reaching = _threshold(_tiles(keys), k.reshape(1, 1, 1), _WHOLE)
  padding = jnp.where(threshold == 0, -keys.size % 32, 0)
  return threshold.reshape(()), reaching.reshape(()) - padding.reshape(())


def count(chosen: Array) -> Array:
  """The number of True entries of `[I, N]` bool, as `[]` int32."""
  return _count(_tiles(chosen), _WHOLE).reshape(())


def count_per_column(chosen: Array) -> Array:
  """The number of True entries in each column of `[I, N]` bool, as `[1, N]` int32."""
  return _count(_column_tiles(chosen), _COLUMNS)[0]


def _tiles(x: Array) -> Array:
  """`[R, T, 32]`: a matrix in flat order, then zeros."""
  return _column_tiles(jnp.pad(x.reshape(-1), (0, -x.size % 32)).reshape(-1, 32), longest=32)


def _column_tiles(x: Array, *, longest: int = 8) -> Array:
  """`[R, T, N]`: the rows of a matrix, then rows of zeros; `T <= longest`, and R > 32 if it can."""
  num_rows, num_columns = x.shape
  length = min(max(1, (num_rows - 1) // 32), longest)
  return jnp.pad(x, ((0, -num_rows % length), (0, 0))).reshape(-1, length, num_columns)


def _count(chosen: Array, axes: tuple[int, ...]) -> Array:
  partial = chosen.sum(1, dtype=jnp.int32, keepdims=True)
  # The barrier keeps XLA from merging the two sums into one.
  return lax.optimization_barrier(partial).sum(axes, dtype=jnp.int32, keepdims=True)


def _topk_mask(keys: Array, k: Array, axes: tuple[int, ...]) -> Array:
  """The k largest of a tiled view by (key, lower index first); `k >= 0` has size 1 along `axes`."""
  ways = {"default": _by_bisection, "cuda": _by_sorting, "rocm": _by_sorting}
  return lax.platform_dependent(
    keys, k, **{name: functools.partial(way, axes=axes) for name, way in ways.items()}
  )


def _by_sorting(keys: Array, k: Array, *, axes: tuple[int, ...]) -> Array:
  """Sorts, which takes a few launches of a GPU where the passes of a bisection take hundreds."""
  sets = keys.reshape((1, -1) if axes == _WHOLE else (-1, keys.shape[-1]))
  sets = sets if axes == _WHOLE else sets.T
  num_sets, size = sets.shape
  order = jnp.argsort(ALWAYS - sets, axis=1, stable=True)
  places = jnp.arange(num_sets, dtype=jnp.int32)[:, None] * size + order
  chosen = jnp.broadcast_to(jnp.arange(size)[None] < k.reshape(-1, 1), sets.shape)
  mask = (
    jnp.zeros(sets.size, bool).at[places.reshape(-1)].set(chosen.reshape(-1), unique_indices=True)
  )
  return (mask if axes == _WHOLE else mask.reshape(sets.shape).T).reshape(keys.shape)


def _by_bisection(keys: Array, k: Array, *, axes: tuple[int, ...]) -> Array:
  """Searches the threshold."""
  size = math.prod(keys.shape[axis] for axis in axes)
  column = [n if axis in axes else 1 for axis, n in enumerate(keys.shape)]

  def search(state):
    keys, _ = state
    threshold, num_chosen = _threshold(keys, k, axes)
    lower_first = lax.rev(lax.iota(jnp.uint32, size), (0,)).reshape(column)
    tied = jnp.broadcast_to(lower_first, keys.shape)
    rank = jnp.where(keys > threshold, jnp.uint32(ALWAYS - 1), tied) + 1
    return jnp.where(keys >= threshold, rank, 0), jnp.any(num_chosen > k)

  # Mostly every tied entry is wanted (a single one, that is), and one search is enough. Where not
  # they are ranked by index and searched again: a loop, so as to compile the search only once.
  rank, _ = lax.while_loop(lambda state: state[1], search, (keys, jnp.asarray(True)))
  return rank > 0


def _threshold(keys: Array, k: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
  """The largest number that k keys or more reach, 0 if there are fewer; and how many reach it."""

  def raise_threshold(i, state):
    threshold, num_chosen = state
    candidate = threshold | (jnp.uint32(1) << jnp.uint32(_KEY_BITS - 1 - i))
    num_reaching = _count(keys >= candidate, axes)
    enough = num_reaching >= k
    return jnp.where(enough, candidate, threshold), jnp.where(enough, num_reaching, num_chosen)

  everything = jnp.full_like(k, math.prod(keys.shape[axis] for axis in axes))
  return lax.fori_loop(0, _KEY_BITS, raise_threshold, (jnp.zeros_like(k, jnp.uint32), everything))
