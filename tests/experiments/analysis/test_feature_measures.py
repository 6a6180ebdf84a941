"""Feature measures against explicit float64 computations, and what they are invariant to."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from experiments.analysis.feature_measures import (
  add_hsic,
  add_moments,
  centred_gram,
  cka,
  effective_rank,
  neuron_scales,
  scaled_moments,
  zero_moments,
)

seeds = st.integers(0, 2**31 - 1)


def features(seed, num_examples=12, num_features=5):
  """Correlated features with a mean that is not 0, float32."""
  rng = np.random.default_rng(seed)
  mixing = rng.normal(size=(num_features, num_features))
  return np.float32(rng.normal(size=(num_examples, num_features)) @ mixing + 3)


def rotation(seed, size):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def similarity(batches):
  """CKA of layers from `[layer features, ...]` for each batch."""
  total = jnp.zeros((len(batches[0]),) * 2)
  for batch in batches:
    total = jax.jit(add_hsic)(total, jnp.stack([centred_gram(jnp.asarray(x)) for x in batch]))
  return np.asarray(cka(total))


def explicit_hsic(x, y):
  """The unbiased estimate by its definition, in float64."""
  k, m = (np.float64(z) @ np.float64(z).T for z in (x, y))
  n = len(k)
  np.fill_diagonal(k, 0)
  np.fill_diagonal(m, 0)
  ones = np.ones(n)
  first = np.trace(k @ m)
  second = (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
  third = 2 / (n - 2) * (ones @ k @ m @ ones)
  return (first + second - third) / (n * (n - 3))


# ---- similarity --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_batches", [1, 3])
def test_cka_is_the_ratio_of_explicit_hsics(num_batches):
  batches = [[features(10 * i + j, 9, 4 + j) for j in range(3)] for i in range(num_batches)]
  hsic = np.array(
    [[np.mean([explicit_hsic(b[i], b[j]) for b in batches]) for j in range(3)] for i in range(3)]
  )
  own = np.sqrt(np.diagonal(hsic))
  np.testing.assert_allclose(similarity(batches), hsic / np.outer(own, own), rtol=1e-4, atol=1e-5)


def test_hsic_is_unbiased():
  """All batches of 5 of 9 examples together give what the 9 give."""
  x, y = features(1, 9), features(2, 9)
  parts = [explicit_hsic(x[list(c)], y[list(c)]) for c in itertools.combinations(range(9), 5)]
  total = np.zeros((2, 2))
  for chosen in itertools.combinations(range(9), 5):
    index = list(chosen)
    total += np.asarray(
      add_hsic(jnp.zeros((2, 2)), jnp.stack([centred_gram(x[index]), centred_gram(y[index])]))
    )
  assert total[0, 1] / len(parts) == pytest.approx(explicit_hsic(x, y), rel=1e-3)


@hypothesis.given(
  seed=seeds, scale=st.floats(0.01, 100), shift=st.floats(-10, 10), rotated=st.booleans()
)
def test_cka_is_invariant_to_rotation_scale_and_shift(seed, scale, shift, rotated):
  x, y = features(seed), features(seed + 1)
  changed = np.float32(scale * (x @ rotation(seed, 5) if rotated else x) + shift)
  before = similarity([[x, y]])
  after = similarity([[changed, y]])
  np.testing.assert_allclose(after, before, atol=2e-4)
  assert similarity([[x, changed]])[0, 1] == pytest.approx(1, abs=2e-4)


@hypothesis.given(seed=seeds)
def test_cka_is_a_similarity(seed):
  matrix = similarity([[features(seed + i, 10, 3 + i) for i in range(4)]])
  np.testing.assert_allclose(matrix, matrix.T, atol=1e-6)
  np.testing.assert_allclose(np.diagonal(matrix), 1, atol=1e-5)
  assert (np.abs(matrix) <= 1 + 1e-5).all()


def test_cka_is_not_invariant_to_stretching_one_direction():
  x = features(0, 40)
  assert similarity([[x, x * np.float32([30, 1, 1, 1, 1])]])[0, 1] < 0.9


def test_unrelated_features_have_no_cka_on_average():
  """The biased estimate of 12 examples with 50 features would be above 0.8."""
  rng = np.random.default_rng(0)
  batches = [np.float32(rng.normal(size=(2, 12, 50))) for _ in range(200)]
  assert abs(similarity(batches)[0, 1]) < 0.05


def test_constant_features_have_no_cka():
  matrix = similarity([[features(0), np.full((12, 3), 7, np.float32)]])
  assert matrix[0, 0] == pytest.approx(1)
  assert np.isnan(matrix[0, 1]) and np.isnan(matrix[1]).all()


def test_convolutional_features_are_flattened():
  x = features(0, 8, 24)
  np.testing.assert_array_equal(centred_gram(x), centred_gram(x.reshape(8, 2, 3, 4)))


def test_u_centring():
  gram = np.asarray(centred_gram(features(0)))
  np.testing.assert_allclose(gram.sum(0), 0, atol=2e-4)
  np.testing.assert_array_equal(np.diagonal(gram), 0)


def test_too_few_examples():
  with pytest.raises(ValueError, match=r"The batch has 3 examples; .* at least 4"):
    centred_gram(features(0, 3))


# ---- effective rank ----------------------------------------------------------------------------


def rank_of(x, dtype=jnp.float32, batches=1):
  moments = zero_moments(x.shape[-1], dtype)
  for part in np.array_split(x, batches):
    moments = jax.jit(add_moments)(moments, jnp.asarray(part))
  return float(jax.jit(effective_rank)(moments))


def with_spectrum(singular, num_examples=64, seed=0):
  """Centred features with these singular values."""
  rng = np.random.default_rng(seed)
  left = rng.normal(size=(num_examples, len(singular)))
  left = np.linalg.qr(left - left.mean(0))[0]
  return left * np.array(singular) @ rotation(seed, len(singular))


@pytest.mark.parametrize(
  "singular, expected",
  [
    ([2.0, 2.0, 2.0, 2.0], 4.0),
    ([5.0, 0.0, 0.0], 1.0),
    ([3.0, 3.0, 0.0, 0.0, 0.0], 2.0),
    # Shares 1/2, 1/4, 1/4: entropy 1.5 ln 2.
    ([2.0, 1.0, 1.0, 0.0], 2**1.5),
  ],
)
@pytest.mark.parametrize("batches", [1, 3])
def test_effective_rank_of_known_spectra(singular, expected, batches):
  x = np.float32(with_spectrum(singular) + 1)
  assert rank_of(x, batches=batches) == pytest.approx(expected, rel=2e-3)


@hypothesis.given(seed=seeds, batches=st.integers(1, 4))
@hypothesis.settings(max_examples=30)
def test_effective_rank_is_that_of_the_centred_features(seed, batches):
  x = features(seed, 30, 6)
  singular = np.linalg.svd(np.float64(x) - np.float64(x).mean(0), compute_uv=False)
  shares = singular / singular.sum()
  with jax.enable_x64(True):
    rank = rank_of(x, jnp.float64, batches)
  assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-6)
  assert 1 <= rank <= 6


def test_float64_sees_what_float32_does_not():
  singular = [1.0, *[1e-4] * 15]
  x = with_spectrum(singular)
  assert rank_of(np.float32(x)) == pytest.approx(1, abs=1e-6)
  shares = np.array(singular) / sum(singular)
  expected = np.exp(-(shares * np.log(shares)).sum())
  with jax.enable_x64(True):
    assert rank_of(x, jnp.float64) == pytest.approx(expected, rel=1e-6)


def test_positions_count_as_examples():
  x = features(0, 24)
  assert rank_of(x.reshape(6, 2, 2, 5)) == pytest.approx(rank_of(x), rel=1e-5)


def test_constant_features_have_rank_0():
  assert rank_of(np.full((8, 3), 7, np.float32)) == 0


def test_scales_of_neurons():
  x = np.float32([[1, 5, 0], [3, 5, 4], [5, 5, 8], [7, 5, 12]])
  moments = add_moments(zero_moments(3), jnp.asarray(x))
  scales = neuron_scales(moments)
  np.testing.assert_allclose(scales, [1 / np.sqrt(5), 0, 1 / np.sqrt(20)], rtol=1e-6)
  expected = add_moments(zero_moments(3), jnp.asarray(x * np.asarray(scales)))
  for found, array in zip(scaled_moments(moments, scales), expected, strict=True):
    np.testing.assert_allclose(found, array, rtol=1e-5, atol=1e-6)
