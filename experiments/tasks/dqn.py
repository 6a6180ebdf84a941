"""Deep Q-learning (Mnih et al. 2015) with double Q-learning's targets (van Hasselt et al. 2016)."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from experiments import models
from experiments.data import Experience, InputPipeline
from experiments.data.environments import Environment, load_environment
from experiments.models.agents import QNetwork
from experiments.tasks import acting, replay
from experiments.tasks.task import Sums, Task

Q_NETWORKS = {"q_network": QNetwork}
"""Networks by name: from observations to the values of actions."""
_SHAPES = ("observation_shape", "num_actions")


def dqn(
  *,
  label_smoothing: float = 0.0,
  num_envs: int = 4,
  capacity: int = 100_000,
  warm_up: int = 5_000,
  replay_dtype: str = "float32",
  discount: float = 0.99,
  epsilon_start: float = 1.0,
  epsilon_end: float = 0.05,
  epsilon_steps: int = 20_000,
  target_every_steps: int = 500,
) -> Task:
  """The task; its score is the mean return of episodes in which the best action is taken.

  Before each training step every environment takes one; the batch is drawn from the replay buffer.
  An epoch is as many examples as the buffer holds.

  Args:
    label_smoothing: must be 0.
    num_envs: environments side by side.
    capacity: transitions that the replay buffer holds, a multiple of `num_envs`.
    warm_up: transitions by random actions before the first training step.
    replay_dtype: of observations in the buffer; "uint8" if they are whole numbers below 256.
    discount: of rewards by step, γ.
    epsilon_start: share of random actions at first.
    epsilon_end: after `epsilon_steps` training steps, until when it falls linearly.
    epsilon_steps: see there.
    target_every_steps: training steps after which the target network becomes the present one.

  Raises:
    ValueError: if an argument is out of range.
  """
  acting.no_label_smoothing("dqn", label_smoothing)
  acting.check_ranges(
    "dqn",
    num_envs=(num_envs, 1, math.inf),
    capacity=(capacity, num_envs, math.inf),
    warm_up=(warm_up, num_envs, capacity),
    discount=(discount, 0, 1),
    epsilon_start=(epsilon_start, 0, 1),
    epsilon_end=(epsilon_end, 0, 1),
    epsilon_steps=(epsilon_steps, 1, math.inf),
    target_every_steps=(target_every_steps, 1, math.inf),
  )
  if capacity % num_envs or warm_up % num_envs:
    raise ValueError(
      f"config.task.kwargs.capacity of dqn is {capacity} and warm_up {warm_up}; they must be "
      f"multiples of num_envs, {num_envs}."
    )
  if replay_dtype not in ("float32", "uint8"):
    raise ValueError(
      f"config.task.kwargs.replay_dtype of dqn is {replay_dtype!r}; it must be float32 or uint8."
    )

  def epsilon(step: Array) -> Array:
    done = jnp.minimum(step / epsilon_steps, 1.0)
    return epsilon_start + (epsilon_end - epsilon_start) * done

  def pipeline(environment: Environment, *, batch_size: int, **sizes: Any) -> InputPipeline:
    made = acting.acting_pipeline(
      environment,
      experience=Experience(
        functools.partial(_begin, environment, num_envs, capacity, warm_up, replay_dtype),
        functools.partial(_advance, environment, batch_size, discount, epsilon, target_every_steps),
      ),
      values=lambda values: values,
      batch_size=batch_size,
      **sizes,
    )
    # What comes of a step is its batch already, drawn from the buffer: a device takes its part.
    return made._replace(
      train_inputs=lambda key, places, data, batch: jax.tree.map(lambda x: x[places], data)
    )

  return Task(
    load=functools.partial(load_environment, num_train=capacity),
    shapes=acting.shapes_of,
    build=functools.partial(models.construct, Q_NETWORKS, _SHAPES),
    inputs=acting.observations,
    pipeline=pipeline,
    loss=dqn_loss,
    train_metrics=("value", "squared_error"),
    test_sums=acting.test_sums,
    score=acting.RETURN,
  )


def dqn_loss(outputs: Array, targets: dict[str, Array]) -> tuple[Array, Sums]:
  """Huber's loss of the values of the actions that were taken.

  Args:
    outputs: values of all actions, `[B, actions]`.
    targets: `action` `[B]` int32 and the `value` `[B]` that it is to have.

  Returns:
    The mean loss `[]`, and sums of the values and of the squared errors.
  """
  value = jnp.take_along_axis(outputs, targets["action"][:, None], axis=-1)[:, 0]
  losses = optax.huber_loss(value, targets["value"])
  sums = {"value": value.sum(), "squared_error": ((value - targets["value"]) ** 2).sum()}
  return losses.mean(), sums


def bellman_targets(
  reward: Array, terminated: Array, now: Array, target: Array, *, discount: float
) -> Array:
  """What the values of actions are to be, `[B]`: the best next action is the present network's.

  Args:
    reward: `[B]`.
    terminated: `[B]` bool, whether nothing comes after.
    now: `[B, actions]`, what the present network makes of what the actions led to.
    target: `[B, actions]`, what the target network makes of it.
    discount: γ.
  """
  best = jnp.take_along_axis(target, now.argmax(-1)[:, None], axis=-1)[:, 0]
  return reward + discount * jnp.where(terminated, 0, best)


def _act(
  environment: Environment, key: Array, carried: Any, values: Any, epsilon: Array | float
) -> Any:
  """One action in each environment, kept in the buffer; at random with probability `epsilon`."""

  def policy(key: Array, observation: Array) -> tuple[Array, None]:
    random_key, choice_key = jax.random.split(key)
    size = len(observation)
    random = jax.random.randint(random_key, (size,), 0, environment.num_actions)
    best = values(observation.astype(jnp.float32)).argmax(-1).astype(jnp.int32)
    return jnp.where(jax.random.uniform(choice_key, (size,)) < epsilon, random, best), None

  observation = carried["observation"]
  action, step, _ = acting.act(environment, key, observation, carried["state"], policy)
  buffer = replay.add(carried["replay"], observation, action, step)
  return carried | {"observation": step.observation, "state": step.state, "replay": buffer}


def _begin(
  environment: Environment,
  num_envs: int,
  capacity: int,
  warm_up: int,
  replay_dtype: str,
  key: Array,
  network: Any,
  weights: Any,
) -> Any:
  """Environments, and a buffer with the transitions of the warm-up."""
  del network

  def make(key: Array) -> tuple[Any, Array]:
    key, reset_key = jax.random.split(key)
    observation, state = acting.begin(environment, reset_key, num_envs)
    buffer = replay.empty(environment, capacity, replay_dtype)
    carried = {"observation": observation, "state": state, "replay": buffer}
    nothing = lambda x: jnp.zeros((len(x), environment.num_actions))

    def move(carry: Any, key: Array) -> tuple[Any, Array]:
      kept = carry["observation"].astype(replay_dtype).astype(carry["observation"].dtype)
      is_kept = (kept == carry["observation"]).all()
      return _act(environment, key, carry, nothing, 1.0), is_kept

    carried, kept = lax.scan(move, carried, jax.random.split(key, warm_up // num_envs))
    return carried, kept.all()

  carried, is_kept = jax.jit(make)(key)
  if not is_kept:
    raise ValueError(
      f"config.task.kwargs.replay_dtype is {replay_dtype!r}, which cannot hold the observations of "
      f"{environment.name!r}: set it to float32."
    )
  return carried | {"target": jax.tree.map(jnp.copy, weights), "step": jnp.zeros((), jnp.int32)}


def _advance(
  environment: Environment,
  batch_size: int,
  discount: float,
  epsilon: Any,
  target_every_steps: int,
  key: Array,
  carried: Any,
  network: Any,
  weights: Any,
) -> tuple[Any, Any]:
  """Acts once in each environment; then a batch from the buffer, with what is to be learnt."""
  act_key, draw_key = jax.random.split(key)
  step = carried["step"]
  is_due = step % target_every_steps == 0
  target = jax.tree.map(lambda new, old: jnp.where(is_due, new, old), weights, carried["target"])
  values = lambda x: network(weights, x)
  carried = _act(environment, act_key, carried, values, epsilon(step))
  drawn = replay.draw(carried["replay"], draw_key, batch_size)
  value = bellman_targets(
    drawn["reward"],
    drawn["terminated"],
    values(drawn["final"]),
    network(target, drawn["final"]),
    discount=discount,
  )
  batch = drawn["observation"], {"action": drawn["action"], "value": value}
  return carried | {"target": target, "step": step + 1}, batch
