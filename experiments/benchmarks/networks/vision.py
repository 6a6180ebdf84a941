"""Convolutional networks, a vision transformer and a mixer, in NNX and Linen; small."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks.networks.network import Network, floats, from_linen, from_nnx
from experiments.models.mobilenet_v3 import Block, MobileNetV3
from experiments.models.resnet import ResNet
from experiments.models.vit import VisionTransformer


def resnet50() -> Network:
  """ResNet-50 with 8 channels in the place of 64, for 32×32 images."""
  model = ResNet(width=8, num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
  return from_nnx(model, floats(32, 32, 3), has_train=True)


def mobilenet_v3() -> Network:
  """Five blocks of MobileNet-V3, for 32×32 images."""
  blocks = (
    Block(3, 16, 16, True, False, 2),
    Block(3, 32, 24, False, False, 2),
    Block(3, 40, 24, False, False, 1),
    Block(5, 48, 32, True, True, 2),
    Block(5, 64, 32, True, True, 1),
  )
  model = MobileNetV3(blocks, 64, num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
  return from_nnx(model, floats(32, 32, 3), has_train=True)


def vit() -> Network:
  """A vision transformer of two blocks, for 16×16 images."""
  model = VisionTransformer(
    4, 2, 32, 4, 64, num_classes=10, image_shape=(16, 16, 3), rngs=nnx.Rngs(0)
  )
  return from_nnx(model, floats(16, 16, 3), has_train=True)


class MixerBlock(nnx.Module):
  """Mixes tokens, then channels, each behind a norm and beside a shortcut."""

  def __init__(self, tokens: int, width: int, *, rngs: nnx.Rngs):
    self.norm1, self.norm2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
    self.tokens_up = nnx.Linear(tokens, 2 * tokens, rngs=rngs)
    self.tokens_down = nnx.Linear(2 * tokens, tokens, rngs=rngs)
    self.channels_up = nnx.Linear(width, 2 * width, rngs=rngs)
    self.channels_down = nnx.Linear(2 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, width]` to the same shape."""
    y = self.norm1(x).swapaxes(1, 2)
    x = x + self.tokens_down(nnx.gelu(self.tokens_up(y))).swapaxes(1, 2)
    return x + self.channels_down(nnx.gelu(self.channels_up(self.norm2(x))))


class Mixer(nnx.Module):
  """An MLP-Mixer."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.stem = nnx.Conv(3, 32, (4, 4), strides=4, rngs=rngs)
    self.blocks = nnx.List([MixerBlock(16, 32, rngs=rngs) for _ in range(2)])
    self.norm = nnx.LayerNorm(32, rngs=rngs)
    self.head = nnx.Linear(32, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits `[B, 10]` of images `[B, 16, 16, 3]`."""
    x = self.stem(x).reshape(len(x), -1, 32)
    for block in self.blocks:
      x = block(x)
    return self.head(self.norm(x).mean(1))


def mlp_mixer() -> Network:
  """MLP-Mixer for 16×16 images."""
  return from_nnx(Mixer(rngs=nnx.Rngs(0)), floats(16, 16, 3))


class ConvNeXtBlock(nnx.Module):
  """A depthwise convolution, and an MLP with global response normalisation, beside a shortcut."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    self.depthwise = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
    self.norm = nnx.LayerNorm(width, rngs=rngs)
    self.up = nnx.Linear(width, 4 * width, rngs=rngs)
    self.grn_gamma = nnx.Param(jnp.zeros((1, 1, 1, 4 * width)))
    self.grn_beta = nnx.Param(jnp.zeros((1, 1, 1, 4 * width)))
    self.down = nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, H, W, width]` to the same shape."""
    y = nnx.gelu(self.up(self.norm(self.depthwise(x))))
    size = jnp.sqrt(jnp.sum(y**2, (1, 2), keepdims=True) + 1e-6)
    scaled = y * size / (size.mean(-1, keepdims=True) + 1e-6)
    return x + self.down(y + self.grn_gamma[...] * scaled + self.grn_beta[...])


class ConvNeXt(nnx.Module):
  """Patches, blocks of ConvNeXt-V2, a classifier."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.stem = nnx.Conv(3, 16, (2, 2), strides=2, rngs=rngs)
    self.blocks = nnx.List([ConvNeXtBlock(16, rngs=rngs) for _ in range(2)])
    self.head = nnx.Linear(16, 10, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits `[B, 10]` of images `[B, 16, 16, 3]`."""
    x = self.stem(x)
    for block in self.blocks:
      x = block(x)
    return self.head(x.mean((1, 2)))


def convnext() -> Network:
  """ConvNeXt-V2 for 16×16 images; its norms of responses have four axes and are no layers."""
  return from_nnx(ConvNeXt(rngs=nnx.Rngs(0)), floats(16, 16, 3))


class UNet(nn.Module):
  """Two stages down, two up by transposed convolutions, with skip connections."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps images `[B, H, W, 1]` to the same shape."""
    conv = lambda n, name: nn.Conv(n, (3, 3), name=name)
    up = lambda n, name: nn.ConvTranspose(n, (2, 2), strides=(2, 2), name=name)
    first = nn.relu(conv(16, "down1")(x))
    second = nn.relu(conv(24, "down2")(nn.max_pool(first, (2, 2), (2, 2))))
    y = nn.relu(conv(32, "middle")(nn.max_pool(second, (2, 2), (2, 2))))
    y = jnp.concatenate([up(24, "up2")(y), second], -1)
    y = nn.relu(conv(24, "merge2")(y))
    y = jnp.concatenate([up(16, "up1")(y), first], -1)
    y = nn.relu(conv(16, "merge1")(y))
    return nn.Conv(1, (1, 1), name="head")(y)


def unet() -> Network:
  """U-Net in Linen for 16×16 images of one channel."""
  return from_linen(UNet(), floats(16, 16, 1))
