"""An environment as a user would write one: gymnax's interface, without gymnax."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LENGTH, LIMIT = 5, 12


class State(NamedTuple):
  place: jax.Array
  time: int
  key: jax.Array  # typed: no checkpoint takes it as it is


class Params(NamedTuple):
  max_steps_in_episode: int = LIMIT


class Corridor:
  """From the middle to the right end, which is worth 1, or the left one; both end the episode."""

  default_params = Params()
  num_actions = 2

  def reset(self, key, params):
    state = State(jnp.asarray(LENGTH // 2), 0, key)
    return self._observe(state), state

  def step(self, key, state, action, params):
    moved = State(state.place + 2 * action - 1, state.time + 1, jax.random.split(state.key)[0])
    at_end = (moved.place == 0) | (moved.place == LENGTH - 1)
    truncated = moved.time >= params.max_steps_in_episode
    reward = (moved.place == LENGTH - 1).astype(jnp.float32)
    first, anew = self.reset(key, params)
    done = at_end | truncated
    pick = lambda one, other: jnp.where(done, one, other)
    state = jax.tree.map(pick, anew, moved)
    final = self._observe(moved)
    info = {"final_observation": final}
    return pick(first, final), state, reward, at_end, truncated, info

  def _observe(self, state):
    return jax.nn.one_hot(state.place, LENGTH)


class OfBefore(Corridor):
  """With the interface of gymnax before 1.0."""

  def step(self, *arguments):
    observation, state, reward, terminated, truncated, info = super().step(*arguments)
    return observation, state, reward, terminated | truncated, info


class Lacking(Corridor):
  def step(self, *arguments):
    return (*super().step(*arguments)[:5], {})


class Continuous(Corridor):
  def action_space(self, params):
    return "Box(-1, 1)"


class Unlimited(Corridor):
  default_params = None


def with_params():
  return Corridor(), Params(max_steps_in_episode=3)


def corner():
  return Corridor(), Params(max_steps_in_episode=1)


def images():
  """Observations `(3, 4, 2)`."""

  class Images(Corridor):
    def _observe(self, state):
      return jnp.zeros((3, 4, 2)).at[0, 0, 0].set(state.place)

  return Images()


def halves():
  """Observations that are no whole numbers."""

  class Halves(Corridor):
    def _observe(self, state):
      return super()._observe(state) / 2

  return Halves()
