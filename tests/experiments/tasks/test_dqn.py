"""The replay buffer and targets by hand, and deep Q-learning in the one training loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import dqn_minatar
from experiments.data.environments import Step, load_environment
from experiments.processes.signals import Interrupted
from experiments.tasks import acting, replay
from experiments.tasks.dqn import bellman_targets, dqn, dqn_loss
from experiments.training.loop import train
from experiments.workdir.metrics import read_metrics
from tests.experiments.tasks import corridor
from tests.experiments.tasks.test_ppo import needs_gymnax
from tests.experiments.tiny import (
  assert_same,
  devices,
  interrupted_at,
  quick_compiler,
  read_checkpoint,
)


def tiny_config(**changes):
  """Eight steps: two environments, a buffer of 24 that is full after four of them."""
  config = dqn_minatar.get_config("srigl-quick")
  config.data.name = f"{corridor.__name__}:Corridor"
  config.data.kwargs.test_episodes = 3
  config.data.batch_size = 6
  config.task.kwargs.update(
    {"num_envs": 2, "capacity": 24, "warm_up": 16, "replay_dtype": "uint8", "epsilon_steps": 4}
  )
  config.task.kwargs.target_every_steps = 3
  config.model.kwargs = {"hidden": (8,), "channels": 0}
  config.method.sparsity = 0.5
  config.method.update_every_steps = 2
  config.train.total_epochs = 2.0
  config.train.eval_every_epochs = 2.0
  config.train.checkpoint_every_epochs = 0.5
  config.train.eval_batch_size = 3
  config.train.log_every_steps = 4
  config.update_from_flattened_dict(changes)
  return config


def transition(number):
  """A step of two environments that can be told apart."""
  numbers = jnp.array([number, number + 0.5])
  observation = jnp.tile(numbers[:, None], (1, corridor.LENGTH))
  done = jnp.array([False, True])
  return Step(observation, {}, numbers, done, jnp.zeros(2, bool), observation + 100)


def test_a_buffer_keeps_the_last_transitions():
  env = load_environment(f"{corridor.__name__}:Corridor", num_train=4)
  buffer = replay.empty(env, 4, jnp.float32)
  drawn = jax.jit(replay.draw, static_argnums=2)
  add = jax.jit(replay.add)
  for number in range(7):
    step = transition(float(number))
    buffer = add(buffer, step.observation, jnp.array([number, number]), step)
    found = set(np.asarray(drawn(buffer, jax.random.key(number), 64)["reward"]).tolist())
    last = [float(n) for n in range(max(0, number - 1), number + 1)]
    assert found == {*last, *(n + 0.5 for n in last)}, number
    assert number == 0 or 4 <= buffer["added"] < 8
  found = drawn(buffer, jax.random.key(0), 16)
  np.testing.assert_array_equal(found["observation"][:, 0], found["reward"])
  np.testing.assert_array_equal(found["final"][:, 0], found["reward"] + 100)
  np.testing.assert_array_equal(found["terminated"], found["reward"] % 1 > 0)


def test_targets_by_hand():
  """The present network chooses the action, the target network says what it is worth."""
  found = bellman_targets(
    jnp.array([1.0, 1.0]),
    jnp.array([False, True]),
    jnp.array([[0.0, 5.0], [0.0, 5.0]]),
    jnp.array([[9.0, 2.0], [9.0, 2.0]]),
    discount=0.5,
  )
  np.testing.assert_allclose(found, [2.0, 1.0])


def test_the_loss_by_hand():
  targets = {"action": jnp.array([1, 0]), "value": jnp.array([0.5, 3.0])}
  loss, sums = dqn_loss(jnp.array([[7.0, 1.0], [0.0, 7.0]]), targets)
  assert loss == pytest.approx((0.125 + 2.5) / 2)
  assert sums["value"] == 1 and sums["squared_error"] == pytest.approx(9.25)


@pytest.mark.parametrize(
  "kwargs, match",
  [
    ({"capacity": 10, "warm_up": 8}, "multiples of num_envs, 4"),
    ({"warm_up": 10**6}, "warm_up of dqn is 1000000; it must be from 4 to 100000"),
    ({"replay_dtype": "int8"}, "float32 or uint8"),
    ({"epsilon_end": -1}, "epsilon_end of dqn is -1"),
    ({"label_smoothing": 0.5}, "has no labels"),
  ],
)
def test_arguments_are_checked(kwargs, match):
  with pytest.raises(ValueError, match=match):
    dqn(**kwargs)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("dqn")
  with devices(1), quick_compiler():
    return workdir, train(tiny_config(), workdir)


@pytest.mark.slow
def test_a_run_is_tested(finished):
  workdir, results = finished
  assert results["steps"] == 8 and results["score"]["name"] == "mean_return"
  assert {"value", "squared_error"} <= read_metrics(workdir)["train"][0].keys()
  assert acting.environment_steps(tiny_config().to_dict(), 8) == 16 + 8 * 2
  replayed = read_checkpoint(workdir)["['experience']['replay']['added']"]
  assert replayed == 24 + (16 + 16) % 24


@pytest.mark.slow
def test_a_run_resumes_bit_for_bit(finished, tmp_path):
  with devices(1), quick_compiler():
    with interrupted_at(2), pytest.raises(Interrupted):
      train(tiny_config(), tmp_path)
    train(tiny_config(), tmp_path)
  assert_same(read_checkpoint(tmp_path), read_checkpoint(finished[0]))


@pytest.mark.slow
def test_a_run_in_condensed_form(tmp_path):
  """The target network has the patterns that its values are of."""
  with devices(1), quick_compiler():
    assert train(tiny_config(**{"method.engine": "condensed"}), tmp_path)["steps"] == 8


@pytest.mark.slow
def test_a_buffer_that_cannot_hold_observations_is_refused(tmp_path):
  config = tiny_config(**{"data.name": f"{corridor.__name__}:halves"})
  with devices(1), pytest.raises(ValueError, match="cannot hold the observations"):
    train(config, tmp_path)


@pytest.mark.slow
@needs_gymnax
def test_quick_learns_breakout(tmp_path):
  """A random policy has about half a brick in an episode."""
  results = train(dqn_minatar.get_config("srigl-quick"), tmp_path)
  assert results["score"]["best"] > 4
