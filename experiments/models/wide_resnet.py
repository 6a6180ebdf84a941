"""Wide residual networks (Zagoruyko and Komodakis, arXiv:1605.07146) for small images."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers


class PreActivationBlock(nnx.Module):
  """Normalise, ReLU, convolve, twice, beside a shortcut.

  Where the number of neurons changes, the shortcut is a 1×1 convolution of the normalised
  input; elsewhere it is the input itself.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    stride: int,
    dropout_rate: float,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.bn1 = layers.batch_norm(in_features, rngs=rngs)
    self.conv1 = layers.conv(in_features, out_features, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn2 = layers.batch_norm(out_features, rngs=rngs)
    # Without random state of its own: the model's only state besides parameters is then that
    # of its normalisations.
    self.dropout = nnx.Dropout(dropout_rate)
    self.conv2 = layers.conv(out_features, out_features, 3, dtype=dtype, rngs=rngs)
    self.has_projection = stride != 1 or in_features != out_features
    if self.has_projection:
      self.shortcut = layers.conv(
        in_features, out_features, 1, stride=stride, dtype=dtype, rngs=rngs
      )

  def __call__(self, x: jax.Array, *, train: bool, rngs: nnx.Rngs | None) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, out]`, rounded up."""
    activated = nnx.relu(layers.normalize(self.bn1, x, train=train))
    y = self.conv1(activated)
    y = nnx.relu(layers.normalize(self.bn2, y, train=train))
    y = self.conv2(self.dropout(y, deterministic=not train, rngs=rngs))
    return y + (self.shortcut(activated) if self.has_projection else x)


class WideResNet(nnx.Module):
  """A wide residual network of pre-activation blocks.

  Convolutions are He-normal by fan-out and have no bias. Parameter paths: `conv1/kernel`,
  `layer1/0/bn1/scale`, `layer1/0/conv1/kernel`, `layer1/0/shortcut/kernel`, ..., `bn/scale`,
  `head/kernel`, `head/bias`.

  The authors' code of SRigL puts a log-softmax behind the head and trains it with cross-entropy,
  which applies it once more; as log-softmax is idempotent, the loss of these logits is the same.
  """

  def __init__(
    self,
    depth: int = 22,
    widen: float = 2,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dropout_rate: float = 0.3,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters; arguments not listed are those of `models.build`.

    Args:
      depth: layers in all, shortcuts not counted; `6 * blocks_per_stage + 4`.
      widen: factor on the 16, 32 and 64 neurons of the three stages; `16 * widen` is rounded.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input.
      rngs: source of the initial parameters.
      dropout_rate: share of activations dropped between the two convolutions of a block.
      dtype: compute type, float32 or bfloat16; parameters are float32.

    Raises:
      ValueError: if no number of blocks gives this depth.
    """
    if depth < 10 or (depth - 4) % 6:
      raise ValueError(f"depth must be 6 * n + 4 with n >= 1 (10, 16, 22, ...), got {depth}.")
    num_blocks = (depth - 4) // 6
    self.dropout_rate = dropout_rate
    self.conv1 = layers.conv(image_shape[-1], 16, 3, dtype=dtype, rngs=rngs)
    block = functools.partial(PreActivationBlock, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
    widths = [round(16 * widen) * 2**i for i in range(3)]
    sizes = [(num_blocks, width) for width in widths]
    self.stage_names = layers.residual_stages(self, block, 16, sizes)
    self.bn = layers.batch_norm(widths[-1], rngs=rngs)
    self.head = layers.head(widths[-1], num_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`.

    Raises:
      ValueError: if `rngs` is not given, `train` is set and the dropout rate is not 0.
    """
    if train and self.dropout_rate > 0 and rngs is None:
      raise ValueError(
        f"training with dropout_rate={self.dropout_rate} needs random numbers: "
        "pass rngs, or build the model with dropout_rate=0."
      )
    x = self.conv1(x)
    for name in self.stage_names:
      for block in getattr(self, name):
        x = block(x, train=train, rngs=rngs)
    x = nnx.relu(layers.normalize(self.bn, x, train=train))
    return self.head(layers.mean_pool(x)).astype(jnp.float32)


wide_resnet22_2 = functools.partial(WideResNet, depth=22, widen=2)
"""WRN-22-2: 23 layers with kernels, stages of 32, 64 and 128 neurons."""
