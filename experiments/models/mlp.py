"""A multilayer perceptron."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers


class MLP(nnx.Module):
  """Fully connected layers with ReLU between them.

  Hidden kernels are He-normal by fan-in, the head is LeCun-normal, biases are zero.
  Parameter paths: `hidden/0/kernel`, `hidden/0/bias`, ..., `head/kernel`, `head/bias`.
  """

  def __init__(
    self,
    hidden: Sequence[int] = (256, 256),
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters; arguments not listed are those of `models.build`.

    Args:
      hidden: neurons of each hidden layer.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters are float32.
    """
    height, width, channels = image_shape
    sizes = [height * width * channels, *hidden]
    self.dtype = dtype
    init = nnx.initializers.he_normal()
    self.hidden = nnx.List(
      nnx.Linear(*shape, kernel_init=init, dtype=dtype, rngs=rngs)
      for shape in itertools.pairwise(sizes)
    )
    self.head = layers.head(sizes[-1], num_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`."""
    del train, rngs
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    for layer in self.hidden:
      x = nnx.relu(layer(x))
    return self.head(x).astype(jnp.float32)
