"""Flax NNX modules that take the place of a model's layers once it is condensed.

This module, `nnx_layers` and `nnx_trace` are all that knows Flax. They are imported when a model
is condensed, not before.
"""

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

  def __init__(self, layer: Prepared, like: nnx.Linear | nnx.LinearGeneral):
    self.layer = CondensedState(layer)
    self.axis = tuple(like.axis) if isinstance(like, nnx.LinearGeneral) else (-1,)
    self.dtype = like.dtype

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., I]` to `[..., N]`, each of them several axes if the layer had several."""
    _check_sharding(out_sharding)
    layer = self.layer.get_value()
    shape, neurons = layer.condensed.kernel_shape, layer.condensed.neuron_axes
    axes = sorted(a % inputs.ndim for a in self.axis)
    x = jnp.moveaxis(_promote(inputs, layer, self.dtype), axes, range(-len(axes), 0))
    lead, last = x.shape[: x.ndim - len(axes)], x.shape[x.ndim - len(axes) :]
    if last != shape[: neurons[0]]:
      raise ValueError(
        f"The input's axes {self.axis} must have the sizes {shape[: neurons[0]]}, not {last}."
      )
    y = condensed_matmul(x.reshape(*lead, -1), layer)
    return y.reshape(*lead, *(shape[a] for a in neurons))


class CondensedConv(nnx.Module):
  """Computes what an `nnx.Conv` computed.

  Attributes:
    layer: the weights, a `CondensedState`.
    strides, padding, input_dilation, kernel_dilation, feature_group_count: as of `nnx.Conv`.
    dtype: compute type, or None for that of inputs and weights.
  """

  def __init__(self, layer: Prepared, like: nnx.Conv):
    self.layer = CondensedState(layer)
    self.strides = _static(like.strides)
    self.padding = _static(like.padding)
    self.input_dilation = _static(like.input_dilation)
    self.kernel_dilation = _static(like.kernel_dilation)
    self.feature_group_count = like.feature_group_count
    self.dtype = like.dtype

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., *positions, channels]` to `[..., *positions, N]`."""
    _check_sharding(out_sharding)
    layer = self.layer.get_value()
    return condensed_conv(
      _promote(inputs, layer, self.dtype),
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


def _static(value: Any) -> Any:
  """Lists as tuples, because attributes of a module are compared; None, as Flax has it, as 1."""
  if isinstance(value, (list, tuple)):
    return tuple(map(_static, value))
  return 1 if value is None else value


def _check_sharding(out_sharding: Any) -> None:
  if out_sharding is not None:
    raise ValueError(f"A condensed layer takes no out_sharding; got {out_sharding!r}.")


def _promote(x: jax.Array, layer: Prepared, dtype: Any) -> jax.Array:
  """Inputs in the type in which the layer computes, as Flax chooses it."""
  condensed = layer.condensed
  parts = [a.dtype for a in (condensed.values, condensed.bias) if a is not None]
  return x.astype(dtype or jnp.result_type(x.dtype, *parts))
