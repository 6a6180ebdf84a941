"""Environments to act in: gymnax's, or any other with their interface, as pure functions."""

import difflib
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

Arrays = dict[str, Array]
"""The state of an environment: the leaves of its own pytree, typed random keys as their data."""

_INTERFACE = (
  "reset(key, params) -> (observation, state), step(key, state, action, params) -> (observation, "
  "state, reward, terminated, truncated, info), default_params, and action_space(params) or "
  "num_actions"
)


class Step(NamedTuple):
  """What an environment answers to an action; where an episode ends, the next one has begun.

  Attributes:
    observation: that the next action is chosen by, of a new episode after an end.
    state: of the environment.
    reward: `[]` float32.
    terminated: `[]` bool, whether the episode is over, with nothing to come.
    truncated: `[]` bool, whether it was cut short, as by a limit of time: more would have come.
    final: the observation that the action led to, which after an end is not `observation`.
  """

  observation: Array
  state: Arrays
  reward: Array
  terminated: Array
  truncated: Array
  final: Array

  @property
  def done(self) -> Array:
    """Whether the episode ended, `[]` bool."""
    return self.terminated | self.truncated


class Environment(NamedTuple):
  """An environment of a task that learns by acting.

  Attributes:
    name: as the config has it.
    reset: `key -> (observation, state)`, of one environment; `jax.vmap` makes many.
    step: `(key, state, action) -> Step`, likewise; `action` is `[]` int32.
    observation: shape and type of an observation.
    num_actions: to choose among.
    max_episode_steps: after which an episode of a test is given up.
    num_train: examples of an epoch.
    num_test: episodes of a test.
  """

  name: str
  reset: Callable[[Array], tuple[Array, Arrays]]
  step: Callable[[Array, Arrays, Array], Step]
  observation: jax.ShapeDtypeStruct
  num_actions: int
  max_episode_steps: int
  num_train: int
  num_test: int


def load_environment(
  name: str,
  *,
  data_dir: str | None = None,
  num_train: int,
  test_episodes: int = 20,
  max_episode_steps: int = 0,
) -> Environment:
  """An environment by name.

  Args:
    name: of one that gymnax has registered, or `module:function` of one's own: the function is
      called without arguments and returns the environment, or it and its parameters.
    data_dir: not used.
    num_train: examples of an epoch.
    test_episodes: of a test.
    max_episode_steps: steps after which an episode of a test is given up; 0: the environment's
      own limit, `max_steps_in_episode` of its parameters.

  Raises:
    ValueError: if gymnax or the environment is not there, or it is not as it must be.
  """
  del data_dir
  if test_episodes < 1:
    raise ValueError(f"config.data.kwargs.test_episodes is {test_episodes}; it must be at least 1.")
  env, params = _own(name) if ":" in name else _of_gymnax(name)
  limit = max_episode_steps or int(getattr(params, "max_steps_in_episode", 0))
  if limit < 1:
    raise ValueError(
      f"config.data.kwargs.max_episode_steps is {max_episode_steps}, and {name!r} has no limit of "
      "its own (max_steps_in_episode of its parameters): give after how many steps an episode of "
      "a test is given up."
    )
  reset, step, observation = _functions(name, env, params)
  num_actions = _num_actions(name, env, params)
  return Environment(
    name, reset, step, observation, num_actions, limit, num_train, num_test=test_episodes
  )


def _of_gymnax(name: str) -> tuple[Any, Any]:
  try:
    gymnax = importlib.import_module("gymnax")
  except ImportError as error:
    raise ValueError(
      f"config.data.name is {name!r}, an environment of gymnax, which cannot be imported "
      f"({error}): pip install gymnax. One of your own is named by module:function and needs none."
    ) from error
  if name not in gymnax.registered_envs:
    near = difflib.get_close_matches(name, gymnax.registered_envs, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"config.data.name is {name!r}; it must be one of {', '.join(gymnax.registered_envs)}, or "
      f"module:function of your own.{hint}"
    )
  return gymnax.make(name)


def _own(name: str) -> tuple[Any, Any]:
  module, _, function = name.partition(":")
  try:
    made = getattr(importlib.import_module(module), function)()
  except (ImportError, AttributeError, TypeError, ValueError) as error:
    raise ValueError(
      f"config.data.name is {name!r}, but calling {function!r} of the module {module!r} failed "
      f"({error}): start in the folder of the module, or put it on PYTHONPATH."
    ) from error
  if isinstance(made, tuple) and len(made) == 2:
    return made
  return made, getattr(made, "default_params", None)


def _num_actions(name: str, env: Any, params: Any) -> int:
  """How many actions there are to choose among."""
  space = env.action_space(params) if hasattr(env, "action_space") else None
  count = getattr(space, "n", None) if space is not None else getattr(env, "num_actions", None)
  if count is None or int(count) < 2:
    raise ValueError(
      f"The actions of {name!r} are {space if space is not None else count}; what is trained here "
      "chooses among a number of actions, two or more: use an environment of discrete actions."
    )
  return int(count)


def _functions(name: str, env: Any, params: Any) -> tuple[Any, Any, jax.ShapeDtypeStruct]:
  """The environment as functions of arrays, and what it observes."""

  def fail(reason: str) -> ValueError:
    return ValueError(f"{name!r} is no environment as gymnax has them: {reason}; needed are "
                      f"{_INTERFACE}.")  # fmt: skip

  if not (hasattr(env, "reset") and hasattr(env, "step")):
    raise fail(f"{type(env).__name__} has no reset or no step")
  impls: list[Any] = []  # of the typed keys in its state; None of other leaves

  def look(key: Array) -> Any:
    found = env.reset(key, params)
    if not (isinstance(found, tuple) and len(found) == 2):
      raise fail("reset does not return a pair")
    impls[:] = [jax.random.key_impl(x) if _is_key(x) else None for x in jax.tree.leaves(found[1])]
    return found

  observation, shapes = jax.eval_shape(look, jax.random.key(0))
  if not isinstance(observation, jax.ShapeDtypeStruct):
    raise fail("an observation is not a single array")
  structure = jax.tree.structure(shapes)

  def pack(state: Any) -> Arrays:
    return {str(i): _as_data(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}

  def unpack(arrays: Arrays) -> Any:
    leaves = [arrays[str(i)] for i in range(len(impls))]
    wrap = lambda x, impl: x if impl is None else jax.random.wrap_key_data(x, impl=impl)
    return jax.tree.unflatten(structure, map(wrap, leaves, impls))

  def reset(key: Array) -> tuple[Array, Arrays]:
    first, state = env.reset(key, params)
    return jnp.asarray(first, observation.dtype), pack(state)

  def step(key: Array, state: Arrays, action: Array) -> Step:
    answer = env.step(key, unpack(state), action, params)
    if len(answer) == 5:  # of gymnax before 1.0, where a limit of time is an end like any other
      after, state_after, reward, terminated, _ = answer
      truncated, final = jnp.zeros((), bool), after
    elif len(answer) == 6 and "final_observation" in answer[5]:
      after, state_after, reward, terminated, truncated, info = answer
      final = info["final_observation"]
    else:
      raise fail("step does not return these six, with 'final_observation' in info")
    return Step(
      jnp.asarray(after, observation.dtype),
      pack(state_after),
      jnp.asarray(reward, jnp.float32),
      jnp.asarray(terminated, bool),
      jnp.asarray(truncated, bool),
      jnp.asarray(final, observation.dtype),
    )

  kinds = lambda arrays: {path: (x.shape, x.dtype) for path, x in arrays.items()}
  key = jax.random.key(0)
  before = jax.eval_shape(reset, key)[1]
  after = jax.eval_shape(step, key, before, jnp.zeros((), jnp.int32)).state
  if kinds(before) != kinds(after):
    raise fail(
      f"the state after a step has other arrays than after reset ({kinds(after)}, {kinds(before)})"
    )
  return reset, step, jax.ShapeDtypeStruct(observation.shape, observation.dtype)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(getattr(leaf, "dtype", jnp.float32), jax.dtypes.prng_key)


def _as_data(leaf: Any) -> Array:
  """An array of a type of its own: a typed key cannot be saved, a weak type changes in a loop."""
  if _is_key(leaf):
    return jax.random.key_data(leaf)
  leaf = jnp.asarray(leaf)
  return jax.lax.convert_element_type(leaf, leaf.dtype)
