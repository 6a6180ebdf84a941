"""Networks that act: from observations to what actions are chosen by."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike


class Judgement(NamedTuple):
  """What an actor and its critic make of observations.

  Attributes:
    logits: `[B, actions]` float32.
    value: `[B]` float32, the return that is to be expected.
  """

  logits: jax.Array
  value: jax.Array


class Body(nnx.Module):
  """Fully connected layers with ReLU, after a convolution of 3 × 3 where observations are images.

  The convolution is a product of patches: XLA runs convolutions in loops, in which all acting is,
  by a slow fallback on CPU, and a layer `[9 C, channels]` is sparse like any other.
  """

  def __init__(
    self,
    observation_shape: Sequence[int],
    channels: int,
    hidden: Sequence[int],
    *,
    rngs: nnx.Rngs,
    dtype: DTypeLike,
  ):
    """Creates the parameters.

    Args:
      observation_shape: of one observation; `(H, W, C)` is an image.
      channels: of the convolution; 0: none, an image's pixels are inputs like others.
      hidden: neurons of each layer.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16.

    Raises:
      ValueError: if an image is smaller than the convolution.
    """
    self.dtype = dtype
    linear = lambda *shape: nnx.Linear(
      *shape, kernel_init=nnx.initializers.he_normal(), dtype=dtype, rngs=rngs
    )
    size = 1
    for length in observation_shape:
      size *= length
    conv = None
    if channels and len(observation_shape) == 3:
      height, width, depth = observation_shape
      if min(height, width) < 3:
        raise ValueError(
          f"Observations of {height} × {width} are too small for a convolution of 3 × 3: set "
          "config.model.kwargs.channels to 0."
        )
      conv = linear(9 * depth, channels)
      size = (height - 2) * (width - 2) * channels
    sizes = [size, *hidden]
    self.conv = conv
    self.hidden = nnx.List(linear(*shape) for shape in itertools.pairwise(sizes))
    self.num_features = sizes[-1]

  def __call__(self, x: jax.Array) -> jax.Array:
    """Features `[B, hidden[-1]]` of observations `[B, ...]`."""
    x = x.astype(self.dtype)
    if self.conv is not None:
      height, width = x.shape[1] - 2, x.shape[2] - 2
      shifts = itertools.product(range(3), range(3))
      patches = [x[:, i : i + height, j : j + width] for i, j in shifts]
      x = nnx.relu(self.conv(jnp.concatenate(patches, axis=-1)))
    x = x.reshape(len(x), -1)
    for layer in self.hidden:
      x = nnx.relu(layer(x))
    return x


class ActorCritic(nnx.Module):
  """An actor and a critic that share no layer, so that each has a topology of its own.

  Parameter paths: `actor/hidden/0/kernel`, ..., `actor_head/kernel`, the same of `critic`.
  """

  def __init__(
    self,
    hidden: Sequence[int] = (256, 256),
    channels: int = 0,
    *,
    observation_shape: Sequence[int],
    num_actions: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      hidden: neurons of each hidden layer of either.
      channels: see `Body`.
      observation_shape: of one observation.
      num_actions: to choose among.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16.
    """
    body = lambda: Body(observation_shape, channels, hidden, rngs=rngs, dtype=dtype)
    self.actor, self.critic = body(), body()
    # Small, so that a policy is nearly uniform at first.
    small = nnx.initializers.orthogonal(0.01)
    features = self.actor.num_features
    self.actor_head = nnx.Linear(features, num_actions, kernel_init=small, dtype=dtype, rngs=rngs)
    self.critic_head = nnx.Linear(features, 1, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> Judgement:
    """What it makes of observations `[B, ...]`."""
    del train, rngs
    logits = self.actor_head(self.actor(x)).astype(jnp.float32)
    return Judgement(logits, self.critic_head(self.critic(x)).astype(jnp.float32)[:, 0])


class QNetwork(nnx.Module):
  """The value of each action, `[B, actions]` float32.

  Parameter paths: `body/conv/kernel`, `body/hidden/0/kernel`, ..., `head/kernel`.
  """

  def __init__(
    self,
    hidden: Sequence[int] = (128,),
    channels: int = 16,
    *,
    observation_shape: Sequence[int],
    num_actions: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters; arguments are those of `ActorCritic`.

    Args:
      hidden: neurons of each hidden layer.
      channels: see `Body`.
      observation_shape: of one observation.
      num_actions: to choose among.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16.
    """
    self.body = Body(observation_shape, channels, hidden, rngs=rngs, dtype=dtype)
    self.head = nnx.Linear(self.body.num_features, num_actions, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Values of all actions for observations `[B, ...]`."""
    del train, rngs
    return self.head(self.body(x)).astype(jnp.float32)
