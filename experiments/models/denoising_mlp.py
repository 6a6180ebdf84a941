"""A residual multilayer perceptron that finds the noise in an image."""

import math
from collections.abc import Mapping

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from experiments.models import layers

_SLOWEST = 10_000.0  # as in the transformer's positions, of times 0 to 1,000
_TIMES = 1000.0


class DenoisingBlock(nnx.Module):
  """Two layers behind a norm and beside a shortcut, told the time between them."""

  def __init__(self, width: int, mlp_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    """Creates the parameters; see `DenoisingMLP`."""
    self.norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    self.up = nnx.Linear(width, mlp_width, dtype=dtype, rngs=rngs)
    self.time = nnx.Linear(width, mlp_width, dtype=dtype, rngs=rngs)
    self.down = nnx.Linear(mlp_width, width, dtype=dtype, rngs=rngs)

  def __call__(self, x: Array, time: Array) -> Array:
    """Maps `[B, width]`, and the time as `[B, width]`, to `[B, width]`."""
    hidden = self.up(self.norm(x).astype(x.dtype)) + self.time(time)
    return x + self.down(nnx.silu(hidden))


class DenoisingMLP(nnx.Module):
  """From a noisy image and its time to the noise in it.

  Parameter paths: `embed/kernel`, `embed_time/kernel`, `blocks/0/up/kernel` (also time, down),
  `norm/scale`, `head/kernel`.
  """

  def __init__(
    self,
    depth: int = 3,
    width: int = 256,
    mlp_width: int = 512,
    *,
    image_height: int,
    image_width: int,
    channels: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      depth: number of blocks.
      width: neurons between blocks; a multiple of 2.
      mlp_width: neurons inside of one.
      image_height: of an image.
      image_width: of an image.
      channels: of an image.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters and outputs are float32.

    Raises:
      ValueError: if the width is odd.
    """
    if width % 2:
      raise ValueError(f"width is {width}; it must be a multiple of 2, for sines and cosines.")
    pixels = image_height * image_width * channels
    self.width, self.dtype = width, dtype
    self.embed = nnx.Linear(pixels, width, dtype=dtype, rngs=rngs)
    self.embed_time = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
    self.blocks = nnx.List(
      DenoisingBlock(width, mlp_width, dtype=dtype, rngs=rngs) for _ in range(depth)
    )
    self.norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)
    self.head = layers.head(width, pixels, dtype=dtype, rngs=rngs)

  def __call__(
    self, inputs: Mapping[str, Array], *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> Array:
    """Computes the noise, float32 of the image's shape.

    Args:
      inputs: `{"image": [B, H, W, C], "time": [B]}`, times from 0 to 1.
      train: changes nothing.
      rngs: not needed.
    """
    del train, rngs
    image, waves = inputs["image"], _waves(inputs["time"], self.width)
    time = nnx.silu(self.embed_time(waves.astype(self.dtype)))
    x = self.embed(image.reshape(image.shape[0], -1).astype(self.dtype))
    for block in self.blocks:
      x = block(x, time)
    noise = self.head(self.norm(x).astype(self.dtype))
    return noise.reshape(image.shape).astype(jnp.float32)


def _waves(time: Array, size: int) -> Array:
  """Sines and cosines of `[B]` times at frequencies from fast to slow, `[B, size]`."""
  half = size // 2
  frequencies = jnp.exp(-math.log(_SLOWEST) * jnp.arange(half) / half)
  angles = _TIMES * time[:, None] * frequencies[None]
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)
