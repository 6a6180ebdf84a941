"""Layers that the convolutional models share.

Plain Flax layers with this project's settings; nothing here knows of sparsity.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

# He et al. (2015), scaled by the fan-out so that gradients keep their variance. Truncated at two
# standard deviations as in `he_normal`; the plain normal is rounded otherwise under jit.
_he_normal_fan_out = nnx.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")


def conv(
  in_features: int,
  out_features: int,
  size: int,
  *,
  stride: int = 1,
  groups: int = 1,
  use_bias: bool = False,
  dtype: DTypeLike,
  rngs: nnx.Rngs,
) -> nnx.Conv:
  """Builds a square convolution, kernel `[size, size, in / groups, out]`, He-normal by fan-out.

  The padding is `size // 2` on all sides, as in PyTorch. Flax's "SAME" pads a strided
  convolution on one side only. A bias starts at 0.
  """
  return nnx.Conv(
    in_features,
    out_features,
    (size, size),
    strides=stride,
    padding=((size // 2, size // 2),) * 2,
    feature_group_count=groups,
    use_bias=use_bias,
    kernel_init=_he_normal_fan_out,
    dtype=dtype,
    rngs=rngs,
  )


def batch_norm(
  num_features: int, *, momentum: float = 0.9, epsilon: float = 1e-5, rngs: nnx.Rngs
) -> nnx.BatchNorm:
  """Builds a batch normalisation that keeps `momentum` of its running statistics per step.

  0.9 is PyTorch's momentum of 0.1, up to the running variance: PyTorch averages the unbiased
  estimate, Flax the biased one.
  """
  return nnx.BatchNorm(
    num_features, momentum=momentum, epsilon=epsilon, dtype=jnp.float32, rngs=rngs
  )


def residual_stages(
  model: nnx.Module,
  block: Callable[..., nnx.Module],
  in_features: int,
  sizes: Sequence[tuple[int, int]],
) -> tuple[str, ...]:
  """Sets `model.layer1`, `model.layer2` and on to lists of blocks; returns these names.

  Args:
    model: is changed.
    block: `(in_features, out_features, stride=...) -> module`. The first of each stage but the
      first stage has stride 2.
    in_features: neurons that feed the first block.
    sizes: of each stage the number of blocks and of their output's neurons.
  """
  for i, (num_blocks, out_features) in enumerate(sizes):
    blocks: nnx.List[nnx.Module] = nnx.List()
    for j in range(num_blocks):
      blocks.append(block(in_features, out_features, stride=2 if i > 0 and j == 0 else 1))
      in_features = out_features
    setattr(model, f"layer{i + 1}", blocks)
  return tuple(f"layer{i + 1}" for i in range(len(sizes)))


def share_batch_statistics(model: nnx.Module, axis_name: str) -> None:
  """Lets every batch normalisation of a model take its statistics over an axis of devices.

  Args:
    model: is changed.
    axis_name: that of `jax.pmap`.
  """
  for _, module in nnx.iter_modules(model):
    if isinstance(module, nnx.BatchNorm):
      module.axis_name = axis_name


def normalize(norm: nnx.BatchNorm, x: jax.Array, *, train: bool) -> jax.Array:
  """Applies `norm` in float32 whatever the compute type, and returns the type of `x`.

  In bfloat16 the running statistics themselves would be rounded in evaluation.
  """
  return norm(x, use_running_average=not train).astype(x.dtype)


def run_block(block: nnx.Module, x: jax.Array, *, train: bool, remat: bool) -> jax.Array:
  """Computes `block(x, train=train)`.

  Args:
    block: a part of a model.
    x: its input.
    train: whether to train.
    remat: whether the backward pass computes the inside of the block once more instead of holding
      it: a third more work, for memory that no longer grows with what is in a block.
  """

  def call(block, x):
    return block(x, train=train)

  return nnx.remat(call)(block, x) if remat else call(block, x)


def head(in_features: int, num_classes: int, *, dtype: DTypeLike, rngs: nnx.Rngs) -> nnx.Linear:
  """Builds the classifier: LeCun-normal kernel `[in, classes]`, zero bias."""
  return nnx.Linear(in_features, num_classes, dtype=dtype, rngs=rngs)


def mean_pool(x: jax.Array) -> jax.Array:
  """Averages `[B, H, W, C]` over all positions to `[B, C]`."""
  return jnp.mean(x, axis=(1, 2))
