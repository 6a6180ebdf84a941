"""Training and evaluation steps against a softmax regression in double precision."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data
from experiments.processes.sharding import replicate, shard_batches
from experiments.tasks.image_classification import image_classification
from experiments.training.engines import TrainState, masked_engine
from experiments.training.steps import make_eval_fn, make_train_fn, steps_per_dispatch
from tests.experiments.tiny import devices

RATE = 0.5
DATA = data.load("synthetic", image_shape=(2, 3, 1), num_classes=3, num_train=24, num_test=11)


def linear(params, model_state, x, *, train, rngs=None):
  """Logits of a softmax regression; as statistics the means of a few things that it saw."""
  x = x.reshape(x.shape[0], -1)
  if train:
    drawn = jax.random.uniform(rngs)
    seen = {"mean": x.mean(), "square": (x**2).mean(), "drawn": drawn, "drawn_square": drawn**2}
    model_state = {name: seen[name] for name in model_state}
  return x @ params["kernel"], model_state


def init_state(seed=0, statistics=()):
  kernel = np.random.default_rng(seed).normal(size=(6, 3)).astype(np.float32)
  params = {"kernel": jnp.asarray(kernel)}
  zeros = {name: jnp.zeros(()) for name in statistics}
  return TrainState(jnp.zeros((), jnp.int32), params, zeros, optax.sgd(RATE).init(params))


def softmax(logits):
  exp = np.exp(logits - logits.max(-1, keepdims=True))
  return exp / exp.sum(-1, keepdims=True)


def reference_step(kernel, images, labels, label_smoothing):
  """One step of gradient descent: the new kernel, the loss before it, the number correct."""
  x = images.reshape(len(images), -1) / 255
  targets = np.eye(3)[labels] * (1 - label_smoothing) + label_smoothing / 3
  probabilities = softmax(x @ kernel)
  loss = -(targets * np.log(probabilities)).sum(-1).mean()
  grads = x.T @ (probabilities - targets) / len(x)
  return kernel - RATE * grads, loss, ((x @ kernel).argmax(-1) == labels).sum()


def pipeline_of(dataset, eval_batch_size=8):
  return data.make_input_pipeline(dataset, batch_size=8, eval_batch_size=eval_batch_size, seed=0)


def divided(batches, max_steps):
  return shard_batches([{"index": batch} for batch in batches], max_steps)


def train(
  num_devices,
  batches,
  *,
  max_steps,
  state=None,
  dataset=DATA,
  seed=0,
  smoothing=0.0,
  with_norms=True,
):
  """Trains over the batches, `max_steps` per call; the state and the metrics of each call."""
  with devices(num_devices):
    pipeline = pipeline_of(dataset)
    train_fn = make_train_fn(
      masked_engine(linear, optax.with_extra_args_support(optax.sgd(RATE))),
      pipeline,
      image_classification(label_smoothing=smoothing),
      seed=seed,
      max_steps=max_steps,
    )
    state = replicate(init_state() if state is None else state)
    resident = replicate(pipeline.device_data)
    metrics = []
    for start in range(0, len(batches), max_steps):
      some = batches[start : start + max_steps]
      parts, num_steps = divided(some, max_steps), len(some)
      state, new, _ = train_fn(state, resident, parts, num_steps, with_norms=with_norms)
      metrics.append(jax.device_get(new))
    return jax.device_get(state), metrics


# ---- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("num_devices", [1, 2, 4])
@pytest.mark.parametrize("max_steps", [1, 2, 5])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_steps_equal_the_reference(num_devices, max_steps, smoothing):
  batches = data.batch_indices(0, 5, 8, 24, seed=3)
  state, metrics = train(num_devices, batches, max_steps=max_steps, smoothing=smoothing)

  kernel = np.asarray(init_state().params["kernel"], np.float64)
  losses, correct = [], []
  for batch in batches:
    images, labels = DATA.train_images[batch], DATA.train_labels[batch]
    kernel, loss, right = reference_step(kernel, images, labels, smoothing)
    losses.append(loss)
    correct.append(right)
  np.testing.assert_allclose(state.params["kernel"], kernel, rtol=1e-5, atol=1e-6)
  assert state.step == 5
  assert sum(m.examples for m in metrics) == 5 * 8
  assert sum(m.sums["accuracy"] for m in metrics) == sum(correct)
  np.testing.assert_allclose(sum(m.loss for m in metrics), 8 * sum(losses), rtol=1e-5)
  for i, m in enumerate(metrics):  # each call reports on its own steps
    expected = losses[i * max_steps : (i + 1) * max_steps]
    np.testing.assert_allclose(m.loss, 8 * sum(expected), rtol=1e-5)


@pytest.mark.parametrize("max_steps", [1, 3])
def test_norms_are_those_of_the_last_step_if_asked_for(max_steps):
  batches = data.batch_indices(0, 3, 8, 24, seed=3)
  kernel = np.asarray(init_state().params["kernel"], np.float64)
  for batch in batches:
    before = kernel
    kernel, _, _ = reference_step(kernel, DATA.train_images[batch], DATA.train_labels[batch], 0)
  update = np.linalg.norm(kernel - before)
  expected = {
    "grad_norm": update / RATE,
    "param_norm": np.linalg.norm(kernel),
    "update_norm": update,
  }
  for num_devices in (1, 2):
    _, metrics = train(num_devices, batches, max_steps=max_steps)
    assert metrics[-1].norms == pytest.approx(expected, rel=1e-5)
  _, metrics = train(1, batches, max_steps=max_steps, with_norms=False)
  assert np.isnan(list(metrics[-1].norms.values())).all()


def test_a_shorter_last_call_uses_the_same_program():
  with devices(2):
    calls = []

    def counted(*arguments, **kwargs):
      calls.append(kwargs)
      return linear(*arguments, **kwargs)

    tx = optax.with_extra_args_support(optax.sgd(RATE))
    pipeline = pipeline_of(DATA)
    train_fn = make_train_fn(
      masked_engine(counted, tx), pipeline, image_classification(), seed=0, max_steps=4
    )
    state, resident = replicate((init_state(), pipeline.device_data))
    batches = data.batch_indices(0, 7, 8, 24, seed=0)
    state, _, _ = train_fn(state, resident, divided(batches[:4], 4), 4)
    traced = len(calls)
    state, metrics, _ = train_fn(state, resident, divided(batches[4:], 4), 3)
    assert len(calls) == traced
    assert (int(state.step), float(metrics.examples)) == (7, 24.0)


@pytest.mark.parametrize("max_steps", [1, 4])
def test_the_first_step_without_a_finite_loss_is_named(max_steps):
  labels = DATA.train_labels.copy()
  broken = dataclasses.replace(
    DATA,
    train_labels=labels,
    # Example 5 is not a number.
    augment_fn=lambda key, images, batch: jnp.where(
      (batch == 5)[:, None, None, None], jnp.nan, images[batch] / 255.0
    ),
  )
  order = np.array([[0, 1], [2, 3], [4, 5], [6, 7]], np.int32)
  _, metrics = train(1, order, max_steps=max_steps, dataset=broken)
  assert [int(m.bad_step) for m in metrics] == ([-1, -1, 3, 4] if max_steps == 1 else [3])
  _, metrics = train(1, order[[0, 1, 3]], max_steps=max_steps, dataset=broken)
  assert {int(m.bad_step) for m in metrics} == {-1}


NOISY = dataclasses.replace(
  DATA,
  augment_fn=lambda key, images, batch: jnp.broadcast_to(
    jax.random.uniform(key), (batch.shape[0], *images.shape[1:])
  ),
)
"""Images that are a random number each."""


def draws(num_devices, batches, *, seed=0, start=0):
  """What augmentation and dropout drew in each step: mean, mean square over the devices."""
  names = ("mean", "square", "drawn", "drawn_square")
  state = init_state(statistics=names)._replace(step=jnp.asarray(start, jnp.int32))
  found = []
  for batch in batches:
    state, _ = train(num_devices, batch[None], max_steps=1, state=state, dataset=NOISY, seed=seed)
    found.append([float(state.model_state[name]) for name in names])
  return np.array(found)


def test_randomness_is_a_function_of_seed_and_step():
  batches = data.batch_indices(0, 4, 8, 24, seed=0)
  whole = draws(1, batches)
  np.testing.assert_array_equal(draws(1, batches[2:], start=2), whole[2:])
  augmented, dropped = whole[:, 0], whole[:, 2]
  assert len(np.unique(np.concatenate([augmented, dropped]))) == 8  # and no key is used twice
  assert not np.isin(draws(1, batches, seed=1), whole).any()


def test_examples_draw_the_same_on_any_number_of_devices():
  """Inputs depend on the place in the whole batch; only dropout is each device's own."""
  batches = data.batch_indices(0, 1, 8, 24, seed=0)
  found = np.array([draws(n, batches)[0] for n in (1, 2, 4, 8)])
  np.testing.assert_allclose(found[:, :2], found[:1, :2].repeat(4, 0), rtol=1e-6)
  mean, square, drawn, drawn_square = found.T
  assert (square - mean**2 > 1e-3).all()  # examples differ from each other
  assert (drawn_square - drawn**2 > 1e-5)[1:].all()  # and so do devices


@pytest.mark.parametrize("max_steps", [1, 4])
def test_steps_move_nothing_between_host_and_devices(max_steps):
  """All that a step needs lies where it belongs; nothing is copied or waited for."""
  with devices(2):
    pipeline = pipeline_of(DATA)
    tx = optax.with_extra_args_support(optax.sgd(RATE))
    train_fn = make_train_fn(
      masked_engine(linear, tx),
      pipeline,
      image_classification(label_smoothing=0.1),
      seed=0,
      max_steps=max_steps,
    )
    state, resident = replicate((init_state(), pipeline.device_data))
    batches = data.batch_indices(0, 3 * max_steps, 8, 24, seed=0).reshape(3, max_steps, 8)
    divided_batches = [divided(some, max_steps) for some in batches]
    with jax.transfer_guard("disallow"):
      with pytest.raises(Exception, match="transfer"):  # it does guard
        jnp.sin(np.ones(3))
      for some in divided_batches:
        before = state
        state, metrics, _ = train_fn(state, resident, some, max_steps)
        assert before.params["kernel"].is_deleted()  # its memory is used again
        jax.block_until_ready(metrics)
    assert int(state.step) == 3 * max_steps


def test_signals_of_processes_become_one():
  pipeline = pipeline_of(DATA)
  with devices(2):
    tx = optax.with_extra_args_support(optax.sgd(RATE))
    train_fn = make_train_fn(
      masked_engine(linear, tx), pipeline, image_classification(), seed=0, max_steps=1
    )
    state, resident = replicate((init_state(), pipeline.device_data))
    batches = divided(data.batch_indices(0, 1, 8, 24, seed=0), 1)
    for signal in (0, 15):
      state, _, found = train_fn(state, resident, batches, 1, signal)
      assert int(found) == signal


def test_batch_statistics_are_averaged_over_devices():
  batches = data.batch_indices(0, 1, 8, 24, seed=0)
  state, _ = train(4, batches, max_steps=1, state=init_state(statistics=["mean"]))
  expected = DATA.train_images[batches[0]].mean() / 255
  np.testing.assert_allclose(state.model_state["mean"], expected, rtol=1e-6)


def test_steps_per_dispatch_spares_convolutions_the_slow_loop():
  dense, conv = {"a": jnp.zeros((2, 2))}, {"a": jnp.zeros((3, 3, 2, 2))}
  assert steps_per_dispatch(0, dense) > 1
  assert steps_per_dispatch(0, conv) == 1  # on CPU
  assert steps_per_dispatch(7, dense) == steps_per_dispatch(7, conv) == 7


# ---- evaluation --------------------------------------------------------------------------------


@pytest.mark.parametrize("num_devices", [1, 2, 8])
@pytest.mark.parametrize("batch_size", [1, 3, 4, 11, 100])
def test_evaluation_counts_every_example_once(num_devices, batch_size):
  state = init_state()
  logits = DATA.test_images.reshape(11, -1) / 255 @ np.asarray(state.params["kernel"], np.float64)
  labels = DATA.test_labels.copy()
  labels[-1] = logits[-1].argmax()  # a correct one, which fills up the last batch
  with devices(num_devices):
    size = -(-batch_size // num_devices) * num_devices
    pipeline = pipeline_of(dataclasses.replace(DATA, test_labels=labels), size)
    metrics = make_eval_fn(linear, pipeline, image_classification())(
      *replicate((state, pipeline.device_data))
    )

  losses = -np.log(softmax(logits)[np.arange(11), labels])
  assert sum(m.examples for m in metrics) == 11
  assert sum(m.sums["accuracy"] for m in metrics) == (logits.argmax(-1) == labels).sum() > 0
  np.testing.assert_allclose(sum(m.loss for m in metrics), losses.sum(), rtol=1e-5)
  assert len(metrics) == -(-11 // size)
