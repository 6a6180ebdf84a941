"""What tasks that learn by acting share: environments side by side, episodes of tests, metrics."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.data import Experience, InputPipeline, memory_pipeline
from experiments.data.environments import Arrays, Environment, Step
from experiments.workdir.scores import Score

Policy = Callable[[Array, Array], tuple[Array, Any]]
"""`(key, observations [N, ...]) -> (actions [N] int32, what else is to be kept of the step)`."""

RETURN = Score("mean_return", "return")

_TEST_KEY = 20_230_508  # of the episodes of tests: those of all runs begin alike


def no_label_smoothing(task: str, label_smoothing: float) -> None:
  """Refuses what a task without labels cannot do.

  Raises:
    ValueError: if it is not 0.
  """
  if label_smoothing:
    raise ValueError(
      f"config.train.label_smoothing is {label_smoothing}, but {task} has no labels: set it to 0."
    )


def check_ranges(task: str, **ranges: tuple[float, float, float]) -> None:
  """Refuses arguments of a task that are out of range.

  Args:
    task: its name.
    **ranges: value, least and greatest of each argument.

  Raises:
    ValueError: naming the argument.
  """
  for name, (value, least, most) in ranges.items():
    if not least <= value <= most:
      to = f"from {least:g} to {most:g}" if np.isfinite(most) else f"{least:g} or more"
      raise ValueError(f"config.task.kwargs.{name} of {task} is {value}; it must be {to}.")


def environment_steps(config: Mapping[str, Any], step: int) -> float:
  """Steps of the environment, all of those side by side, that a run has taken by a training step.

  Args:
    config: of the run, as plain dicts.
    step: of training.
  """
  kwargs, batch_size = config["task"]["kwargs"], config["data"]["batch_size"]
  if config["task"]["name"] == "dqn":
    return kwargs["warm_up"] + step * kwargs["num_envs"]
  rollout = kwargs["num_envs"] * kwargs["num_steps"]
  return step * rollout / (kwargs["num_passes"] * (rollout // batch_size))


def shapes_of(environment: Environment) -> dict[str, Any]:
  """What networks are told of an environment."""
  return {
    "observation_shape": environment.observation.shape,
    "num_actions": environment.num_actions,
  }


def observations(shapes: Any, size: int) -> jax.ShapeDtypeStruct:
  """So many observations, as networks are given them."""
  return jax.ShapeDtypeStruct((size, *shapes["observation_shape"]), jnp.float32)


def begin(environment: Environment, key: Array, num_envs: int) -> tuple[Array, Arrays]:
  """First observations `[N, ...]` and states of environments side by side."""
  return jax.vmap(environment.reset)(jax.random.split(key, num_envs))


def act(
  environment: Environment, key: Array, observation: Array, state: Arrays, policy: Policy
) -> tuple[Array, Step, Any]:
  """One action in each environment: the actions, the answers, and what the policy adds."""
  policy_key, step_key = jax.random.split(key)
  action, kept = policy(policy_key, observation)
  keys = jax.random.split(step_key, len(observation))
  return action, jax.vmap(environment.step)(keys, state, action), kept


def play(environment: Environment, values: Callable[[Any], Array], keys: Array) -> Arrays:
  """Plays an episode from each key, by the action of the greatest value.

  Args:
    environment: to play in.
    values: from observations `[B, ...]` to values (or logits) of actions, `[B, actions]`.
    keys: `[B, ...]` data of random keys.

  Returns:
    `return` `[B]` float32, `length` `[B]` float32, and `unfinished` `[B]` float32, 1 where an
    episode was given up after `max_episode_steps`: its return is that until then.
  """
  keys = jax.random.wrap_key_data(keys)
  observation, state = jax.vmap(environment.reset)(keys)
  zeros = jnp.zeros(len(keys), jnp.float32)

  def going(carry: Any) -> Array:
    time, alive = carry[0], carry[1]
    return (time < environment.max_episode_steps) & alive.any()

  def move(carry: Any) -> Any:
    time, alive, observation, state, total, length = carry
    action = values(observation.astype(jnp.float32)).argmax(-1).astype(jnp.int32)
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, time))(keys)
    step = jax.vmap(environment.step)(step_keys, state, action)
    total, length = total + jnp.where(alive, step.reward, 0), length + alive
    return time + 1, alive & ~step.done, step.observation, step.state, total, length

  start = jnp.zeros((), jnp.int32), jnp.ones(len(keys), bool), observation, state, zeros, zeros
  _, alive, _, _, total, length = lax.while_loop(going, move, start)
  return {"return": total, "length": length, "unfinished": alive.astype(jnp.float32)}


def test_sums(outputs: Arrays, targets: Any, valid: Array) -> dict[str, Array]:
  """Sums over episodes; the loss of a test is the negative return."""
  del targets
  total = lambda x: jnp.where(valid, x, 0).sum(dtype=jnp.float32)
  return {
    "loss": -total(outputs["return"]),
    RETURN.name: total(outputs["return"]),
    "episode_length": total(outputs["length"]),
    "unfinished": total(outputs["unfinished"]),
  }


def acting_pipeline(
  environment: Environment,
  *,
  experience: Experience,
  values: Callable[[Any], Array],
  **sizes: Any,
) -> InputPipeline:
  """A pipeline whose training examples are experience, and whose tests are episodes.

  Args:
    environment: to act in.
    experience: where examples come from: pytrees of `[num_train, ...]`, inputs and targets.
    values: from outputs of the network to values of actions, by which tests act.
    **sizes: `batch_size`, `eval_batch_size` and `seed`, see `memory_pipeline`.
  """

  def test_examples(device_data: Any, index: Array) -> tuple[Array, Array]:
    key_of = lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(_TEST_KEY), i))
    return jax.vmap(key_of)(index), index

  pipeline = memory_pipeline(
    num_train=environment.num_train,
    num_test=environment.num_test,
    device_data=(),
    train_examples=lambda keys, data, index: jax.tree.map(lambda x: x[index], data),
    test_examples=test_examples,
    **sizes,
  )
  outputs = lambda network, keys: play(environment, lambda x: values(network(x)), keys)
  return pipeline._replace(experience=experience, test_outputs=outputs)
