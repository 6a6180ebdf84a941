"""Closed forms of the output-norm variance, held to enumeration in float64."""

import itertools

import numpy as np
import pytest

from srigl_jax.analysis.norm_variance import MASKS, output_norm_variance, uniform_direction_variance


def masks_of(mask, n, k):
  """Every mask `[neurons, inputs]` that has a chance, with its probability."""
  for bits in itertools.product((0.0, 1.0), repeat=n * n):
    drawn = np.reshape(bits, (n, n))
    active = drawn.sum()
    if mask == "bernoulli":
      yield drawn, (k / n) ** active * (1 - k / n) ** (n * n - active)
    elif (mask == "constant_per_layer" and active == k * n) or (
      mask == "constant_fan_in" and (drawn.sum(1) == k).all()
    ):
      yield drawn, 1.0


def enumerated_variance(mask, n, k, depth=1):
  """Var |z|² by summing over all masks and gates; weights and input by their exact moments.

  It carries `M_jl = E[x_j² x_l²]` through the layers. Given mask and gates, weights are Gaussian:
  `E[z_i² z_m²] = (1 + 2 [i = m]) (2/k)² Σ_jl I_ij I_ml ξ_j ξ_l M_jl`.
  """
  every = list(masks_of(mask, n, k))
  total = sum(p for _, p in every)
  gates = [np.array(bits) for bits in itertools.product((0.0, 1.0), repeat=n)]
  moments = (1 + 2 * np.eye(n)) / (n * (n + 2))  # of a uniform point of the sphere
  for _ in range(depth):
    after = np.zeros((n, n))
    for drawn, probability in every:
      for gate in gates:
        open_ = drawn * gate
        weight = probability / total / len(gates)
        after += weight * (1 + 2 * np.eye(n)) * (2 / k) ** 2 * (open_ @ moments @ open_.T)
    moments = after
  return moments.sum() - 1


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n, k, depth", [(1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 1, 4), (3, 2, 1)])
def test_enumeration(mask, n, k, depth):
  expected = enumerated_variance(mask, n, k, depth)
  assert output_norm_variance(mask, n, k, depth=depth) == pytest.approx(expected, rel=1e-12)


def test_enumeration_where_the_mean_fan_in_is_no_whole_number():
  for mask in ("bernoulli", "constant_per_layer"):
    expected = enumerated_variance(mask, 2, 1.5, 2)
    assert output_norm_variance(mask, 2, 1.5, depth=2) == pytest.approx(expected, rel=1e-12)


PUBLISHED = {
  "bernoulli": lambda n, k: 5 * n - 8 + 18 * n / k,
  "constant_per_layer": lambda n, k: (
    (n + 8) * (n - 1) * (n - 1 / k) / (n - 1 / n) - n**2 - 2 * n + 18 * n / k
  ),
  "constant_fan_in": lambda n, k: 5 * n - 5 + 15 * n / k,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("n", [2, 3, 17, 256])
def test_one_layer_is_the_papers_form(mask, n):
  for k in {1, 2, n}:
    expected = PUBLISHED[mask](n, k) / (n * (n + 2))
    assert output_norm_variance(mask, n, k) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 64])
def test_how_the_masks_compare(n):
  """Less than Bernoulli by 0, (n + 8)/(n + 1) and 3 times (n − k)/k."""
  for k in range(1, n + 1):
    bernoulli, per_layer, fan_in = (n * (n + 2) * output_norm_variance(m, n, k) for m in MASKS)
    gap = (n - k) / k
    assert bernoulli - per_layer == pytest.approx((n + 8) / (n + 1) * gap, abs=1e-8)
    assert bernoulli - fan_in == pytest.approx(3 * gap, abs=1e-8)
  # With two neurons, and only then, constant per layer varies least.
  smallest = min(MASKS, key=lambda mask: output_norm_variance(mask, n, 1))
  assert smallest == ("constant_per_layer" if n == 2 else "constant_fan_in")


def test_layers_upon_each_other_vary_more_than_independent_ratios():
  for mask in MASKS:
    one = output_norm_variance(mask, 64, 8)
    assert uniform_direction_variance(mask, 64, 8, depth=1) == pytest.approx(one)
    assert uniform_direction_variance(mask, 64, 8, depth=3) == pytest.approx((1 + one) ** 3 - 1)
    for depth in range(2, 10):
      assert output_norm_variance(mask, 64, 8, depth=depth) > (1 + one) ** depth - 1


@pytest.mark.parametrize(
  "mask, rate",
  [
    ("bernoulli", lambda k: 6 * k / (k - 6) - 1),
    ("constant_per_layer", lambda k: 6 * k / (k - 6) - 1 - 1 / k),
    ("constant_fan_in", lambda k: 6 * (k - 1) / (k - 6) - 1),
  ],
)
def test_growth_in_deep_wide_networks(mask, rate):
  """As docs/studies.md says: slow above k = 6, by 6/k a layer below."""
  n = 10**6
  second_moment = lambda k, depth: 1 + output_norm_variance(mask, n, k, depth=depth)
  growth = n * (second_moment(16, 60) / second_moment(16, 59) - 1)
  assert growth == pytest.approx(rate(16), rel=1e-3)
  assert second_moment(3, 60) / second_moment(3, 59) == pytest.approx(6 / 3, rel=1e-3)


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("bernouli", 4, 2, 1), "mask is 'bernouli'; it must be one of bernoulli, constant_per_layer"),
    (("bernoulli", 0, 1, 1), "n is 0 and depth 1; both must be whole and at least 1"),
    (("bernoulli", 4, 2, 0), "n is 4 and depth 0"),
    (("bernoulli", 4, 5, 1), "k is 5; a mean fan-in must be from 1 to n, which is 4"),
    (("bernoulli", 4, 0.5, 1), r"k is 0\.5; a mean fan-in must be from 1"),
    (("constant_fan_in", 4, 1.5, 1), "a whole number of weights in each neuron, not 1.5"),
    (("constant_per_layer", 5, 1.5, 1), "a whole number of weights in each layer, not 7.5"),
  ],
)
def test_bad_input(arguments, message):
  *positional, depth = arguments
  for function in (output_norm_variance, uniform_direction_variance):
    with pytest.raises(ValueError, match=message):
      function(*positional, depth=depth)
