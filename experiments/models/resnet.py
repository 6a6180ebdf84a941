"""Residual networks of bottleneck blocks for ImageNet: ResNet-50 and its deeper sisters.

He et al. (arXiv:1512.03385) in the form called v1.5, which torchvision and the sparse training
papers use: a stage halves the resolution in the 3×3 convolution of its first block, not in the
1×1 convolution before it.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers

EXPANSION = 4
"""Channels that a block puts out, in units of its inner width."""


class BottleneckBlock(nnx.Module):
  """A 1×1, a 3×3 and a 1×1 convolution beside a shortcut, projected where shapes differ."""

  def __init__(
    self, in_features: int, width: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    out_features = EXPANSION * width
    self.conv1 = layers.conv(in_features, width, 1, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(width, rngs=rngs)
    self.conv2 = layers.conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn2 = layers.batch_norm(width, rngs=rngs)
    self.conv3 = layers.conv(width, out_features, 1, dtype=dtype, rngs=rngs)
    self.bn3 = layers.batch_norm(out_features, rngs=rngs)
    self.has_projection = stride != 1 or in_features != out_features
    if self.has_projection:
      self.shortcut = layers.conv(
        in_features, out_features, 1, stride=stride, dtype=dtype, rngs=rngs
      )
      self.shortcut_bn = layers.batch_norm(out_features, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, 4 * width]`, rounded up."""
    y = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    y = nnx.relu(layers.normalize(self.bn2, self.conv2(y), train=train))
    y = layers.normalize(self.bn3, self.conv3(y), train=train)
    if self.has_projection:
      x = layers.normalize(self.shortcut_bn, self.shortcut(x), train=train)
    return nnx.relu(x + y)


class ResNet(nnx.Module):
  """A residual network of bottleneck blocks with a 7×7 stem and max-pooling.

  Blocks of stage `i` are `width * 2**i` wide inside and put out four times as many channels; every
  stage but the first halves the resolution. Convolutions are He-normal by fan-out and have no
  bias. Parameter paths: `conv1/kernel`, `bn1/scale`, `layer1/0/conv1/kernel`, `layer1/0/bn1/scale`,
  `layer1/0/shortcut/kernel`, `layer1/0/shortcut_bn/scale`, ..., `head/kernel`, `head/bias`.
  """

  def __init__(
    self,
    stage_sizes: Sequence[int] = (3, 4, 6, 3),
    width: int = 64,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
  ):
    """Creates the parameters.

    Args:
      stage_sizes: blocks of each stage; (3, 4, 23, 3) is ResNet-101.
      width: channels of the stem and inside the blocks of the first stage.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether to recompute blocks in the backward pass, see `layers.run_block`.
    """
    self.remat = remat
    self.conv1 = layers.conv(image_shape[-1], width, 7, stride=2, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(width, rngs=rngs)
    self.stage_names = tuple(f"layer{i + 1}" for i in range(len(stage_sizes)))
    in_features = width
    for i, (name, num_blocks) in enumerate(zip(self.stage_names, stage_sizes, strict=True)):
      blocks: nnx.List[BottleneckBlock] = nnx.List()
      for j in range(num_blocks):
        stride = 2 if i > 0 and j == 0 else 1
        blocks.append(
          BottleneckBlock(in_features, width * 2**i, stride=stride, dtype=dtype, rngs=rngs)
        )
        in_features = EXPANSION * width * 2**i
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
    x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for name in self.stage_names:
      for block in getattr(self, name):
        x = layers.run_block(block, x, train=train, remat=self.remat)
    return self.head(layers.mean_pool(x)).astype(jnp.float32)


resnet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), width=64)
"""ResNet-50: 54 layers with kernels, 25,557,032 parameters for 1000 classes."""
