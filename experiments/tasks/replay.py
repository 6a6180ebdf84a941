"""A replay buffer on the device: the last transitions, as a dict of arrays that is passed on."""

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from experiments.data.environments import Environment, Step

Replay = dict[str, Array]
"""`observation`, `final` `[capacity, ...]`, `action`, `reward`, `terminated` `[capacity]`, and
`added` `[]` int32, the number of transitions so far, up to twice the capacity."""


def empty(environment: Environment, capacity: int, dtype: DTypeLike) -> Replay:
  """A buffer without transitions.

  Args:
    environment: whose transitions it will hold.
    capacity: how many.
    dtype: in which it holds observations.
  """
  observation = jnp.zeros((capacity, *environment.observation.shape), dtype)
  return {
    "observation": observation,
    "final": observation,
    "action": jnp.zeros(capacity, jnp.int32),
    "reward": jnp.zeros(capacity, jnp.float32),
    "terminated": jnp.zeros(capacity, bool),
    "added": jnp.zeros((), jnp.int32),
  }


def add(replay: Replay, observation: Array, action: Array, step: Step) -> Replay:
  """Adds a transition of each of `N` environments, over the oldest; `N` divides the capacity.

  Args:
    replay: the buffer.
    observation: `[N, ...]`, what the actions were chosen by.
    action: `[N]` int32.
    step: the answers.
  """
  capacity, num_envs = len(replay["action"]), len(action)
  new = {
    "observation": observation,
    "final": step.final,
    "action": action,
    "reward": step.reward,
    "terminated": step.terminated,
  }
  place = replay["added"] % capacity
  put = lambda old, x: lax.dynamic_update_slice_in_dim(old, x.astype(old.dtype), place, axis=0)
  # It stays small, so that it never overflows, and at least the capacity once that is reached.
  added = replay["added"] + num_envs
  added = jnp.where(added >= 2 * capacity, added - capacity, added)
  return {name: put(replay[name], x) for name, x in new.items()} | {"added": added}


def draw(replay: Replay, key: Array, size: int) -> Replay:
  """`size` transitions, each drawn from all that there are; observations are float32."""
  filled = jnp.minimum(replay["added"], len(replay["action"]))
  index = jax.random.randint(key, (size,), 0, filled)
  drawn = {name: x[index] for name, x in replay.items() if name != "added"}
  return drawn | {name: drawn[name].astype(jnp.float32) for name in ("observation", "final")}
