"""Environments, advantages and losses by hand, and PPO in the one training loop."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import ppo_gymnax
from experiments.data.environments import load_environment
from experiments.models.agents import Judgement
from experiments.processes.signals import Interrupted
from experiments.tasks import acting, make_task
from experiments.tasks.ppo import advantages, ppo, ppo_loss
from experiments.training.loop import train
from experiments.workdir.metrics import read_metrics
from tests.experiments.tasks import corridor
from tests.experiments.tiny import (
  assert_same,
  devices,
  interrupted_at,
  quick_compiler,
  read_checkpoint,
)

OWN = f"{corridor.__name__}:"
has_gymnax = importlib.util.find_spec("gymnax") is not None
needs_gymnax = pytest.mark.skipif(not has_gymnax, reason="gymnax is not installed")


def load(function, **kwargs):
  return load_environment(OWN + function, num_train=8, **kwargs)


def tiny_config(**changes):
  """Rollouts of 4 × 8 steps, two passes of two batches: 4 training steps for each, 12 in all."""
  config = ppo_gymnax.get_config("srigl-quick")
  config.data.name = f"{OWN}Corridor"
  config.data.kwargs.test_episodes = 3
  config.data.batch_size = 16
  config.task.kwargs.update({"num_envs": 4, "num_steps": 8, "num_passes": 2})
  config.model.kwargs = {"hidden": (8,), "channels": 0}
  config.method.sparsity = 0.5
  config.method.update_every_steps = 2
  config.train.total_epochs = 6.0
  config.train.eval_every_epochs = 3.0
  config.train.checkpoint_every_epochs = 2.5  # within a rollout
  config.train.eval_batch_size = 2
  config.train.log_every_steps = 4
  config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("ppo")
  with devices(1), quick_compiler():
    return workdir, train(tiny_config(), workdir)


def test_an_own_environment_is_a_pair_of_functions():
  env = load("Corridor")
  assert (env.num_actions, env.max_episode_steps, env.observation.shape) == (2, 12, (5,))
  state = env.reset(jax.random.key(0))[1]
  assert {x.dtype for x in state.values()} == {jnp.dtype("int32"), jnp.dtype("uint32")}
  step = env.step(jax.random.key(1), state, jnp.asarray(1))
  assert (step.observation.argmax(), step.reward, bool(step.done)) == (3, 0, False)
  step = env.step(jax.random.key(1), step.state, jnp.asarray(1))
  assert (step.observation.argmax(), step.final.argmax()) == (2, 4)  # the next one has begun
  assert step.reward == 1 and step.terminated and not step.truncated


def test_an_environment_of_before_gymnax_1_ends_at_its_limit():
  env = load("OfBefore")
  state = env.reset(jax.random.key(0))[1]
  for i in range(corridor.LIMIT):
    step = env.step(jax.random.key(i), state, jnp.asarray(i % 2))
    state = step.state
  assert step.terminated and not step.truncated


@pytest.mark.parametrize(
  "name, match",
  [
    (OWN + "Lacking", "'final_observation' in info"),
    (OWN + "Continuous", r"Box\(-1, 1\).*discrete actions"),
    (OWN + "Unlimited", "max_episode_steps is 0"),
    (OWN + "Corridr", "has no attribute 'Corridr'"),
    ("nowhere:made", "PYTHONPATH"),
    (OWN + "State", "failed"),
    ("json:JSONDecoder", "no limit"),
  ],
)
def test_what_is_no_environment_is_refused(name, match):
  with pytest.raises(ValueError, match=match):
    load_environment(name, num_train=8)


def test_gymnax_is_asked_for_by_name(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "gymnax", None)
  with pytest.raises(ValueError, match="pip install gymnax"):
    load_environment("CartPole-v1", num_train=8)


@pytest.mark.slow
@needs_gymnax
def test_an_unknown_environment_of_gymnax_is_named():
  with pytest.raises(ValueError, match="Did you mean 'CartPole-v1'"):
    load_environment("CartPole-v2", num_train=8)


def test_arguments_are_checked():
  with pytest.raises(ValueError, match=r"config\.task\.kwargs\.discount of ppo is 1\.5"):
    ppo(discount=1.5)
  with pytest.raises(ValueError, match=r"label_smoothing is 0\.1"):
    ppo(label_smoothing=0.1)
  with pytest.raises(ValueError, match="test_episodes is 0"):
    load("Corridor", test_episodes=0)


def test_advantages_by_hand():
  """Two environments: the first is cut short after its first step, the second terminates."""
  found = advantages(
    jnp.array([[1.0, 1.0], [2.0, 2.0]]),
    jnp.array([[0.5, 0.5], [1.0, 1.0]]),
    jnp.array([[3.0, 0.0], [4.0, 4.0]]),
    jnp.array([[True, True], [False, False]]),
    discount=0.5,
    gae_lambda=0.5,
  )
  np.testing.assert_allclose(found, [[1 + 1.5 - 0.5, 1 - 0.5], [2 + 2 - 1.0, 3.0]])
  flows = advantages(
    jnp.array([[1.0], [2.0]]),
    jnp.array([[0.5], [1.0]]),
    jnp.array([[1.0], [4.0]]),
    jnp.array([[False], [False]]),
    discount=0.5,
    gae_lambda=0.5,
  )
  np.testing.assert_allclose(flows, [[1 + 0.5 - 0.5 + 0.25 * 3.0], [3.0]])


def test_the_loss_by_hand():
  """Probabilities of a half; what the actions had was less: the first is beyond the clip."""
  outputs = Judgement(jnp.zeros((2, 2)), jnp.array([1.0, 2.0]))
  targets = {
    "action": jnp.array([0, 1]),
    "log_prob": jnp.log(jnp.array([0.25, 0.5])),
    "advantage": jnp.array([1.0, -2.0]),
    "value": jnp.array([0.0, 2.0]),
  }
  loss, sums = ppo_loss(outputs, targets, clip=0.2, entropy_cost=0.1, value_cost=0.5)
  expected = [-1.2 + 0.25 - 0.1 * np.log(2), 2.0 - 0.1 * np.log(2)]
  assert loss == pytest.approx(np.mean(expected))
  assert sums["clipped"] == 1 and sums["value_error"] == 1
  assert sums["entropy"] == pytest.approx(2 * np.log(2))


@pytest.mark.parametrize("function, most", [("Corridor", 2), ("with_params", 2), ("corner", 1)])
def test_an_episode_is_played_to_its_end(function, most):
  env = load(function)
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
  right = lambda x: jnp.tile(jnp.array([0.0, 1.0]), (len(x), 1))
  found = acting.play(env, right, keys)
  np.testing.assert_array_equal(found["length"], [most] * 3)
  np.testing.assert_array_equal(found["return"], [most - 1] * 3)  # 1 at the end, if it is reached
  np.testing.assert_array_equal(found["unfinished"], [0] * 3)


def test_a_run_learns_is_tested_and_reported(finished):
  workdir, results = finished
  assert results["steps"] == 12 and 0.4 < results["sparsity"] < 0.7
  metrics = read_metrics(workdir)
  assert [record["step"] for record in metrics["test"]] == [6, 12]
  for record in metrics["test"]:
    assert 0 <= record["mean_return"] <= 1 and record["loss"] == -record["mean_return"]
    assert 2 <= record["episode_length"] <= corridor.LIMIT and record["examples"] == 3
  assert {"entropy", "clipped", "value_error"} <= metrics["train"][0].keys()
  assert results["score"]["name"] == "mean_return" and not results["score"]["lower_is_better"]
  assert "test return" in (workdir / "report.md").read_text()


@pytest.mark.slow
def test_a_run_resumes_within_a_rollout_bit_for_bit(finished, tmp_path):
  with devices(1), quick_compiler():
    with interrupted_at(2), pytest.raises(Interrupted):
      train(tiny_config(), tmp_path)
    train(tiny_config(), tmp_path)
  assert_same(read_checkpoint(tmp_path), read_checkpoint(finished[0]))


@pytest.mark.slow
def test_devices_share_the_batch(finished, tmp_path):
  with devices(2), quick_compiler():
    results = train(tiny_config(), tmp_path)
  assert results["sparsity"] == pytest.approx(finished[1]["sparsity"])
  here, there = read_checkpoint(tmp_path), read_checkpoint(finished[0])
  assert here.keys() == there.keys()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["srigl", "static_fan_in", "dense", "rigl"])
def test_methods_and_engines(method, tmp_path):
  config = tiny_config()
  chosen = ppo_gymnax.get_config(f"{method}-quick").method
  config.method.name, config.method.kwargs = chosen.name, chosen.kwargs
  if method in ("srigl", "static_fan_in"):
    config.method.engine = "condensed"
  with devices(1), quick_compiler():
    assert train(config, tmp_path)["steps"] == 12


@pytest.mark.slow
def test_images_are_observed_and_a_run_is_exported(tmp_path, command):
  config = tiny_config(**{"data.name": f"{OWN}images"})
  config.model.kwargs = {"hidden": (8,), "channels": 4}
  with devices(1), quick_compiler():
    results = train(config, tmp_path / "run")
    file = tmp_path / "agent.safetensors"
    code, out, err = command("export", f"--workdir={tmp_path / 'run'}", f"--out={file}")
  assert code == 0, err
  assert out.count(f"{results['score']['last']:.4f}") == 2


def test_a_task_is_made_of_its_config():
  task = make_task(tiny_config())
  assert task.score == acting.RETURN
  config = tiny_config().to_dict()
  assert acting.environment_steps(config, 12) == 3 * 4 * 8


@pytest.mark.slow
@needs_gymnax
def test_quick_balances_the_pole(tmp_path):
  results = train(ppo_gymnax.get_config("srigl-quick"), tmp_path)
  assert results["score"]["best"] > 400
