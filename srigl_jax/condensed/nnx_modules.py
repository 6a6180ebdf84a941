"""Flax NNX modules that take the place of a model's layers once it is condensed.

This module, `nnx_layers` and `nnx_trace` are all that knows Flax. They are imported when a model
is condensed, not before.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from srigl_jax.condensed.transposed_padding import transposed_padding
from srigl_kernels import Prepared, condensed_conv, condensed_matmul


class CondensedState(nnx.Variable):
  """The variable that holds a condensed module's `Prepared` layer."""


class CondensedLayer(nnx.Module):
  """What the layers have in common.

  Attributes:
    layer: the weights, a `CondensedState`; of a layer that is trained all but these.
    kernel: of a layer that is trained its values, an `nnx.Param`; else None.
    bias: of such a layer its bias, an `nnx.Param`, if it has one; else None.
    dtype: compute type, or None for that of inputs and weights.
  """

  def __init__(self, layer: Prepared, like: Any):
    values, bias = layer.condensed.values, layer.condensed.bias
    if layer.gradients:
      layer = _with_weights(layer, None, None)
    self.layer = CondensedState(layer)
    self.kernel = nnx.Param(values) if layer.gradients else nnx.data(None)
    self.bias = nnx.Param(bias) if layer.gradients and bias is not None else nnx.data(None)
    self.dtype = like.dtype

  @property
  def prepared(self) -> Prepared:
    """The layer with the weights that it has now."""
    layer = self.layer.get_value()
    if self.kernel is None:
      return layer
    return _with_weights(
      layer, self.kernel.get_value(), None if self.bias is None else self.bias.get_value()
    )

  def _promoted(self, inputs: jax.Array) -> tuple[jax.Array, Prepared]:
    """Inputs and weights in the types in which the layer computes."""
    layer = self.prepared
    values, bias = layer.condensed.values, layer.condensed.bias
    if self.dtype is not None and values.dtype != self.dtype and not layer.condensed.is_reduced:
      layer = _with_weights(layer, values.astype(self.dtype), bias)
    return promote(inputs, self.dtype, values, bias), layer


class CondensedLinear(CondensedLayer):
  """Computes what an `nnx.Linear` or `nnx.LinearGeneral` computed.

  Attributes:
    axis: axes of the input that the kernel's input axes run over.
  """

  def __init__(self, layer: Prepared, like: Any):
    super().__init__(layer, like)
    self.axis = tuple(getattr(like, "axis", (-1,)))  # nnx.Linear has none

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., I]` to `[..., N]`, each of them several axes if the layer had several."""
    check_sharding(out_sharding)
    x, layer = self._promoted(inputs)
    condensed = layer.condensed
    product = lambda x: condensed_matmul(x, layer)
    return over_axes(product, x, self.axis, condensed.kernel_shape, condensed.neuron_axes)


class CondensedConv(CondensedLayer):
  """Computes what an `nnx.Conv` or `nnx.ConvTranspose` computed.

  Attributes:
    strides, padding, input_dilation, kernel_dilation, feature_group_count: as of `nnx.Conv`.
  """

  def __init__(self, layer: Prepared, like: Any):
    super().__init__(layer, like)
    self.strides = as_static(like.strides)
    self.padding = as_static(like.padding)
    self.kernel_dilation = as_static(like.kernel_dilation)
    if isinstance(like, nnx.ConvTranspose):
      settings = (like.kernel_size, self.strides, self.padding, self.kernel_dilation)
      self.padding = transposed_padding(*settings)
      self.input_dilation, self.strides, self.feature_group_count = self.strides, 1, 1
    else:
      self.input_dilation = as_static(like.input_dilation)
      self.feature_group_count = like.feature_group_count

  def __call__(self, inputs: jax.Array, out_sharding: Any = None) -> jax.Array:
    """Maps `[..., *positions, channels]` to `[..., *positions, N]`."""
    check_sharding(out_sharding)
    x, layer = self._promoted(inputs)
    return condensed_conv(
      x,
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


def _with_weights(layer: Prepared, values: Any, bias: Any) -> Prepared:
  condensed = dataclasses.replace(layer.condensed, values=values, bias=bias)
  return dataclasses.replace(layer, condensed=condensed)


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
