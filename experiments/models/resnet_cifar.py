"""Residual networks for small images.

ResNet-18 of He et al. (arXiv:1512.03385) as it is used on CIFAR: a 3×3 stem without
max-pooling, so that the first stage still sees 32×32 positions.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers


class BasicBlock(nnx.Module):
  """Two 3×3 convolutions beside a shortcut; the shortcut is projected where shapes differ."""

  def __init__(
    self,
    in_features: int,
    out_features: int,
    *,
    stride: int,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
  ):
    self.conv1 = layers.conv(in_features, out_features, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(out_features, rngs=rngs)
    self.conv2 = layers.conv(out_features, out_features, 3, dtype=dtype, rngs=rngs)
    self.bn2 = layers.batch_norm(out_features, rngs=rngs)
    self.has_projection = stride != 1 or in_features != out_features
    if self.has_projection:
      self.shortcut = layers.conv(
        in_features, out_features, 1, stride=stride, dtype=dtype, rngs=rngs
      )
      self.shortcut_bn = layers.batch_norm(out_features, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, out]`, rounded up."""
    y = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    y = layers.normalize(self.bn2, self.conv2(y), train=train)
    if self.has_projection:
      x = layers.normalize(self.shortcut_bn, self.shortcut(x), train=train)
    return nnx.relu(x + y)


class ResNetCifar(nnx.Module):
  """A residual network of basic blocks with a 3×3 stem.

  Stage `i` has `width * 2**i` neurons per layer; every stage but the first halves the
  resolution in its first block. Convolutions are He-normal by fan-out and have no bias.
  Parameter paths: `conv1/kernel`, `bn1/scale`, `layer1/0/conv1/kernel`, `layer1/0/bn1/scale`,
  `layer2/0/shortcut/kernel`, `layer2/0/shortcut_bn/scale`, ..., `head/kernel`, `head/bias`.
  """

  def __init__(
    self,
    stage_sizes: Sequence[int] = (2, 2, 2, 2),
    width: int = 64,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      stage_sizes: blocks of each stage.
      width: neurons per layer of the first stage.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters are float32.
    """
    self.conv1 = layers.conv(image_shape[-1], width, 3, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(width, rngs=rngs)
    self.stage_names = tuple(f"layer{i + 1}" for i in range(len(stage_sizes)))
    in_features = width
    for i, (name, num_blocks) in enumerate(zip(self.stage_names, stage_sizes, strict=True)):
      out_features = width * 2**i
      blocks: nnx.List[BasicBlock] = nnx.List()
      for j in range(num_blocks):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(BasicBlock(in_features, out_features, stride=stride, dtype=dtype, rngs=rngs))
        in_features = out_features
      setattr(self, name, blocks)
    self.head = layers.head(in_features, num_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`.

    Args:
      x: `[B, H, W, C]` float.
      train: normalise by the batch and update the running statistics.
      rngs: unused, the network has no dropout.
    """
    del rngs
    x = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    for name in self.stage_names:
      for block in getattr(self, name):
        x = block(x, train=train)
    return self.head(layers.mean_pool(x)).astype(jnp.float32)


resnet18 = functools.partial(ResNetCifar, stage_sizes=(2, 2, 2, 2), width=64)
"""The CIFAR ResNet-18: 21 layers with kernels, 11,173,962 parameters at 10 classes."""
