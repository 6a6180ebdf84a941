"""Learning rates by hand, optimizers against the formulas of PyTorch, methods on their schedule."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from configs import base
from experiments.optimizer import learning_rate, make_method, make_optimizer
from tests.experiments.tiny import quick_compiler

RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(6, 4, 3))


def optimizer_config(**changes):
  config = base.get_config().optimizer
  config.update(changes)
  return config


def method_config(**changes):
  config = base.get_config().method
  config.update(changes)
  return config


# ---- learning rate -----------------------------------------------------------------------------


def rates(steps, *, steps_per_epoch=4, total_steps=20, **changes):
  config = optimizer_config(learning_rate=0.8, **changes)
  schedule = learning_rate(config, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
  return [float(schedule(step)) for step in steps]


def test_constant():
  assert rates([0, 7, 20], schedule="constant") == pytest.approx([0.8, 0.8, 0.8])


def test_cosine_reaches_zero_at_the_end():
  half = 0.4 * (1 + math.cos(math.pi / 4))
  expected = [0.8, half, 0.4, 0.0]
  assert rates([0, 5, 10, 20], schedule="cosine") == pytest.approx(expected, abs=1e-7)


def test_step_decays_at_once():
  found = rates([0, 7, 8, 15, 16, 19], schedule="step", decay_epochs=2.0, decay_factor=0.1)
  assert found == pytest.approx([0.8, 0.8, 0.08, 0.08, 0.008, 0.008])


@pytest.mark.parametrize(
  "schedule, expected",
  [
    # A warm-up of 4 steps from 0; then the schedule from its own beginning.
    ("constant", {0: 0.0, 1: 0.2, 2: 0.4, 4: 0.8, 20: 0.8}),
    ("cosine", {0: 0.0, 3: 0.6, 4: 0.8, 12: 0.4, 20: 0.0}),
    ("step", {0: 0.0, 4: 0.8, 11: 0.8, 12: 0.4, 20: 0.2}),
  ],
)
def test_warmup(schedule, expected):
  found = rates(expected, schedule=schedule, warmup_epochs=1.0, decay_epochs=2.0, decay_factor=0.5)
  assert found == pytest.approx(list(expected.values()), abs=1e-7)


def test_epochs_that_are_no_whole_number_of_steps():
  """8 batches in an epoch, 3 to a step: 10 epochs are 26 steps, 3 of warm-up 8."""
  config = base.get_config().optimizer
  config.update({"warmup_epochs": 3.0, "learning_rate": 0.8, "schedule": "constant"})
  schedule = learning_rate(config, steps_per_epoch=8 / 3, total_steps=26)
  assert [float(schedule(step)) for step in (4, 7, 8)] == pytest.approx([0.4, 0.7, 0.8])


def test_warmup_longer_than_the_run():
  assert rates([0, 10, 20], warmup_epochs=10.0) == pytest.approx([0.0, 0.2, 0.4])


# ---- optimizers --------------------------------------------------------------------------------


def descend(config, *, schedule=None, start=START, grads=GRADS):
  """The parameters after each step."""
  tx = make_optimizer(config, schedule or (lambda step: config.learning_rate))
  params = jnp.asarray(start, jnp.float32)
  state, found = tx.init(params), []
  for g in grads:
    updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
    params = optax.apply_updates(params, updates)
    found.append(params)
  return np.array(found)


def torch_sgd(rate_fn, *, momentum, nesterov, weight_decay):
  """`torch.optim.SGD`, dampening 0."""
  p, buffer, found = START.copy(), np.zeros_like(START), []
  for t, g in enumerate(GRADS):
    g = g + weight_decay * p
    buffer = momentum * buffer + g
    p = p - rate_fn(t) * (g + momentum * buffer if nesterov else buffer)
    found.append(p)
  return np.array(found)


@pytest.mark.parametrize("momentum, nesterov", [(0.9, True), (0.9, False), (0.0, True)])
@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_sgd_is_pytorchs(momentum, nesterov, weight_decay):
  """Also while the learning rate changes: it scales the step, not the momentum."""
  settings = {"momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
  rate_fn = lambda step: 0.1 / (1 + step)
  found = descend(optimizer_config(name="sgd", **settings), schedule=rate_fn)
  np.testing.assert_allclose(found, torch_sgd(rate_fn, **settings), rtol=1e-5, atol=1e-6)


def torch_adam(*, l2, decoupled, rate=0.1):
  """`torch.optim.Adam` and `AdamW` with their default coefficients."""
  p, m, v, found = START.copy(), np.zeros_like(START), np.zeros_like(START), []
  for t, g in enumerate(GRADS, start=1):
    g = g + l2 * p
    p = p * (1 - rate * decoupled)
    m = 0.9 * m + 0.1 * g
    v = 0.999 * v + 0.001 * g**2
    p = p - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    found.append(p)
  return np.array(found)


def test_adam_has_l2_and_adamw_decoupled_decay():
  settings = {"learning_rate": 0.1, "weight_decay": 0.5}
  adam = descend(optimizer_config(name="adam", **settings))
  np.testing.assert_allclose(adam, torch_adam(l2=0.5, decoupled=0), rtol=1e-4, atol=1e-5)
  adamw = descend(optimizer_config(name="adamw", **settings))
  np.testing.assert_allclose(adamw, torch_adam(l2=0, decoupled=0.5), rtol=1e-4, atol=1e-5)


def test_lion_takes_signs():
  config = optimizer_config(name="lion", learning_rate=0.1, weight_decay=0.0)
  found = descend(config, grads=GRADS[:1])
  np.testing.assert_allclose(found[0], START - 0.1 * np.sign(GRADS[0]), rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "lion"])
def test_every_optimizer_descends_and_decays(name):
  """On the way down a parabola, and without gradient toward 0."""
  config = optimizer_config(name=name, learning_rate=0.02, weight_decay=0.1, momentum=0.5)
  tx = make_optimizer(config, optax.constant_schedule(0.02))
  params = jnp.full(3, 2.0)
  state = tx.init(params)
  for _ in range(50):
    updates, state = tx.update(params - 1, state, params)
    params = optax.apply_updates(params, updates)
  assert (jnp.abs(params - 1) < 0.8).all()
  still = descend(config, start=np.full((2, 2), 2.0), grads=np.zeros((3, 2, 2)))
  assert (still[-1] < 2.0).all()


def test_clipping_bounds_the_norm_before_momentum():
  config = optimizer_config(
    clip_norm=1.0, weight_decay=0.0, learning_rate=0.1, momentum=0.9, nesterov=False
  )
  grads = 100 * GRADS[:2]
  first, second = (g / np.linalg.norm(g) for g in grads)
  expected = START - 0.1 * first - 0.1 * (0.9 * first + second)
  np.testing.assert_allclose(descend(config, grads=grads)[1], expected, rtol=1e-5, atol=1e-6)


def test_clipping_sees_masked_gradients():
  """A huge gradient of an absent weight does not shorten the step of the others."""
  config = optimizer_config(clip_norm=1.0, weight_decay=0.0, learning_rate=1.0, momentum=0.0)
  inner = make_optimizer(config, optax.constant_schedule(1.0))
  tx = make_method(method_config(name="static", sparsity=0.5), inner, total_steps=10, seed=0)
  params = {"kernel": jnp.ones((4, 4))}
  state = tx.init(params)
  mask = sx.get_masks(state)["kernel"]
  grads = {"kernel": jnp.where(mask, 0.1, 1e6)}  # norm sqrt(8) / 10 < 1 where there are weights
  updates, _ = tx.update(grads, state, sx.apply_masks(params, {"kernel": mask}))
  np.testing.assert_allclose(updates["kernel"], jnp.where(mask, -0.1, 0.0), rtol=1e-6)


# ---- methods -----------------------------------------------------------------------------------

PARAMS = {
  "hidden/0/kernel": jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32),
  "head/kernel": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32),
  "head/bias": jnp.zeros(4),
}


def mask_history(num_steps=10, *, rate=0.1, seed=0, gradient_seed=1, **changes):
  """The masks at the start and after each step under random gradients."""
  defaults = {"sparsity": 0.5, "update_every_steps": 2, "drop_fraction": 0.9}
  config = method_config(**defaults | changes)
  tx = make_method(config, optax.sgd(rate), total_steps=num_steps, seed=seed)
  state = tx.init(PARAMS)
  params = sx.apply_masks(PARAMS, sx.get_masks(state))
  history = [sx.get_masks(state)]
  update = jax.jit(tx.update)
  rng = np.random.default_rng(gradient_seed)
  for _ in range(num_steps):
    grads = {path: jnp.asarray(rng.normal(size=p.shape), p.dtype) for path, p in params.items()}
    with quick_compiler():
      updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    history.append(sx.get_masks(state))
  return [{path: np.asarray(mask) for path, mask in masks.items()} for masks in history]


def changes(history):
  """After which steps the hidden layer's mask was another."""
  hidden = [masks["hidden/0/kernel"] for masks in history]
  return [i for i in range(1, len(hidden)) if (hidden[i] != hidden[i - 1]).any()]


@pytest.mark.parametrize("name", ["set", "rigl", "srigl"])
def test_topology_changes_on_schedule(name):
  assert changes(mask_history(name=name)) == [2, 4, 6]  # 8 is not before 0.75 × 10
  assert changes(mask_history(name=name, update_until_fraction=0.5)) == [2, 4]
  assert changes(mask_history(name=name, update_every_steps=3)) == [3, 6]


@pytest.mark.parametrize("name", ["static", "set", "rigl", "srigl"])
def test_the_seed_draws_the_first_masks(name):
  one, two = (mask_history(num_steps=0, name=name, seed=seed)[0] for seed in (0, 1))
  assert (one["hidden/0/kernel"] != two["hidden/0/kernel"]).any()


@pytest.mark.parametrize("name", ["set", "rigl", "srigl"])
def test_all_but_set_grow_by_gradient(name):
  """With weights that stand still, another gradient grows other connections, or it does not."""
  one, two = (
    mask_history(num_steps=4, rate=0.0, name=name, gradient_seed=seed)[-1]["hidden/0/kernel"]
    for seed in (1, 2)
  )
  assert (one != two).any() == (name != "set")


def test_static_never_changes():
  assert changes(mask_history(name="static")) == []


def fan_ins(mask):
  return set(mask.sum(0).tolist())


def test_structures():
  unstructured = mask_history(num_steps=1, name="static")[0]["hidden/0/kernel"]
  assert len(fan_ins(unstructured)) > 1
  structured = mask_history(num_steps=1, name="static", structure="constant_fan_in")[0]
  assert len(fan_ins(structured["hidden/0/kernel"])) == 1
  assert all(len(fan_ins(m)) == 1 for m in mask_history(name="srigl", ablation=False)[-1].values())


@pytest.mark.parametrize("name", ["static", "srigl"])
def test_fan_in_in_place_of_sparsity(name):
  structure = {"structure": "constant_fan_in"} if name == "static" else {"ablation": False}
  for masks in mask_history(name=name, fan_in=3, **structure):
    assert fan_ins(masks["hidden/0/kernel"]) == fan_ins(masks["head/kernel"]) == {3}


def test_ablation_spares_the_layers_named():
  drastic = {"name": "srigl", "gamma_sal": 0.9}
  assert 0 in fan_ins(mask_history(**drastic)[-1]["hidden/0/kernel"])
  assert 0 not in fan_ins(mask_history(**drastic)[-1]["head/kernel"])
  spared = mask_history(**drastic, never_ablate=("hidden", "head"))[-1]
  assert 0 not in fan_ins(spared["hidden/0/kernel"])
  off = mask_history(**drastic, ablation=False)[-1]
  assert 0 not in fan_ins(off["hidden/0/kernel"])


def test_dense_layers_have_no_mask():
  assert mask_history(num_steps=1, dense=("head",))[0].keys() == {"hidden/0/kernel"}


def test_distribution():
  uniform = mask_history(num_steps=1, name="rigl", distribution="uniform")[0]
  erk = mask_history(num_steps=1, name="rigl", distribution="erk")[0]
  assert [m.mean() for m in uniform.values()] == [0.5, 0.5]
  assert erk["head/kernel"].mean() > 0.5 > erk["hidden/0/kernel"].mean()


def test_gradient_accumulation_averages_the_growth_score():
  """Another score, another topology; SET takes no gradients and has no such setting."""
  one = mask_history(name="rigl")[-1]["hidden/0/kernel"]
  two = mask_history(name="rigl", grad_accumulation_steps=2)[-1]["hidden/0/kernel"]
  assert (one != two).any()


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_fan_in_needs_a_structured_method(name):
  with pytest.raises(ValueError, match=rf"config\.method\.fan_in is 3, but {name} is unstruct"):
    make_method(method_config(name=name, fan_in=3), optax.sgd(0.1), total_steps=10, seed=0)


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: rates([0], schedule="cosin"), r"config\.optimizer\.schedule is 'cosin'.*'cosine'\?"),
    (
      lambda: make_optimizer(optimizer_config(name="sdg"), optax.constant_schedule(1.0)),
      r"config\.optimizer\.name is 'sdg'; it must be one of sgd, adam, .*'sgd'\?",
    ),
    (
      lambda: make_method(method_config(name="srgil"), optax.sgd(1.0), total_steps=1, seed=0),
      r"config\.method\.name is 'srgil'; it must be one of dense, static, .*'srigl'\?",
    ),
  ],
)
def test_unknown_names(build, message):
  with pytest.raises(ValueError, match=message):
    build()
