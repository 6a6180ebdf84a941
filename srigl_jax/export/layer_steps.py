"""Layers as steps of a `Network`: condensed, dense, and element-wise factors."""

import math
from typing import Any

import numpy as np

from srigl_jax.export.network import Layer, Window, as_image
from srigl_kernels import Condensed
from srigl_kernels.precision import dequantize


def condensed_layer(item: Any, name: str, source: int, before: tuple[int, ...] | None) -> Layer:
  """A condensed linear layer of a list.

  Args:
    item: the layer.
    name: for messages and comments.
    source: number of the tensor that it reads.
    before: the shape of that, or None if it is the input.

  Raises:
    ValueError: if it is none, a convolution, or does not fit.
  """
  if not isinstance(item, Condensed):
    raise ValueError(
      f"An item of the list is a {type(item).__name__}; it must be a Condensed layer, from "
      "condense(kernel, mask, bias), or the name of an activation."
    )
  if len(item.kernel_shape) - len(item.neuron_axes) != 1 or item.values.ndim != 2:
    raise ValueError(
      f"The kernel of {name} has shape {item.kernel_shape}; in a list only linear layers `(in, "
      "out)` are exported. A network with convolutions is exported as a Flax NNX model."
    )
  if before is not None and before != (item.in_features,):
    raise ValueError(
      f"{name} reads {item.in_features} inputs, but the layer before it outputs {before[0]}."
    )
  shape = (item.out_features,)
  return from_condensed(item, name, source, shape, Window(), item.in_features)


def from_condensed(
  condensed: Condensed,
  name: str,
  source: int,
  shape: tuple[int, ...],
  window: Window,
  num_inputs: int,
  groups: int = 1,
) -> Layer:
  """A step of a condensed layer.

  Args:
    condensed: the layer; its bias may be None.
    name: its path in the model.
    source: number of the tensor that it reads.
    shape: of its output.
    window: of a convolution; of a linear layer the default.
    num_inputs: of a neuron when dense, those of all groups.
    groups: of a grouped convolution, whose indices count within the group's channels.
  """
  condensed = dequantize(condensed)
  values = np.asarray(condensed.values, np.float32)
  indices, active = (np.asarray(x, np.int64) for x in (condensed.indices, condensed.active))
  num_neurons = condensed.out_features
  indices = _ungrouped(indices, active, num_neurons, math.prod(window.size), num_inputs, groups)
  bias = np.zeros(num_neurons, np.float32)
  if condensed.bias is not None:
    bias = np.asarray(condensed.bias, np.float32).reshape(-1)
  return Layer(name, source, shape, window, values, indices, active, bias, num_inputs)


def from_dense(
  kernel: np.ndarray,
  bias: np.ndarray | None,
  name: str,
  source: int,
  shape: tuple[int, ...],
  window: Window,
  groups: int = 1,
) -> Layer:
  """A step of a dense layer.

  Args:
    kernel: `[I, N]`, the inputs of a neuron when dense, of its group alone.
    bias: `[N]` or None.
    name: its path in the model.
    source: number of the tensor that it reads.
    shape: of its output.
    window: of a convolution; of a linear layer the default.
    groups: of a grouped convolution.
  """
  fan_in, num_neurons = kernel.shape
  indices = np.tile(np.arange(fan_in), (num_neurons, 1))
  active = np.arange(num_neurons)
  size = math.prod(window.size)
  indices = _ungrouped(indices, active, num_neurons, size, fan_in * groups, groups)
  values = np.ascontiguousarray(kernel.T, np.float32)
  bias = np.zeros(num_neurons) if bias is None else bias
  bias = np.asarray(bias, np.float32).reshape(-1)
  return Layer(name, source, shape, window, values, indices, active, bias, fan_in * groups)


def affine_layer(
  name: str, source: int, shape: tuple[int, ...], factor: np.ndarray, shift: np.ndarray
) -> Layer:
  """A factor and a shift for each channel, as a layer of fan-in 1."""
  channels = as_image(shape)[2]
  values = np.asarray(factor, np.float32).reshape(channels, 1)
  every = np.arange(channels)
  bias = np.asarray(shift, np.float32)
  return Layer(name, source, shape, Window(), values, every[:, None], every, bias, channels)


def is_affine(step: Any) -> bool:
  """Whether a step only multiplies and shifts each channel."""
  return (
    isinstance(step, Layer)
    and step.window == Window()
    and step.values.shape == (step.num_inputs, 1)
    and step.num_neurons == step.num_inputs
    and bool((step.indices[:, 0] == np.arange(step.num_inputs)).all())
  )


def _ungrouped(
  indices: np.ndarray,
  active: np.ndarray,
  num_neurons: int,
  positions: int,
  num_inputs: int,
  groups: int,
) -> np.ndarray:
  """Indices into all channels of a window in place of those into a group's."""
  if groups == 1:
    return indices
  channels = num_inputs // positions
  per_group = channels // groups
  position, channel = indices // per_group, indices % per_group
  first = active // (num_neurons // groups) * per_group
  return position * channels + first[:, None] + channel
