"""Flax NNX modules that take the place of a model's layers once it is condensed.

This module, `nnx_layers` and `nnx_trace` are all that knows Flax. They are imported when a model
is condensed, not before.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from srigl_kernels import Prepared, condensed_conv, condensed_matmul


class CondensedState(nnx.Variable):
  """The variable that holds a condensed module's `Prepared` layer."""


class CondensedLinear(nnx.Module):
  """Computes what an `nnx.Linear` or `nnx.LinearGeneral` computed.

  Attributes:
    layer: the weights, a `CondensedState`.
    axis: axes of the input that the kernel's input axes run over.
    dtype: compute type, or None for that of inputs and weights.
  """

  def __init__(self, layer: Prepared, like: Any):
    self.layer = CondensedState(layer)
    self.axis = tuple(getattr(like, "axis", (-1,)))  # nnx.Linear has none
    self.dtype = like.dtype

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., I]` to `[..., N]`, each of them several axes if the layer had several."""
    check_sharding(out_sharding)
    layer = self.layer.get_value()
    condensed = layer.condensed
    x = promote(inputs, self.dtype, condensed.values, condensed.bias)
    product = lambda x: condensed_matmul(x, layer)
    return over_axes(product, x, self.axis, condensed.kernel_shape, condensed.neuron_axes)


class CondensedConv(nnx.Module):
  """Computes what an `nnx.Conv` computed.

  Attributes:
    layer: the weights, a `CondensedState`.
    strides, padding, input_dilation, kernel_dilation, feature_group_count: as of `nnx.Conv`.
    dtype: compute type, or None for that of inputs and weights.
  """

  def __init__(self, layer: Prepared, like: Any):
    self.layer = CondensedState(layer)
    self.strides = as_static(like.strides)
    self.padding = as_static(like.padding)
    self.input_dilation = as_static(like.input_dilation)
    self.kernel_dilation = as_static(like.kernel_dilation)
    self.feature_group_count = like.feature_group_count
    self.dtype = like.dtype

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., *positions, channels]` to `[..., *positions, N]`."""
    check_sharding(out_sharding)
    layer = self.layer.get_value()
    return condensed_conv(
      promote(inputs, self.dtype, layer.condensed.values, layer.condensed.bias),
      layer,
      strides=self.strides,
      padding=self.padding,
      input_dilation=self.input_dilation,
      kernel_dilation=self.kernel_dilation,
      feature_group_count=self.feature_group_count,
    )


class FoldedBatchNorm(nnx.Module):
  """What is left of an `nnx.BatchNorm` that is now part of the layer before it: a type.

  Attributes:
    dtype: of the output, or None for that of input and parameters.
    param_dtype: of the parameters.
  """

  def __init__(self, like: nnx.BatchNorm):
    parts = (like.mean, like.var, like.scale, like.bias)
    self.dtype = like.dtype
    self.param_dtype = jnp.result_type(*(x.get_value().dtype for x in parts if x is not None))

  def __call__(
    self, x: jax.Array, use_running_average: bool | None = None, *, mask: Any = None
  ) -> jax.Array:
    """Returns `x`.

    Raises:
      ValueError: if asked for the statistics of the batch.
    """
    if use_running_average is False:
      raise ValueError(
        "This batch norm is folded into the layer before it and can only use its running "
        "statistics. Call the model in inference mode; to train, use the model before condensing."
      )
    return x.astype(self.dtype or jnp.result_type(x.dtype, self.param_dtype))


def as_static(value: Any) -> Any:
  """Lists as tuples, because attributes of a module are compared; None, as Flax has it, as 1."""
  if isinstance(value, (list, tuple)):
    return tuple(map(as_static, value))
  return 1 if value is None else value


def check_sharding(out_sharding: Any) -> None:
  """Raises a ValueError if one is given."""
  if out_sharding is not None:
    raise ValueError(f"A condensed layer takes no out_sharding; got {out_sharding!r}.")


def promote(x: jax.Array, dtype: Any, *parts: jax.Array | None) -> jax.Array:
  """Inputs in the type in which a layer of these parts computes, as Flax chooses it."""
  return x.astype(dtype or jnp.result_type(x.dtype, *(a.dtype for a in parts if a is not None)))


def over_axes(
  product: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  axis: tuple[int, ...],
  kernel_shape: tuple[int, ...],
  neuron_axes: tuple[int, ...],
) -> jax.Array:
  """A product `[..., I] -> [..., N]` over the axes of x that the kernel's input axes run over.

  Raises:
    ValueError: if these axes have other sizes than the kernel's.
  """
  axes = sorted(a % x.ndim for a in axis)
  x = jnp.moveaxis(x, axes, range(-len(axes), 0))
  lead, last = x.shape[: x.ndim - len(axes)], x.shape[x.ndim - len(axes) :]
  if last != kernel_shape[: neuron_axes[0]]:
    raise ValueError(
      f"The input's axes {axis} must have the sizes {kernel_shape[: neuron_axes[0]]}, not {last}."
    )
  y = product(x.reshape(*lead, -1))
  return y.reshape(*lead, *(kernel_shape[a] for a in neuron_axes))
