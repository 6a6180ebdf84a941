"""Learning rates by hand, optimizers against the formulas of PyTorch."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base
from experiments.optimizer import learning_rate, make_optimizer

RNG = np.random.default_rng(0)
START = RNG.normal(size=(4, 3))
GRADS = RNG.normal(size=(6, 4, 3))


def optimizer_config(**changes):
  config = base.get_config().optimizer
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


@pytest.mark.parametrize(
  "build, message",
  [
    (lambda: rates([0], schedule="cosin"), r"config\.optimizer\.schedule is 'cosin'.*'cosine'\?"),
    (
      lambda: make_optimizer(optimizer_config(name="sdg"), optax.constant_schedule(1.0)),
      r"config\.optimizer\.name is 'sdg'; it must be one of sgd, adam, .*'sgd'\?",
    ),
  ],
)
def test_unknown_names(build, message):
  with pytest.raises(ValueError, match=message):
    build()
