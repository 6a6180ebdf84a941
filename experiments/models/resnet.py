"""Residual networks (He et al., arXiv:1512.03385), for ImageNet and for small images.

ResNet-50 and its deeper sisters have the form called v1.5, which torchvision and the sparse
training papers use: a stage halves the resolution in the 3×3 convolution of its first block, not in
the 1×1 convolution before it. ResNet-18 is as it is used on CIFAR.
"""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers


class _Block(nnx.Module):
  """What both kinds of block share: the shortcut, projected where shapes differ."""

  def _add_shortcut(self, in_features, out_features, *, stride, dtype, rngs) -> None:
    self.has_projection = stride != 1 or in_features != out_features
    if self.has_projection:
      self.shortcut = layers.conv(
        in_features, out_features, 1, stride=stride, dtype=dtype, rngs=rngs
      )
      self.shortcut_bn = layers.batch_norm(out_features, rngs=rngs)

  def _join(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
    """The output, of a block's input and of what its convolutions make of it."""
    if self.has_projection:
      x = layers.normalize(self.shortcut_bn, self.shortcut(x), train=train)
    return nnx.relu(x + y)


class BasicBlock(_Block):
  """Two 3×3 convolutions beside a shortcut."""

  def __init__(
    self, in_features: int, out_features: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    self.conv1 = layers.conv(in_features, out_features, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(out_features, rngs=rngs)
    self.conv2 = layers.conv(out_features, out_features, 3, dtype=dtype, rngs=rngs)
    self.bn2 = layers.batch_norm(out_features, rngs=rngs)
    self._add_shortcut(in_features, out_features, stride=stride, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, out]`, rounded up."""
    y = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    y = layers.normalize(self.bn2, self.conv2(y), train=train)
    return self._join(x, y, train=train)


class BottleneckBlock(_Block):
  """A 1×1, a 3×3 and a 1×1 convolution beside a shortcut, a quarter as wide inside as outside."""

  def __init__(
    self, in_features: int, out_features: int, *, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    width = out_features // 4
    self.conv1 = layers.conv(in_features, width, 1, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(width, rngs=rngs)
    self.conv2 = layers.conv(width, width, 3, stride=stride, dtype=dtype, rngs=rngs)
    self.bn2 = layers.batch_norm(width, rngs=rngs)
    self.conv3 = layers.conv(width, out_features, 1, dtype=dtype, rngs=rngs)
    self.bn3 = layers.batch_norm(out_features, rngs=rngs)
    self._add_shortcut(in_features, out_features, stride=stride, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, out]`, rounded up."""
    y = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    y = nnx.relu(layers.normalize(self.bn2, self.conv2(y), train=train))
    y = layers.normalize(self.bn3, self.conv3(y), train=train)
    return self._join(x, y, train=train)


class ResNet(nnx.Module):
  """A residual network of bottleneck blocks with a strided 7×7 stem and max-pooling.

  Blocks of stage `i` are `width * 2**i` wide inside and have four times as many output channels;
  every stage but the first halves the resolution. Convolutions are He-normal by fan-out and have no
  bias. Parameter paths: `conv1/kernel`, `bn1/scale`, `layer1/0/conv1/kernel`, `layer1/0/bn1/scale`,
  `layer1/0/shortcut/kernel`, `layer1/0/shortcut_bn/scale`, ..., `head/kernel`, `head/bias`.
  """

  _block: ClassVar[Any] = BottleneckBlock
  _expansion: ClassVar[int] = 4
  _for_small_images: ClassVar[bool] = False

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
    """Creates the parameters; arguments not listed are those of `models.build`.

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
    size, stride = (3, 1) if self._for_small_images else (7, 2)
    self.conv1 = layers.conv(image_shape[-1], width, size, stride=stride, dtype=dtype, rngs=rngs)
    self.bn1 = layers.batch_norm(width, rngs=rngs)
    block = functools.partial(self._block, dtype=dtype, rngs=rngs)
    sizes = [(n, self._expansion * width * 2**i) for i, n in enumerate(stage_sizes)]
    self.stage_names = layers.residual_stages(self, block, width, sizes)
    self.head = layers.head(sizes[-1][1], num_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`."""
    del rngs
    x = nnx.relu(layers.normalize(self.bn1, self.conv1(x), train=train))
    if not self._for_small_images:
      x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    for name in self.stage_names:
      for block in getattr(self, name):
        x = layers.run_block(block, x, train=train, remat=self.remat)
    return self.head(layers.mean_pool(x)).astype(jnp.float32)


class ResNetCifar(ResNet):
  """The same of basic blocks, whose stage `i` has `width * 2**i` neurons per layer.

  The stem is 3×3 without max-pooling, so that the first stage still sees 32×32 positions.
  """

  _block = BasicBlock
  _expansion = 1
  _for_small_images = True


resnet50 = functools.partial(ResNet, stage_sizes=(3, 4, 6, 3), width=64)
"""ResNet-50: 54 layers with kernels, 25,557,032 parameters for 1000 classes."""

resnet18 = functools.partial(ResNetCifar, stage_sizes=(2, 2, 2, 2), width=64)
"""The CIFAR ResNet-18: 21 layers with kernels, 11,173,962 parameters at 10 classes."""
