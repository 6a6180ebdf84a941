import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import srigl_jax as sx
from srigl_jax.exact_counts import ExactFraction, fraction_digits
from srigl_jax.layers import Axes, make_layer, to_matrix
from srigl_jax.methods.srigl import salient_threshold
from tests.srigl_jax import reference

STATIC = ("budget", "gamma_sal", "salient_base", "axes")
# What is tested here are decisions, not speed: unoptimized code compiles twice as fast.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
srigl_update = jit(sx.srigl_update, static_argnames=STATIC)
rigl_update = jit(sx.rigl_update, static_argnames="axes")
set_update = jit(sx.set_update, static_argnames="axes")


def exact(fraction):
  """A double that jit traces, so that all drop fractions share a compilation."""
  return ExactFraction(fraction_digits(fraction))


def matrix(x, layer):
  return np.asarray(to_matrix(jnp.asarray(x), layer))


# ---------------------------------------------------------------- against the slow reference


@st.composite
def layer_states(draw, shape):
  """Weights, gradients and mask of a layer, with as many special cases as a seed can bring."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  neurons = shape[-1]
  # Neurons differ in scale, so that some are ablated; few levels make ties.
  spread = draw(st.sampled_from([0.0, 1.0, 3.0]))
  weights = rng.normal(size=shape) * np.exp(spread * rng.normal(size=neurons))
  grads = rng.normal(size=shape) * np.exp(spread * rng.normal(size=neurons))
  if draw(st.booleans()):
    weights = np.round(weights)
  if draw(st.booleans()):
    grads = np.round(grads)
  grads *= rng.random(neurons) >= draw(st.sampled_from([0.0, 0.0, 0.4, 1.0]))  # dead neurons
  weights *= rng.random(shape) >= draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))  # exact zeros
  mask = rng.random(shape) < draw(st.sampled_from([0.1, 0.3, 0.6, 1.0]))
  mask &= rng.random(neurons) >= draw(st.sampled_from([0.0, 0.3, 0.7]))  # ablated before
  return weights.astype(np.float32), grads.astype(np.float32), mask


drop_fractions = st.one_of(
  st.sampled_from([0.0, 0.29, 0.3, 0.35, 0.57, 0.7, 1.0]), st.floats(0.0, 1.0)
)

# kernel shape, budget, gamma_sal, salient_base
SRIGL_CASES = [
  ((6, 5), 14, 0.0, "constant_fan_in"),
  ((6, 5), 14, 0.3, "constant_fan_in"),
  ((6, 5), 17, 0.95, "constant_fan_in"),
  ((6, 5), 17, 0.5, "dense_fan_in"),
  ((6, 5), 14, 1, "constant_fan_in"),
  ((6, 5), 14, 1.0, "dense_fan_in"),
  ((6, 5), 14, 2.5, "constant_fan_in"),
  ((6, 5), 5, 6, "constant_fan_in"),
  ((6, 5), 29, 3, "constant_fan_in"),
  ((10, 4), 17, 0.99, "dense_fan_in"),
  ((2, 3, 2, 6), 23, 0.6, "constant_fan_in"),
  ((3, 3, 1, 8), 31, 0.7, "constant_fan_in"),
  ((2, 1), 1, 0.5, "constant_fan_in"),
]


@pytest.mark.parametrize(("shape", "budget", "gamma_sal", "salient_base"), SRIGL_CASES)
def test_srigl_agrees_with_the_reference(shape, budget, gamma_sal, salient_base):
  layer = make_layer("kernel", shape)
  kwargs = {"budget": budget, "gamma_sal": gamma_sal, "salient_base": salient_base}

  @hypothesis.given(layer_states(shape), drop_fractions)
  def check(state, drop_fraction):
    got = np.asarray(srigl_update(*state, drop_fraction=exact(drop_fraction), **kwargs))
    assert got.dtype == bool and got.shape == shape
    want = reference.srigl(
      *(matrix(x, layer) for x in state), drop_fraction=drop_fraction, **kwargs
    )
    got = matrix(got, layer)
    np.testing.assert_array_equal(got, want.mask)
    # The invariants, said once more without the reference's words.
    fan_ins = got.sum(0)
    assert set(fan_ins) <= {0, budget // (fan_ins > 0).sum()}
    assert got.sum() <= budget
    assert (fan_ins > 0).sum() >= min(budget // layer.dense_fan_in + 1, layer.num_neurons)
    if gamma_sal == 0:
      assert fan_ins.all()

  check()


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_srigl_in_short_floats(dtype):
  @hypothesis.given(layer_states((6, 5)), drop_fractions)
  def check(state, drop_fraction):
    weights, grads, mask = state
    weights, grads = jnp.asarray(weights, dtype), jnp.asarray(grads, dtype)
    kwargs = {"budget": 14, "gamma_sal": 0.5, "salient_base": "constant_fan_in"}
    got = srigl_update(weights, grads, mask, drop_fraction=exact(drop_fraction), **kwargs)
    single = [np.asarray(x, np.float32) for x in (weights, grads)]
    want = reference.srigl(*single, mask, drop_fraction=drop_fraction, **kwargs)
    np.testing.assert_array_equal(got, want.mask)

  check()


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 2, 6), (3, 3, 1, 8)])
def test_rigl_agrees_with_the_reference(shape):
  layer = make_layer("kernel", shape)

  @hypothesis.given(layer_states(shape), drop_fractions)
  def check(state, drop_fraction):
    got = matrix(rigl_update(*state, drop_fraction=exact(drop_fraction)), layer)
    want = reference.rigl(*(matrix(x, layer) for x in state), drop_fraction=drop_fraction)
    np.testing.assert_array_equal(got, want)
    assert got.sum() == state[2].sum()

  check()


# ---------------------------------------------------------------- by hand


def test_srigl_by_hand():
  # Four inputs (rows), three neurons a, b, c; budget 6, so two connections each; 6 * 0.5 = 3
  # weights to prune.
  weights = jnp.asarray([
    [5.0, 0.0, 0.0],
    [4.0, 0.1, 0.0],
    [0.0, 0.0, 0.4],
    [0.0, 0.2, 0.3],
  ])  # fmt: skip
  grads = jnp.asarray([
    [0.1, 0.2, 8.0],
    [0.1, 0.3, 0.6],
    [9.0, 0.4, 7.0],
    [0.1, 0.5, 0.0],
  ])  # fmt: skip
  # Largest three magnitudes: a0 a1 c2; gradients: a2 c0 c2. Salient: three in a, none in b, two
  # in c, and needed is max(1, trunc(0.5 * 2)) = 1. So b is ablated and the fan-in becomes 3.
  # a keeps a0 a1 and grows a2; c keeps c2 and grows c0 c1; c3 is pruned.
  expected = np.asarray([
    [1, 0, 1],
    [1, 0, 1],
    [1, 0, 1],
    [0, 0, 0],
  ], bool)  # fmt: skip
  got = sx.srigl_update(weights, grads, weights != 0, budget=6, drop_fraction=0.5, gamma_sal=0.5)
  np.testing.assert_array_equal(got, expected)


def test_rigl_by_hand():
  # Five active weights of which trunc(5 * 0.5) = 2 go: 0.1 and 0.2. The largest gradients among
  # what is not kept are 9, and 7 on one of the two just pruned; 8 sits on a kept weight.
  weights = jnp.asarray([[3.0, 0.1, 0.0], [0.2, -2.0, 1.0]])
  grads = jnp.asarray([[8.0, -7.0, 9.0], [0.5, 6.0, 5.0]])
  expected = [[True, True, True], [False, True, True]]
  got = sx.rigl_update(weights, grads, weights != 0, drop_fraction=0.5)
  np.testing.assert_array_equal(got, expected)


def update(weights, grads, mask=None, **kwargs):
  """An SRigL update of nested lists; drop fraction 0 and no ablation unless said otherwise."""
  weights, grads = np.float32(weights), np.float32(grads)
  mask = weights != 0 if mask is None else np.asarray(mask, bool)
  kwargs = {"drop_fraction": 0.0, "gamma_sal": 0.0, **kwargs}
  return np.asarray(srigl_update(weights, grads, mask, **kwargs)).astype(int).tolist()


def test_over_full_neuron_keeps_its_largest():
  """Row 1. Neuron b was ablated and comes back: the fan-in falls from 3 to 2."""
  weights = [[1, 0, -6], [-3, 0, 5], [2, 0, 4], [0, 0, 0]]
  grads = [[9, 1, 9], [9, 4, 9], [9, 2, 9], [9, 3, 9]]
  assert update(weights, grads, budget=6) == [[0, 0, 1], [1, 1, 1], [1, 0, 0], [0, 1, 0]]


def test_exact_zeros_are_not_kept():
  """Row 2. Ablation takes four weights where none was to go; gradients decide, not zeros."""
  weights = [[9, 1, 8], [7, 2, 6], [0, 0, 0], [0, 0, 0], [0, 0, 0]]
  grads = [[0, 0, 0], [0, 0, 0], [0, 0, 1], [2, 0, 2], [1, 0, 3]]
  # a and c need one connection more each (fan-in 3): the largest gradient, not the lowest index.
  # Salient with nothing to prune: the six weights, so only a threshold of 3 ablates; b has 2.
  mask = np.float32(weights) != 0
  mask[2] = [True, False, True]  # two active weights that are exactly zero
  # Six of eight active weights are non-zero: two are pruned, and the two largest gradients are
  # salient, 3 and the first of the 2s. Salient: a 3, b 2, c 3.
  got = update(weights, grads, mask, budget=8, gamma_sal=3)
  assert got == [[1, 0, 1], [1, 0, 1], [0, 0, 0], [1, 0, 1], [1, 0, 1]]


def test_active_zeros_count_as_pruned():
  """SPEC of the authors' code: fewer non-zero weights than are to be kept raise the pruned."""
  weights = [[5.0, 0.0], [0.0, 4.0], [0.0, 0.0]]
  mask = [[1, 0], [1, 1], [0, 1]]
  # Drop fraction 0, yet the two active zeros go, and a2 and b0 grow.
  assert update(weights, [[1, 9], [1, 1], [9, 1]], mask, budget=4) == [[1, 1], [0, 1], [1, 0]]


def test_salient_gradients_may_sit_on_active_weights():
  """Row 3. The large gradient of neuron b is on its active weight, and saves it nonetheless."""
  weights = [[9, 0, 7], [8, 1, 6], [0, 2, 0]]
  grads = [[0, 0, 0], [0, 50, 0], [0, 0, 0]]
  # Six active, one pruned (b1, and b1's gradient is salient): salient a 2, b 2 (b2, b1), c 2.
  assert update(weights, grads, budget=6, drop_fraction=0.17, gamma_sal=2) == [
    [1, 0, 1], [1, 1, 1], [0, 1, 0]
  ]  # fmt: skip


def test_floor_on_the_neurons_that_stay():
  """Row 4. A threshold that nobody reaches falls to the count at rank budget // inputs."""
  weights = [[9, 5, 1], [8, 0, 0], [7, 0, 0]]
  # Nothing pruned; salient 3, 1, 1; threshold 3 would leave one neuron, but 5 // 3 = 1: the
  # second largest count, 1, decides, and it is shared by two. Fan-in 5 // 3 = 1.
  got = update(weights, np.zeros((3, 3)), budget=5, gamma_sal=3)
  assert got == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
  # Counts 3, 2, 0: two stay, with a fan-in of 2 (a neuron of the largest count is not spared
  # from trimming).
  got = update([[9, 5, 0], [8, 4, 0], [7, 0, 0]], np.zeros((3, 3)), budget=5, gamma_sal=3)
  assert got == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


def test_threshold_of_zero_ablates_nobody():
  """Row 4. If the count at that rank is 0, even neurons without a salient weight stay."""
  weights = [[9, 0, 0], [8, 0, 0], [7, 0, 0]]
  got = update(weights, [[1, 3, 1], [1, 2, 4], [1, 1, 1]], budget=3, gamma_sal=2)
  assert got == [[1, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_threshold_is_relative_to_the_fan_in_without_ablation():
  """Row 5. Fan-in 2 without ablation; 4 now, since a neuron is ablated. Threshold 1, not 2."""
  weights = np.zeros((8, 2), np.float32)
  weights[:4, 0] = [9, 8, 7, 6]
  grads = np.zeros((8, 2), np.float32)
  grads[5, 1] = 5.0
  # Pruned: trunc(4 * 0.3) = 1 weight; salient a 3, b 1 (its gradient); needed trunc(0.6 * 2) = 1.
  got = np.asarray(update(weights, grads, budget=4, drop_fraction=0.3, gamma_sal=0.6))
  assert got.sum(0).tolist() == [2, 2]


def test_ablated_neuron_comes_back_by_its_gradients():
  weights = np.zeros((6, 3), np.float32)
  weights[:3, :2] = [[9, 8], [7, 6], [1, 2]]
  grads = np.full((6, 3), 0.01, np.float32)
  kwargs = {"budget": 6, "drop_fraction": 0.34, "gamma_sal": 0.95}
  assert np.sum(update(weights, grads, **kwargs), axis=0).tolist() == [3, 3, 0]
  grads[3:5, 2] = [4, 5]  # both of the two weights that grow
  revived = np.asarray(update(weights, grads, **kwargs))
  assert revived.sum(0).tolist() == [2, 2, 2]
  assert revived[3:5, 2].all()


def test_pruned_weight_can_grow_again_at_once():
  weights = [[9, 0], [1, 8], [0, 2]]
  grads = [[0, 1], [5, 0], [1, 3]]
  assert update(weights, grads, budget=4, drop_fraction=0.5) == [[1, 0], [1, 1], [0, 1]]


def test_ties_go_to_the_lower_index():
  ones = np.ones((4, 2), np.float32)
  # Eight equal magnitudes, two kept: row by row, a0 and b0. Then equal gradients: a1 and b1.
  assert update(ones, ones, budget=4, drop_fraction=0.75) == [[1, 1], [1, 1], [0, 0], [0, 0]]
  zeros = np.zeros((4, 2))
  assert update([[0, 0], [0, 0], [1, 1], [0, 0]], zeros, budget=4) == [
    [1, 1], [0, 0], [1, 1], [0, 0]
  ]  # fmt: skip


def test_weights_off_the_mask_count_as_zero():
  weights = [[9, 99], [99, 8]]
  assert update(weights, [[1, 1], [1, 1]], [[1, 0], [0, 1]], budget=2) == [[1, 0], [0, 1]]


@pytest.mark.parametrize(
  ("gamma_sal", "base", "threshold"),
  [
    (0, "constant_fan_in", 0),
    (0.0, "dense_fan_in", 0),
    (0.3, "constant_fan_in", 3),
    (0.3, "dense_fan_in", 30),
    (0.29, "dense_fan_in", 28),  # 28.999999999999996
    (0.57, "dense_fan_in", 56),
    (0.01, "constant_fan_in", 1),
    (0.99, "constant_fan_in", 9),
    (1, "constant_fan_in", 1),
    (1.0, "dense_fan_in", 1),
    (1.5, "constant_fan_in", 2),  # fewer than 1.5 salient weights: ablated with one
    (7, "dense_fan_in", 7),
    (np.float64(0.3), "constant_fan_in", 3),
  ],
)
def test_salient_threshold(gamma_sal, base, threshold):
  got = salient_threshold(gamma_sal, constant_fan_in=10, dense_fan_in=100, salient_base=base)
  assert got == threshold


# ---------------------------------------------------------------- drop fractions and tracing


def random_layer(shape, density=0.5, seed=0):
  rng = np.random.default_rng(seed)
  weights, grads = rng.normal(size=(2, *shape)).astype(np.float32)
  return weights, grads, rng.random(shape) < density


@pytest.mark.parametrize("rigl", [sx.rigl_update, rigl_update])
@pytest.mark.parametrize(
  ("fraction", "num_active", "num_pruned"),
  [
    (0.29, 100, 28),  # 28.999999999999996; in float32 29
    (0.35, 20, 7),  # the float32 0.35 is a little less
    (0.3, 10, 3),  # the double 0.3 is a little less, but the double product is 3
  ],
)
def test_python_fractions_are_counted_in_double(rigl, fraction, num_active, num_pruned):
  mask = (np.arange(240) < num_active).reshape(12, 20)
  weights, grads = mask.astype(np.float32), (~mask).astype(np.float32)  # all growth is elsewhere
  drop_fraction = fraction if rigl is sx.rigl_update else exact(fraction)
  new_mask = rigl(weights, grads, mask, drop_fraction=drop_fraction)
  assert (mask & ~new_mask).sum() == num_pruned


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.3, 0.35, 1.0])
def test_traced_fraction_is_counted_at_its_own_precision(fraction):
  state = random_layer((12, 20))
  single = jnp.float32(fraction)
  for step, kwargs in [
    (srigl_update, {"budget": 100, "gamma_sal": 0.3}),
    (rigl_update, {}),
  ]:
    traced = step(*state, drop_fraction=single, **kwargs)
    as_python = step(*state, drop_fraction=exact(float(single)), **kwargs)
    np.testing.assert_array_equal(traced, as_python)


def test_jit_and_a_traced_fraction_change_nothing():
  state = random_layer((12, 20))
  plain = sx.srigl_update(*state, budget=100, gamma_sal=0.3, drop_fraction=0.25)
  jitted = srigl_update(*state, budget=100, gamma_sal=0.3, drop_fraction=jnp.float32(0.25))
  np.testing.assert_array_equal(plain, jitted)


def test_another_drop_fraction_does_not_recompile():
  traces = []

  @functools.partial(jax.jit, static_argnames="name")
  def step(name, state, fraction):
    traces.append(name)
    if name == "srigl":
      return sx.srigl_update(*state, budget=13, drop_fraction=fraction)
    return sx.rigl_update(*state, drop_fraction=fraction)

  state = random_layer((5, 6))
  for name in ("srigl", "rigl"):
    masks = [step(name, state, jnp.float32(f)) for f in (0.0, 0.3, 0.7)]
    assert not np.array_equal(masks[0], masks[2])
  assert traces == ["srigl", "rigl"]


def test_vmap():
  states = [random_layer((6, 5), seed=i) for i in range(3)]
  stacked = [np.stack(x) for x in zip(*states, strict=True)]
  kwargs = {"budget": 14, "drop_fraction": exact(0.4), "gamma_sal": 0.5}
  got = jit(jax.vmap(lambda *state: sx.srigl_update(*state, **kwargs)))(*stacked)
  np.testing.assert_array_equal(got, [srigl_update(*state, **kwargs) for state in states])


# ---------------------------------------------------------------- layouts


def attention(path, shape):
  """Axes of a projection, whatever path the update passes."""
  del path
  return Axes((1, 2)) if shape == (6, 2, 3) else Axes((2,))


def torch(path, shape):
  del path
  return Axes((0,), tuple(range(2, len(shape))))


@pytest.mark.parametrize(
  ("shape", "axes", "as_matrix"),
  [
    ((6, 2, 3), attention, lambda x: x.reshape(6, 6)),  # query: (in, heads, head size)
    ((2, 3, 6), attention, lambda x: x.reshape(6, 6)),  # out: (heads, head size, out)
    ((6, 6), torch, lambda x: x.T),
    ((6, 3, 1, 2), torch, lambda x: x.reshape(6, 6).T),
    ((1, 2, 3, 6), sx.flax_axes, lambda x: x.reshape(6, 6)),
  ],
)
def test_layouts_are_views_of_one_matrix(shape, axes, as_matrix):
  state = random_layer(shape)
  matrices = [as_matrix(x) for x in state]
  kwargs = {"budget": 15, "gamma_sal": 0.9, "drop_fraction": exact(0.4)}
  got = np.asarray(srigl_update(*state, axes=axes, **kwargs))
  assert got.shape == shape
  np.testing.assert_array_equal(as_matrix(got), srigl_update(*matrices, **kwargs))
  # Unstructured: with distinct scores the layout makes no difference.
  got = np.asarray(rigl_update(*state, axes=axes, drop_fraction=exact(0.4)))
  want = rigl_update(*matrices, drop_fraction=exact(0.4))
  np.testing.assert_array_equal(as_matrix(got), want)


def test_axes_decide_the_ties_of_rigl():
  """Two of four equal weights stay: the first in the order of the matrix of inputs x neurons."""
  weights = np.float32([[1, 1], [1, 1], [0, 0]])
  grads = 1 - weights
  ties = lambda **kwargs: np.asarray(
    rigl_update(weights, grads, weights > 0, drop_fraction=0.5, **kwargs)
  ).tolist()
  assert ties() == [[True, True], [False, False], [True, True]]
  assert ties(axes=torch) == [[True, False], [True, False], [True, True]]


# ---------------------------------------------------------------- SET


def test_set_keeps_the_largest_and_grows_at_random():
  weights, _, mask = random_layer((12, 20))
  keys = jax.random.split(jax.random.key(0), 40)
  new_masks = np.stack([set_update(weights, key, mask, drop_fraction=0.5) for key in keys])
  num_active = mask.sum()
  assert (new_masks.sum(axis=(1, 2)) == num_active).all()
  order = np.argsort(-np.abs(np.where(mask, weights, 0)).ravel(), kind="stable")
  kept = np.zeros(mask.size, bool)
  kept[order[: num_active - num_active // 2]] = True
  kept = kept.reshape(mask.shape)
  assert new_masks[:, kept].all()
  # Elsewhere every position grows about equally often, those just pruned included.
  frequency = new_masks[:, ~kept].mean(0)
  expected = (num_active // 2) / (~kept).sum()
  assert abs(frequency.mean() - expected) < 1e-6
  assert frequency.min() > 0 and frequency.max() < 1
  assert frequency.std() < 1.3 * np.sqrt(expected * (1 - expected) / len(keys))
  again = set_update(weights, keys[0], mask, drop_fraction=0.5)
  np.testing.assert_array_equal(again, new_masks[0])


def test_set_ranks_magnitudes_whatever_their_sign():
  weights = jnp.asarray([[-9.0, 1.0], [-8.0, 2.0]])
  for seed in range(5):
    new_mask = set_update(weights, jax.random.key(seed), weights != 0, drop_fraction=0.5)
    assert new_mask[0, 0] and new_mask[1, 0]


# ---------------------------------------------------------------- errors

W, MASK = jnp.ones((4, 3)), jnp.ones((4, 3), bool)
OK = {"budget": 6, "drop_fraction": 0.3}


@pytest.mark.parametrize(
  ("args", "kwargs", "message"),
  [
    ((W, W[:3], MASK), {}, r"shapes \(4, 3\), \(3, 3\) and \(4, 3\): .* equal"),
    ((W[0], W[0], MASK[0]), {}, "at least two axes"),
    ((W, W, W), {}, r"mask has dtype float32; it must be bool"),
    ((W, W, MASK), {"budget": 2}, r"budget is 2, .*needs 3 <= budget < 12"),
    ((W, W, MASK), {"budget": 12}, r"budget is 12, .*needs 3 <= budget < 12"),
    ((W, W, MASK), {"drop_fraction": -0.1}, r"drop_fraction is -0\.1; .*\[0, 1\]"),
    ((W, W, MASK), {"drop_fraction": 1.5}, r"drop_fraction is 1\.5"),
    ((W, W, MASK), {"drop_fraction": float("nan")}, "drop_fraction is nan"),
    ((W, W, MASK), {"gamma_sal": -1}, r"gamma_sal is -1; .*0 for no ablation"),
    ((W, W, MASK), {"gamma_sal": float("nan")}, "gamma_sal is nan"),
    ((W, W, MASK), {"gamma_sal": float("inf")}, "gamma_sal is inf"),
    ((W, W, MASK), {"gamma_sal": jnp.float32(0.3)}, "must be a Python number"),
    ((W, W, MASK), {"salient_base": "sparse"}, r"'sparse'; .*'constant_fan_in', 'dense_fan_in'"),
    ((W, W, MASK), {"axes": lambda *_: Axes((0, 1))}, "no input axis"),
  ],
)
def test_srigl_rejects(args, kwargs, message):
  with pytest.raises(ValueError, match=message):
    sx.srigl_update(*args, **{**OK, **kwargs})


@pytest.mark.parametrize("method", [sx.rigl_update, sx.set_update])
def test_others_reject(method):
  second = W if method is sx.rigl_update else jax.random.key(0)
  with pytest.raises(ValueError, match="drop_fraction is 2"):
    method(W, second, MASK, drop_fraction=2)
  with pytest.raises(ValueError, match="mask has dtype"):
    method(W, second, W, drop_fraction=0.3)
  with pytest.raises(ValueError, match="have shapes"):
    method(W[:3], second, MASK, drop_fraction=0.3)
