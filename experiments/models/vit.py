"""Vision transformers (Dosovitskiy et al., arXiv:2010.11929) as torchvision builds ViT-B/16.

Query, key and value are three kernels here. In PyTorch they are one of three times as many neurons,
which the authors of SRigL prune as one layer: their 50 layers are 74 here. A uniform distribution
gives both the same fan-ins. Erdős–Rényi-Kernel gives the three more than the one (at 90 %: 102
inputs, not 76) and the rest less, and each of the three ranks its own weights for saliency.

`srigl(sparse=all_but("attention"))`, in a config `config.method.dense = ("attention",)`, leaves all
projections of attention dense; `all_but("query", "key", "value")` those that the authors' code can
leave dense. They count toward the target all the same. Where they alone exceed it (q, k and v do
above 75 % sparsity), a uniform distribution gives the other layers the target itself, with a
warning, and Erdős–Rényi-Kernel is refused.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.models import layers

_glorot = nnx.initializers.glorot_uniform()
# PyTorch draws query, key and value as one kernel, whose fan-out counts all three.
_fused_glorot = nnx.initializers.variance_scaling(0.5, "fan_avg", "uniform")
# PyTorch's default of a linear layer: uniform within 1 / sqrt(fan-in).
_torch_default = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _layer_norm(features: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
  return nnx.LayerNorm(features, epsilon=1e-6, dtype=jnp.float32, rngs=rngs)


class Attention(nnx.Module):
  """Multi-head self-attention; head `i` reads neurons `i * width / heads` and on of q, k and v."""

  def __init__(self, width: int, num_heads: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    self.num_heads = num_heads
    linear = functools.partial(nnx.Linear, width, width, dtype=dtype, rngs=rngs)
    self.query = linear(kernel_init=_fused_glorot)
    self.key = linear(kernel_init=_fused_glorot)
    self.value = linear(kernel_init=_fused_glorot)
    self.out = linear(kernel_init=_torch_default)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, width]` to the same shape; `T` tokens attend to each other."""
    heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
    q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))
    return self.out(jax.nn.dot_product_attention(q, k, v).reshape(x.shape))


class MLPBlock(nnx.Module):
  """Two layers with GELU between them, the exact one."""

  def __init__(self, width: int, mlp_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
    small = nnx.initializers.normal(1e-6)
    linear = functools.partial(
      nnx.Linear, kernel_init=_glorot, bias_init=small, dtype=dtype, rngs=rngs
    )
    self.up = linear(width, mlp_width)
    self.down = linear(mlp_width, width)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, width]` to the same shape."""
    return self.down(nnx.gelu(self.up(x), approximate=False))


class EncoderBlock(nnx.Module):
  """Normalise and attend, normalise and transform, each beside a shortcut."""

  def __init__(
    self, width: int, num_heads: int, mlp_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    self.ln1 = _layer_norm(width, rngs=rngs)
    self.attention = Attention(width, num_heads, dtype=dtype, rngs=rngs)
    self.ln2 = _layer_norm(width, rngs=rngs)
    self.mlp = MLPBlock(width, mlp_width, dtype=dtype, rngs=rngs)

  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Maps `[B, T, width]` to the same shape; training changes nothing."""
    del train
    x = x + self.attention(self.ln1(x).astype(x.dtype))
    return x + self.mlp(self.ln2(x).astype(x.dtype))


class VisionTransformer(nnx.Module):
  """Patches and a class token through encoder blocks; the class token is classified.

  Without dropout, and the head starts at zero. Parameter paths: `conv_proj/kernel`, `class_token`,
  `pos_embedding`, `blocks/0/ln1/scale`, `blocks/0/attention/query/kernel` (also key, value, out),
  `blocks/0/mlp/up/kernel`, `blocks/0/mlp/down/kernel`, ..., `ln/scale`, `head/kernel`.
  """

  def __init__(
    self,
    patch_size: int = 16,
    depth: int = 12,
    width: int = 768,
    num_heads: int = 12,
    mlp_width: int = 3072,
    *,
    num_classes: int,
    image_shape: tuple[int, int, int],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    remat: bool = False,
  ):
    """Creates the parameters; arguments not listed are those of `models.build`.

    Args:
      patch_size: height and width of a patch.
      depth: number of encoder blocks.
      width: size of a token.
      num_heads: attention heads.
      mlp_width: neurons between the two layers of a block's MLP.
      num_classes: number of logits.
      image_shape: `(H, W, C)` of one input; the position embedding is made for it.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters are float32.
      remat: whether to recompute blocks in the backward pass, see `layers.run_block`.

    Raises:
      ValueError: if patches do not tile the image, or heads do not divide the width.
    """
    height, image_width, channels = image_shape
    if height % patch_size or image_width % patch_size:
      raise ValueError(
        f"patch_size is {patch_size}; it must divide the image's height and width, {height} and "
        f"{image_width}."
      )
    if width % num_heads:
      raise ValueError(f"num_heads is {num_heads}; it must divide the width, {width}.")
    self.remat = remat
    self.conv_proj = nnx.Conv(
      channels,
      width,
      (patch_size, patch_size),
      strides=patch_size,
      padding="VALID",
      kernel_init=nnx.initializers.lecun_normal(),
      dtype=dtype,
      rngs=rngs,
    )
    num_tokens = 1 + (height // patch_size) * (image_width // patch_size)
    self.class_token = nnx.Param(jnp.zeros((1, 1, width)))
    embed = nnx.initializers.normal(0.02)
    self.pos_embedding = nnx.Param(embed(rngs.params(), (1, num_tokens, width), jnp.float32))
    self.blocks = nnx.List(
      EncoderBlock(width, num_heads, mlp_width, dtype=dtype, rngs=rngs) for _ in range(depth)
    )
    self.ln = _layer_norm(width, rngs=rngs)
    zeros = nnx.initializers.zeros
    self.head = nnx.Linear(width, num_classes, kernel_init=zeros, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: jax.Array, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> jax.Array:
    """Computes float32 logits `[B, classes]` of images `[B, H, W, C]`."""
    del rngs
    x = self.conv_proj(x)
    patches = x.reshape(x.shape[0], -1, x.shape[-1])  # row by row
    token = jnp.broadcast_to(self.class_token[...], (x.shape[0], 1, x.shape[-1]))
    x = jnp.concatenate([token.astype(x.dtype), patches], axis=1)
    x = x + self.pos_embedding[...].astype(x.dtype)
    for block in self.blocks:
      x = layers.run_block(block, x, train=train, remat=self.remat)
    return self.head(self.ln(x[:, 0])).astype(jnp.float32)


vit_b16 = functools.partial(
  VisionTransformer, patch_size=16, depth=12, width=768, num_heads=12, mlp_width=3072
)
"""ViT-B/16: 74 layers with kernels (50 with q, k and v as one), 86,567,656 parameters for 1000."""
