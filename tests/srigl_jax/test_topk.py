import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from srigl_jax import topk

topk_mask = jax.jit(topk.topk_mask)
topk_mask_per_column = jax.jit(topk.topk_mask_per_column)
SHAPES = [(1, 1), (7, 5), (3, 11)]

few_keys = st.sampled_from([0, 1, 2, 3, 2**24 + 1, 2**31 - 2, 2**31 - 1])
any_keys = st.integers(0, 2**31 - 1)
any_k = st.integers(-3, 100)


def expected(keys, k):
  """The k largest of a flat array by stable sorting: among equals the first ones."""
  order = np.argsort(-keys.astype(np.int64), kind="stable")
  chosen = np.zeros(len(keys), bool)
  chosen[order[: max(int(k), 0)]] = True
  return chosen


def expected_per_column(keys, ks):
  return np.stack([expected(column, k) for column, k in zip(keys.T, ks, strict=True)], axis=1)


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_agrees_with_a_stable_sort(shape):
  @hypothesis.given(
    st.one_of(hnp.arrays(np.uint32, shape, elements=e) for e in (few_keys, any_keys)), any_k
  )
  def check(keys, k):
    want = expected(keys.ravel(), k).reshape(shape)
    np.testing.assert_array_equal(topk_mask(keys, jnp.int32(k)), want)

  check()


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_per_column_agrees_with_a_stable_sort(shape):
  @hypothesis.given(
    st.one_of(hnp.arrays(np.uint32, shape, elements=e) for e in (few_keys, any_keys)),
    hnp.arrays(np.int32, shape[1], elements=st.integers(-2, shape[0] + 2)),
  )
  def check(keys, ks):
    np.testing.assert_array_equal(topk_mask_per_column(keys, ks), expected_per_column(keys, ks))

  check()


def test_one_k_for_all_columns_and_python_numbers():
  keys = jnp.asarray([[1, 5], [5, 5], [3, 0]], jnp.uint32)
  np.testing.assert_array_equal(
    topk.topk_mask_per_column(keys, 2), [[False, True], [True, True], [True, False]]
  )
  # Four keys of 5 and 3 for three places: row by row, the first equal ones.
  np.testing.assert_array_equal(
    topk.topk_mask(keys, 3), [[False, True], [True, True], [False, False]]
  )


# The tiles that the passes run over differ with the size.
LARGE = [(33, 32), (65, 3), (97, 4), (300, 70), (1030, 33)]


@pytest.mark.parametrize("shape", LARGE)
@pytest.mark.parametrize("num_levels", [1, 4, 2**31])
def test_large_matrices(shape, num_levels):
  rng = np.random.default_rng(0)
  keys = rng.integers(0, num_levels, shape).astype(np.uint32)
  for k in (0, 1, keys.size // 3, keys.size - 1, keys.size, keys.size + 5):
    want = expected(keys.ravel(), k).reshape(keys.shape)
    np.testing.assert_array_equal(topk_mask(keys, k), want)
  ks = rng.integers(-3, shape[0] + 3, shape[1])
  np.testing.assert_array_equal(topk_mask_per_column(keys, ks), expected_per_column(keys, ks))


@pytest.mark.parametrize("shape", [*SHAPES, *LARGE])
def test_counts(shape):
  chosen = np.random.default_rng(0).random(shape) < 0.7
  assert topk.count(chosen) == chosen.sum()
  assert topk.count(chosen).shape == ()
  np.testing.assert_array_equal(topk.count_per_column(chosen), chosen.sum(0)[None])


def test_vmap_over_matrices_and_over_k():
  rng = np.random.default_rng(1)
  keys = rng.integers(0, 3, (4, 6, 5)).astype(np.uint32)
  ks = np.asarray([0, 7, 12, 31])
  got = jax.vmap(topk.topk_mask)(keys, ks)
  want = [expected(x.ravel(), k).reshape(6, 5) for x, k in zip(keys, ks, strict=True)]
  np.testing.assert_array_equal(got, want)

  got = jax.vmap(topk.topk_mask, in_axes=(None, 0))(keys[0], ks)
  np.testing.assert_array_equal(got, [expected(keys[0].ravel(), k).reshape(6, 5) for k in ks])

  per_column = rng.integers(0, 7, (4, 5))
  got = jax.vmap(topk.topk_mask_per_column)(keys, per_column)
  want = [expected_per_column(x, k) for x, k in zip(keys, per_column, strict=True)]
  np.testing.assert_array_equal(got, want)


def test_traced_k_does_not_recompile():
  traces = []

  @jax.jit
  def select(keys, k):
    traces.append(1)
    return topk.topk_mask(keys, k)

  keys = jnp.arange(6, dtype=jnp.uint32).reshape(2, 3)
  assert [int(select(keys, k).sum()) for k in range(8)] == [0, 1, 2, 3, 4, 5, 6, 6]
  assert len(traces) == 1


@functools.partial(jax.jit, static_argnums=1)
def keys_of(x, dtype):
  return topk.ranking_key(x.astype(dtype))


@hypothesis.given(
  hnp.arrays(np.float32, 12, elements=st.floats(width=32, allow_nan=False, allow_subnormal=False))
)
def test_keys_order_as_magnitudes_do(x):
  keys, magnitudes = np.asarray(keys_of(x, jnp.float32)), np.abs(x)
  for compare in (np.less, np.equal):
    np.testing.assert_array_equal(compare.outer(keys, keys), compare.outer(magnitudes, magnitudes))


def test_keys_of_special_values():
  x = jnp.asarray([0.0, -0.0, 1e-30, -1.0, 3.0e38, jnp.inf, -jnp.inf, jnp.nan, -jnp.nan])
  keys = np.asarray(keys_of(x, jnp.float32)).astype(np.int64)
  zero, minus_zero, small, one, huge, inf, minus_inf, nan, minus_nan = keys
  assert 0 < zero == minus_zero < small < one < huge < inf == minus_inf < nan == minus_nan
  assert nan < topk.ALWAYS


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_keys_of_short_floats_are_exact(dtype):
  x = jnp.asarray([1.0, -1.0, 1.0078125, 0.5, 6e-5, -0.0], dtype)
  np.testing.assert_array_equal(topk.ranking_key(x), topk.ranking_key(x.astype(jnp.float32)))
  assert len(set(np.asarray(topk.ranking_key(x)).tolist())) == 5


def test_key_zero_loses_to_every_magnitude():
  keys = jnp.where(jnp.asarray([[True, False], [True, False]]), topk.ranking_key(
    jnp.zeros((2, 2))
  ), 0)  # fmt: skip
  np.testing.assert_array_equal(topk.topk_mask(keys, 2), [[True, False], [True, False]])


@pytest.mark.parametrize("shape", [(7, 5), (1000, 3), (33, 64)])
def test_sorting_chooses_what_bisection_does(shape):
  """As on a GPU: with ties, keys of 0, and any k from nothing to more than there is."""
  rng = np.random.default_rng(0)
  keys = jnp.asarray(rng.integers(0, 9, shape), jnp.uint32)
  for view, axes in ((topk._tiles(keys), topk._WHOLE), (topk._column_tiles(keys), topk._COLUMNS)):
    num_sets = view.shape[2] if axes == topk._COLUMNS else 1
    most = view.size // num_sets
    for k in (0, 1, most // 2, most, most + 5, rng.integers(0, most + 2, num_sets)):
      each = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (num_sets,)).reshape(1, 1, -1)
      got, want = (way(view, each, axes=axes) for way in (topk._by_sorting, topk._by_bisection))
      np.testing.assert_array_equal(got, want)
