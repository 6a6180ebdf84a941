"""Learning rates by hand, optimizers against the formulas of PyTorch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import base, imagenet_mobilenetv3, imagenet_resnet50, imagenet_vit_b16
from experiments.training.optimizer import learning_rate, make_optimizer

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


def test_milestones_count_from_the_start_of_the_run():
  settings = {"schedule": "step", "milestones_epochs": (2, 3), "decay_factor": 0.1}
  expected = {0: 0.8, 7: 0.8, 8: 0.08, 11: 0.08, 12: 0.008, 19: 0.008}
  assert rates(expected, **settings) == pytest.approx(list(expected.values()))
  found = rates(expected, **settings, warmup_epochs=1.0, warmup_init=0.4)
  assert found == pytest.approx([0.4, *list(expected.values())[1:]])


def test_a_cosine_of_its_own_length():
  found = rates([0, 8, 16, 20], schedule="cosine", cosine_epochs=4.0)
  assert found == pytest.approx([0.8, 0.4, 0.0, 0.0], abs=1e-7)


# ---- learning rate, once per epoch -------------------------------------------------------------


def authors_schedule(name, num_epochs, *, peak, warmup, milestones=(), every=0, factor=0, t_max=0):
  """Rates by epoch as the schedulers of SRigL's authors step through them."""
  found = []
  warm = np.linspace(1e-6, peak, warmup)
  rate = peak
  for epoch in range(num_epochs):
    if epoch < warmup:
      rate = warm[epoch]
    elif name == "milestones":
      rate *= factor if epoch in milestones else 1
    elif name == "step":
      rate *= factor if epoch and epoch % every == 0 else 1
    else:
      now, before = (1 + math.cos(math.pi * e / t_max) for e in (epoch, epoch - 1))
      rate *= now / before
    found.append(rate)
  return np.array(found)


@pytest.mark.parametrize(
  "config, batches_per_epoch, expected",
  [
    (
      imagenet_resnet50.get_config("1x"),
      2502,
      authors_schedule("milestones", 103, peak=0.2, warmup=5, milestones=(30, 70, 90), factor=0.1),
    ),
    (
      imagenet_resnet50.get_config("5x"),
      1251,
      authors_schedule(
        "milestones", 512, peak=1.6, warmup=25, milestones=(150, 350, 450), factor=0.1
      ),
    ),
    (
      imagenet_mobilenetv3.get_config("large"),
      2502,
      authors_schedule("step", 600, peak=0.064, warmup=0, every=2, factor=0.973),
    ),
    (
      imagenet_vit_b16.get_config(),
      2502,
      authors_schedule("cosine", 151, peak=3e-3, warmup=16, t_max=160),
    ),
  ],
  ids=["resnet50", "resnet50-5x", "mobilenetv3", "vit"],
)
def test_the_rates_of_imagenet_are_the_authors_by_epoch(config, batches_per_epoch, expected):
  optimizer = config.optimizer
  steps_per_epoch = batches_per_epoch / optimizer.accumulation_steps
  total_steps = int(config.train.total_epochs * steps_per_epoch)
  schedule = learning_rate(optimizer, steps_per_epoch=steps_per_epoch, total_steps=total_steps)
  epochs = np.arange(len(expected))
  first = np.ceil(epochs * steps_per_epoch).astype(int)
  last = np.ceil((epochs + 1) * steps_per_epoch).astype(int) - 1
  np.testing.assert_allclose([schedule(step) for step in first], expected, rtol=1e-5)
  np.testing.assert_allclose([schedule(step) for step in last], expected, rtol=1e-5)
  assert jax.jit(schedule)(last[-1]) == schedule(int(last[-1]))


def test_the_authors_cosine_without_warmup_starts_above_its_peak():
  found = rates([0, 4], schedule="cosine", once_per_epoch=True, cosine_epochs=250.0)
  cosine = [1 + math.cos(math.pi * e / 250) for e in (0, 1)]
  assert found == pytest.approx([0.8 * cosine[0] / cosine[1], 0.8])


def test_a_constant_rate_once_per_epoch():
  settings = {"schedule": "constant", "once_per_epoch": True, "warmup_epochs": 3.0}
  assert rates([0, 3, 4, 8, 19], **settings) == pytest.approx([0.0, 0.0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize("cosine_epochs", [1.0, 7.0])
def test_a_cosine_shorter_than_its_warmup_is_refused(cosine_epochs):
  settings = {"cosine_epochs": cosine_epochs, "warmup_epochs": 8.0, "once_per_epoch": True}
  with pytest.raises(ValueError, match=r"cosine_epochs is \d .*after a warm-up of 8 .*more than 7"):
    rates([0], schedule="cosine", **settings)


@pytest.mark.parametrize("name", ["learning_rate", "warmup_init"])
def test_a_negative_rate_is_refused(name):
  with pytest.raises(
    ValueError, match=rf"config\.optimizer\.{name} is -0\.1; it must be 0 or more"
  ):
    learning_rate(optimizer_config(**{name: -0.1}), steps_per_epoch=4, total_steps=20)


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


def torch_adam(*, l2, decoupled, rate=0.1, betas=(0.9, 0.999)):
  """`torch.optim.Adam` and `AdamW`."""
  b1, b2 = betas
  p, m, v, found = START.copy(), np.zeros_like(START), np.zeros_like(START), []
  for t, g in enumerate(GRADS, start=1):
    g = g + l2 * p
    p = p * (1 - rate * decoupled)
    m = b1 * m + (1 - b1) * g
    v = b2 * v + (1 - b2) * g**2
    p = p - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + 1e-8)
    found.append(p)
  return np.array(found)


def test_adam_has_l2_and_adamw_decoupled_decay():
  settings = {"learning_rate": 0.1, "weight_decay": 0.5}
  adam = descend(optimizer_config(name="adam", **settings))
  np.testing.assert_allclose(adam, torch_adam(l2=0.5, decoupled=0), rtol=1e-4, atol=1e-5)
  adamw = descend(optimizer_config(name="adamw", **settings))
  np.testing.assert_allclose(adamw, torch_adam(l2=0, decoupled=0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, decoupled", [("adam", 0.0), ("adamw", 0.5)])
def test_betas(name, decoupled):
  config = optimizer_config(name=name, learning_rate=0.1, weight_decay=decoupled, betas=(0.5, 0.9))
  expected = torch_adam(l2=0, decoupled=decoupled, betas=(0.5, 0.9))
  np.testing.assert_allclose(descend(config), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rmsprop_is_pytorchs(momentum):
  """The root, then eps; the rate, here a changing one, is not in the momentum."""
  decay, eps, l2 = 0.8, 0.05, 0.1
  rate_fn = lambda step: 0.1 / (1 + step)
  p, square, buffer, expected = START.copy(), np.zeros_like(START), np.zeros_like(START), []
  for t, g in enumerate(GRADS):
    g = g + l2 * p
    square = decay * square + (1 - decay) * g**2
    buffer = momentum * buffer + g / (np.sqrt(square) + eps)
    p = p - rate_fn(t) * buffer
    expected.append(p)
  settings = {"rms_decay": decay, "rms_eps": eps, "weight_decay": l2, "momentum": momentum}
  found = descend(optimizer_config(name="rmsprop", **settings), schedule=rate_fn)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("name", ["learning_rate", "warmup_init", "weight_decay"])
@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_rate_that_climbs_is_refused(name, value):
  config = base.get_config().optimizer
  config[name] = value
  with pytest.raises(ValueError, match=rf"config\.optimizer\.{name} is {value}; it must be"):
    learning_rate(config, steps_per_epoch=4.0, total_steps=8)
