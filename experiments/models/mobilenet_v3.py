"""MobileNetV3, small and large (Howard et al., arXiv:1905.02244), as torchvision builds them.

Without dropout in the classifier, as the authors of SRigL train them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers


class Block(NamedTuple):
  """One row of the paper's tables 1 and 2.

  Attributes:
    size: of the depthwise window.
    expanded: channels inside of the block.
    out: channels of its output.
    squeezes: whether its channels are weighted by squeeze-and-excitation.
    hard_swish: whether it activates by hard-swish; else by ReLU.
    stride: of the depthwise convolution.
  """

  size: int
  expanded: int
  out: int
  squeezes: bool
  hard_swish: bool
  stride: int


SMALL = (
  Block(3, 16, 16, True, False, 2),
  Block(3, 72, 24, False, False, 2),
  Block(3, 88, 24, False, False, 1),
  Block(5, 96, 40, True, True, 2),
  Block(5, 240, 40, True, True, 1),
  Block(5, 240, 40, True, True, 1),
  Block(5, 120, 48, True, True, 1),
  Block(5, 144, 48, True, True, 1),
  Block(5, 288, 96, True, True, 2),
  Block(5, 576, 96, True, True, 1),
  Block(5, 576, 96, True, True, 1),
)
LARGE = (
  Block(3, 16, 16, False, False, 1),
  Block(3, 64, 24, False, False, 2),
  Block(3, 72, 24, False, False, 1),
  Block(5, 72, 40, True, False, 2),
  Block(5, 120, 40, True, False, 1),
  Block(5, 120, 40, True, False, 1),
  Block(3, 240, 80, False, True, 2),
  Block(3, 200, 80, False, True, 1),
  Block(3, 184, 80, False, True, 1),
  Block(3, 184, 80, False, True, 1),
  Block(3, 480, 112, True, True, 1),
  Block(3, 672, 112, True, True, 1),
  Block(5, 672, 160, True, True, 2),
  Block(5, 960, 160, True, True, 1),
  Block(5, 960, 160, True, True, 1),
)
_STEM = 16  # channels


# Torchvision's settings for this network.
_batch_norm = functools.partial(layers.batch_norm, momentum=0.99, epsilon=1e-3)


class SqueezeExcite(nnx.Module):
  """Weights channels in 0..1 by two 1×1 convolutions of their means."""

  def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    squeezed = _multiple_of_8(features // 4)
    self.fc1 = layers.conv(features, squeezed, 1, use_bias=True, dtype=dtype, rngs=rngs)
    self.fc2 = layers.conv(squeezed, features, 1, use_bias=True, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, features]` to the same shape."""
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    return x * nnx.hard_sigmoid(self.fc2(nnx.relu(self.fc1(mean))))


class InvertedResidual(nnx.Module):
  """Widens by a 1×1, filters by a depthwise and narrows by a 1×1 convolution, beside the input."""

  def __init__(self, in_features: int, row: Block, *, dtype: DTypeLike, rngs: nnx.Rngs):
    inner = row.expanded
    self.activation = nnx.hard_swish if row.hard_swish else nnx.relu
    self.expands = inner != in_features
    if self.expands:
      self.expand = layers.conv(in_features, inner, 1, dtype=dtype, rngs=rngs)
      self.expand_bn = _batch_norm(inner, rngs=rngs)
    self.depthwise = layers.conv(
      inner, inner, row.size, stride=row.stride, groups=inner, dtype=dtype, rngs=rngs
    )
    self.depthwise_bn = _batch_norm(inner, rngs=rngs)
    self.squeezes = row.squeezes
    if self.squeezes:
      self.se = SqueezeExcite(inner, dtype=dtype, rngs=rngs)
    self.project = layers.conv(inner, row.out, 1, dtype=dtype, rngs=rngs)
    self.project_bn = _batch_norm(row.out, rngs=rngs)
    self.has_shortcut = row.stride == 1 and in_features == row.out

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, H, W, in]` to `[B, H / stride, W / stride, out]`, rounded up."""
    y = x
    if self.expands:
      y = self.activation(layers.normalize(self.expand_bn, self.expand(y), train=train))
    y = self.activation(layers.normalize(self.depthwise_bn, self.depthwise(y), train=train))
    if self.squeezes:
      y = self.se(y)
    y = layers.normalize(self.project_bn, self.project(y), train=train)
    return x + y if self.has_shortcut else y


class MobileNetV3(nnx.Module):
  """A stem, inverted residual blocks, a last 1×1 convolution, and a classifier of two layers.

  Convolutions are He-normal by fan-out; only those of squeeze-and-excitation have a bias. The
  classifier is normal with standard deviation 0.01. Parameter paths: `conv1/kernel`, `bn1/scale`,
  `blocks/0/expand/kernel`, `blocks/0/depthwise/kernel`, `blocks/0/se/fc1/kernel`,
  `blocks/0/project/kernel`, ..., `conv_last/kernel`, `hidden/kernel`, `head/kernel`.
  """

  def __init__(
    self,
    blocks: Sequence[Block] = LARGE,
    hidden: int = 1280,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
  ):
    """Creates the parameters; arguments not listed are those of `models.build`.

    Args:
      blocks: rows of `Block`.
      hidden: neurons of the layer before the last.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether to recompute blocks in the backward pass, see `layers.run_block`.
    """
    self.remat = remat
    self.conv1 = layers.conv(image_shape[-1], _STEM, 3, stride=2, dtype=dtype, rngs=rngs)
    self.bn1 = _batch_norm(_STEM, rngs=rngs)
    self.blocks: nnx.List[InvertedResidual] = nnx.List()
    features = _STEM
    for row in (Block(*row) for row in blocks):
      self.blocks.append(InvertedResidual(features, row, dtype=dtype, rngs=rngs))
      features = row.out
    last = 6 * features
    self.conv_last = layers.conv(features, last, 1, dtype=dtype, rngs=rngs)
    self.bn_last = _batch_norm(last, rngs=rngs)
    init = nnx.initializers.normal(0.01)
    linear = functools.partial(nnx.Linear, kernel_init=init, dtype=dtype, rngs=rngs)
    self.hidden = linear(last, hidden)
    self.head = linear(hidden, num_classes)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`."""
    del rngs
    x = nnx.hard_swish(layers.normalize(self.bn1, self.conv1(x), train=train))
    for block in self.blocks:
      x = layers.run_block(block, x, train=train, remat=self.remat)
    x = nnx.hard_swish(layers.normalize(self.bn_last, self.conv_last(x), train=train))
    x = nnx.hard_swish(self.hidden(layers.mean_pool(x)))
    return self.head(x).astype(jnp.float32)


def _multiple_of_8(channels: int) -> int:
  """The nearest multiple of 8, at least 8 and at least 0.9 of what is asked for."""
  nearest = max(8, (channels + 4) // 8 * 8)
  return nearest + 8 if nearest < 0.9 * channels else nearest


mobilenet_v3_small = functools.partial(MobileNetV3, blocks=SMALL, hidden=1024)
"""MobileNetV3-small: 54 layers with kernels, 2,542,856 parameters for 1000 classes."""

mobilenet_v3_large = functools.partial(MobileNetV3, blocks=LARGE, hidden=1280)
"""MobileNetV3-large: 64 layers with kernels, 5,483,032 parameters for 1000 classes."""
