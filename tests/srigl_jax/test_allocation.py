import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_jax import allocation, distributions, structures
from srigl_jax.layers import make_layer


def params_of(shapes):
  return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def density(result, shapes):
  """Weights kept over all weights, by the fractional densities."""
  sizes = {path: math.prod(shape) for path, shape in shapes.items()}
  kept = sum(result.densities.get(path, 1.0) * size for path, size in sizes.items())
  return kept / sum(sizes.values())


# Two Dense layers of 16 and 256 weights; Erdős–Rényi scales 8/16 = 0.5 and 32/256 = 0.125.
PAIR = {"small/kernel": (4, 4), "wide/kernel": (16, 16)}


def test_erk_by_hand():
  # Target 0.25: 12 and 192 weights are missing, 68 remain; epsilon = 68 / (0.5*16 + 0.125*256).
  #        scale  density = 1.7 * scale  budget            fan-in
  # small  0.5    0.85                   trunc(13.6) = 13  3
  # wide   0.125  0.2125                 trunc(54.4) = 54  3
  result = sx.allocate(params_of(PAIR), density=0.25)
  assert result.densities == pytest.approx({"small/kernel": 0.85, "wide/kernel": 0.2125})
  assert result.budgets == {"small/kernel": 13, "wide/kernel": 54}
  assert set(result.layers) == set(PAIR)


def test_erk_layer_that_would_exceed_one_is_dense_and_the_rest_pays():
  # Target 0.5: epsilon = 136 / 40 = 3.4 would give the small layer a density of 1.7. So it is
  # dense: 128 remain of the wide one, less the 8 that the small one should have lost.
  result = sx.allocate(params_of(PAIR), density=0.5)
  assert result.densities == pytest.approx({"wide/kernel": 120 / 256})
  assert result.budgets == {"wide/kernel": 120}
  assert density(result, PAIR) == pytest.approx(0.5)


def test_erk_of_equal_layers_takes_one_a_round():
  layers = {path: make_layer(path, (2, 2)) for path in "ab"}
  layers["c"] = make_layer("c", (64, 64))
  # Density 0.1: scales 1, 1, 1/32. 3 and 3 and 3686 weights missing: 412 left, divisor 136,
  # epsilon 3.03, so a is dense; then 408 / 132 = 3.09, so b is; then 404 / 128 * 1/32.
  assert distributions.erk(layers, 0.1) == {"a": 0.0, "b": 0.0, "c": 1 - (404 / 128) * (1 / 32)}


def test_erk_counts_the_window_of_a_convolution():
  # (3 + 3 + 4 + 8) / 288 and (4 + 8) / 32.
  shapes = {"conv/kernel": (3, 3, 4, 8), "head/kernel": (8, 4)}
  layers = {path: make_layer(path, shape) for path, shape in shapes.items()}
  epsilon = ((288 - 259) + (32 - 28)) / (18 + 12)
  assert distributions.erk(layers, 0.1) == pytest.approx(
    {"conv/kernel": 1 - epsilon * 18 / 288, "head/kernel": 1 - epsilon * 12 / 32}
  )


def test_uniform_by_hand():
  result = sx.allocate(params_of(PAIR), density=0.25, distribution="uniform")
  assert result.densities == pytest.approx({"small/kernel": 0.25, "wide/kernel": 0.25})
  assert result.budgets == {"small/kernel": 4, "wide/kernel": 64}


def test_uniform_pays_for_the_dense_layers():
  # 272 * 0.25 = 68 weights, 16 of them in the dense layer: 52 of 256.
  result = sx.allocate(
    params_of(PAIR), density=0.25, distribution="uniform", sparse=sx.all_but("small")
  )
  assert result.densities == pytest.approx({"wide/kernel": 52 / 256})
  assert set(result.layers) == set(PAIR)


NETWORK = {
  "conv1/kernel": (3, 3, 3, 16),
  "depthwise/kernel": (3, 3, 1, 16),
  "pointwise/kernel": (1, 1, 16, 64),
  "block/kernel": (3, 3, 64, 64),
  "head/kernel": (64, 10),
}


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
@pytest.mark.parametrize("dense", [("first",), ("head",), ("depthwise",), ("first", "head")])
def test_layers_kept_dense_count_toward_the_target(distribution, dense):
  result = sx.allocate(
    params_of(NETWORK), 0.7, distribution, sparse=sx.all_but(*dense), structure="unstructured"
  )
  names = {"first": "conv1/kernel", "head": "head/kernel", "depthwise": "depthwise/kernel"}
  assert not {names[name] for name in dense} & set(result.densities)
  assert density(result, NETWORK) == pytest.approx(0.3, abs=1e-4)
  missing = {path: math.prod(NETWORK[path]) - n for path, n in result.budgets.items()}
  total = sum(map(math.prod, NETWORK.values()))
  assert 1 - sum(missing.values()) / total == pytest.approx(0.3, abs=5e-4)


def test_dense_layers_beyond_the_target():
  dense = sx.only("small")  # everything else, 256 of 272 weights, stays dense
  with pytest.warns(UserWarning, match=r"wide/kernel\) alone exceed a density of 0\.5.*0\.970588"):
    result = sx.allocate(params_of(PAIR), 0.5, "uniform", sparse=dense)
  assert result.densities == {"small/kernel": 0.5}
  with pytest.raises(ValueError, match=r"kept dense \(wide/kernel\) alone have more weights"):
    sx.allocate(params_of(PAIR), 0.5, "erk", sparse=dense)


# Fan-ins decided by the last bit: (shape, target sparsity) -> fan-in.
@pytest.mark.parametrize(
  ("shape", "sparsity", "fan_in"),
  [
    ((1000, 1000), 0.9, 99),  # 1 - 0.9 is a little less than 0.1 ...
    ((100, 24), 0.9, 9),
    ((1000, 1000), 0.99, 10),  # ... and 1 - 0.99 a little more than 0.01
    ((100, 100), 0.75, 25),
  ],
)
def test_constant_fan_in_is_formed_in_double(shape, sparsity, fan_in):
  assert allocation.constant_fan_in(make_layer("w", shape), sparsity) == fan_in


def test_fan_in_of_a_single_uniform_layer():
  # The sparsity goes by way of the density 0.1, as in the authors' configs: S = 1 - 0.1 = 0.9.
  result = sx.allocate(params_of({"w": (1000, 1000)}), 0.9, "uniform")
  assert result.budgets == {"w": int(1e6 * (1 - 0.9))} == {"w": 99999}


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
@pytest.mark.parametrize("percent", [50, 70, 80, 90, 95])
def test_sparsity_says_the_same_as_density(distribution, percent):
  one = sx.allocate(params_of(NETWORK), percent / 100, distribution, structure="unstructured")
  two = sx.allocate(
    params_of(NETWORK),
    distribution=distribution,
    density=(100 - percent) / 100,
    structure="unstructured",
  )
  assert one == two


@pytest.mark.parametrize("structure", structures.STRUCTURES)
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_nothing_is_sparse_at_sparsity_zero(distribution, structure):
  rng = np.random.default_rng(0)
  for _ in range(50):
    shapes = {f"w{i}": tuple(rng.integers(2, 99, 2).tolist()) for i in range(4)}
    result = sx.allocate(params_of(shapes), 0, distribution, structure=structure)
    assert result.budgets == {} and len(result.layers) == 4


def test_unstructured_budget_removes_rather_than_keeps():
  # Ten weights at a density of 0.35: trunc(3.5) = 3 stay, or trunc(6.5) = 6 go and 4 stay.
  densities, params = {"w": 0.35}, params_of({"w": (5, 2)})
  removed = sx.allocate(params, distribution=densities, structure="unstructured")
  assert removed.budgets == {"w": 4}
  assert sx.allocate(params, distribution=densities).budgets == {"w": 3}


def test_mapping_and_function_give_densities():
  given = {"wide/kernel": 0.5, "small/kernel": 1.0}
  result = sx.allocate(params_of(PAIR), distribution=given)
  assert result.densities == {"wide/kernel": 0.5}
  assert result.budgets == {"wide/kernel": 128}
  assert sx.allocate(params_of(PAIR), distribution={"wide/kernel": 0.5}) == result

  seen = {}

  def distribution(layers, target):
    seen.update(layers=layers, target=target)
    return {path: min(1.0, 8 / layer.dense_fan_in) for path, layer in layers.items()}

  assert sx.allocate(params_of(PAIR), 0.9, distribution) == result
  assert seen["target"] == 0.1
  assert {path: layer.shape for path, layer in seen["layers"].items()} == PAIR
  sx.allocate(params_of(PAIR), distribution=distribution)
  assert seen["target"] is None


def test_fan_in():
  result = sx.allocate(params_of({**PAIR, "depthwise/kernel": (3, 3, 1, 8)}), fan_in=4)
  assert result.budgets == {"wide/kernel": 64, "depthwise/kernel": 32}  # the small one is full
  assert result.densities == pytest.approx({"wide/kernel": 4 / 16, "depthwise/kernel": 4 / 9})
  result = sx.allocate(params_of(PAIR), fan_in={"wide/kernel": 16, "small/kernel": 1})
  assert result.budgets == {"small/kernel": 4}
  result = sx.allocate(params_of(PAIR), fan_in=2, sparse=sx.only("wide"))
  assert result.budgets == {"wide/kernel": 32}
  # numpy's integers are whole numbers too
  assert sx.allocate(params_of(PAIR), fan_in=np.int64(2)).budgets["wide/kernel"] == 32


def test_layers_with_several_neuron_axes():
  shapes = {"attn/query/kernel": (12, 3, 4), "attn/out/kernel": (3, 4, 6)}
  result = sx.allocate(params_of(shapes), fan_in=5)
  assert result.budgets == {"attn/query/kernel": 12 * 5, "attn/out/kernel": 6 * 5}


def test_a_fan_in_of_zero_names_three_ways_out_and_each_works():
  shapes = {"conv1/kernel": (3, 3, 8, 16), "depthwise/kernel": (3, 3, 1, 16)}
  params = params_of(shapes)
  with pytest.raises(ValueError) as error:
    sx.allocate(params, 0.9, "uniform")
  message = str(error.value)
  assert "'depthwise/kernel' of shape (3, 3, 1, 16) may keep 14 of its 144 weights" in message
  for way in ("(1) lower the sparsity, or use distribution='erk'", "(3) give fan-ins with fan_in"):
    assert way in message
  assert "(2) keep the layer dense with sparse=all_but('^depthwise/kernel$')" in message
  assert sx.allocate(params, 0.8, "uniform").budgets["depthwise/kernel"] >= 16
  assert sx.allocate(params, 0.9, "erk").budgets
  # 130 weights to keep, 144 of them in the dense layer: too sparse for that network.
  dense = sx.allocate(params, 0.85, "uniform", sparse=sx.all_but("depthwise/kernel"))
  assert set(dense.budgets) == {"conv1/kernel"}
  assert sx.allocate(params, fan_in=1).budgets["depthwise/kernel"] == 16
  given = dict.fromkeys(shapes, 0.2)
  assert sx.allocate(params, distribution=given).budgets["depthwise/kernel"] == 28


def test_budgets_are_within_what_an_update_accepts():
  rng = np.random.default_rng(1)
  for _ in range(200):
    shapes = {f"w{i}": tuple(rng.integers(2, 60, 2).tolist()) for i in range(3)}
    try:
      result = sx.allocate(params_of(shapes), rng.uniform(0.01, 0.9))
    except ValueError:
      continue  # a fan-in of 0
    for path, budget in result.budgets.items():
      layer = result.layers[path]
      assert isinstance(budget, int)
      assert layer.num_neurons <= budget < layer.size


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"sparsity": 1.0}, r"sparsity is 1\.0; it must lie in \[0, 1\)"),
    ({"sparsity": -0.1}, r"sparsity is -0\.1"),
    ({"sparsity": math.nan}, "sparsity is nan"),
    ({"density": 0.0}, r"density is 0\.0; it must lie in \(0, 1\]"),
    ({"density": 1.1}, r"density is 1\.1"),
    ({"sparsity": 0.9, "density": 0.1}, "Both sparsity"),
    ({}, r"'erk' needs a target: pass sparsity=0\.9"),
    ({"sparsity": 0.5, "distribution": "ER"}, r"distribution is 'ER'.*\('erk', 'uniform'\)"),
    ({"sparsity": 0.5, "structure": "n:m"}, r"structure is 'n:m'.*constant_fan_in"),
    ({"sparsity": 0.5, "fan_in": 3}, r"Both fan_in \(3\) and sparsity \(0\.5\) are given"),
    (
      {"fan_in": 3, "distribution": {"wide/kernel": 0.5}},
      r"Both fan_in \(3\) and distribution \(\{",
    ),
    ({"fan_in": 3, "distribution": "uniform"}, r"Both fan_in .*\(uniform\)"),
    ({"fan_in": 0}, r"fan_in of layer 'small/kernel' is 0; .* from 1 to 4"),
    ({"fan_in": 1000}, r"fan_in is 1000, but no layer's neurons have more than \d+ inputs"),
    ({"fan_in": 2.5}, r"is 2\.5; it must be a whole number"),
    ({"fan_in": {"wide/kernel": 17}}, r"'wide/kernel' is 17; .* from 1 to 16"),
    ({"fan_in": {"wide": 3}}, r"fan_in names 'wide', .*mean 'wide/kernel'"),
    ({"sparsity": 0.5, "distribution": {"wide/kernel": 0.5}}, "must be left out"),
    ({"distribution": {"wide": 0.5}}, r"distribution names 'wide'"),
    ({"distribution": {"wide/kernel": 0}}, r"'wide/kernel' a density of 0; .*\(0, 1\]"),
    ({"distribution": {"wide/kernel": 1.5}}, r"'wide/kernel' a density of 1\.5"),
    ({"distribution": lambda layers, target: [0.5]}, r"gave \[0\.5\]; it must be a mapping"),
    ({"distribution": {"wide/kernel": 0.01}}, r"may keep 2 of its 256 weights"),
    ({"sparsity": "0.9"}, "sparsity is '0.9'; it must be a number"),
    ({"sparsity": jnp.float32(0.9)}, r"sparsity is a jax array.*inject_hyperparams"),
    ({"density": jnp.float32(0.1)}, r"density is a jax array.*inject_hyperparams"),
    ({"sparsity": 0.5, "sparse": sx.only("nope")}, "sparse names 'nope'"),
  ],
)
def test_rejects(kwargs, message):
  with pytest.raises(ValueError, match=message):
    sx.allocate(params_of(PAIR), **kwargs)


@pytest.mark.parametrize(
  "kwargs",
  [{"distribution": {"small/kernel": 0.5}}, {"fan_in": {"small/kernel": 2}}],
)
def test_a_layer_both_given_and_excluded_is_an_error(kwargs):
  with pytest.raises(ValueError, match=r"small/kernel.*sparse"):
    sx.allocate(params_of(PAIR), sparse=sx.all_but("small"), **kwargs)
