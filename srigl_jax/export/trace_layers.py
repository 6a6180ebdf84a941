"""Layers of Flax NNX models as steps of a `Network`."""

import math
from typing import Any

import numpy as np
from flax import nnx
from jax import lax

from srigl_jax.condensed.nnx_layers import read_norm
from srigl_jax.condensed.nnx_layout import kernel_layout
from srigl_jax.condensed.nnx_modules import CondensedConv, CondensedLinear, FoldedBatchNorm
from srigl_jax.export.layer_steps import affine_layer, from_condensed, from_dense
from srigl_jax.export.network import Layer, Window

Shape = tuple[int, ...]


def read_layer(module: Any, path: str, source: int, shape: Shape) -> Layer | None:
  """The step of a layer.

  Args:
    module: the layer.
    path: its path in the model.
    source: number of the tensor that it reads.
    shape: of that tensor.

  Returns:
    The step; None if the layer returns what it is given.

  Raises:
    ValueError: if it cannot be exported, naming it.
  """
  if isinstance(module, FoldedBatchNorm):
    return None
  if isinstance(module, nnx.BatchNorm):
    norm = read_norm(module)
    channels = shape[-1]
    factor, shift = (np.broadcast_to(x, (channels,)) for x in norm.__dict__.values())
    return affine_layer(path, source, shape, factor, shift)
  if isinstance(module, nnx.Conv | CondensedConv):
    return _convolution(module, path, source, shape)
  if isinstance(module, nnx.Linear | nnx.LinearGeneral | CondensedLinear):
    return _linear(module, path, source, shape)
  raise ValueError(
    f"Layer {path!r} of type {type(module).__name__} cannot be exported, only linear layers, "
    "convolutions and batch norms."
  )


def _linear(module: Any, path: str, source: int, shape: Shape) -> Layer:
  axis = sorted(a % (len(shape) + 1) for a in getattr(module, "axis", (-1,)))
  lead = len(shape) + 1 - len(axis)
  if axis != list(range(lead, len(shape) + 1)):
    raise ValueError(
      f"Layer {path!r} reads the axes {tuple(axis)} of its input, which cannot be exported: only "
      "the last ones can."
    )
  before = shape[: lead - 1]
  if isinstance(module, CondensedLinear):
    condensed = module.prepared.condensed
    _check_stack(condensed.values.ndim - 2, path)
    neurons = tuple(condensed.kernel_shape[a] for a in condensed.neuron_axes)
    out = (*before, *_joined(neurons, path))
    return from_condensed(condensed, path, source, out, Window(), condensed.in_features)
  layout = kernel_layout(module)
  kernel = np.asarray(module.kernel.get_value(), np.float32)
  _check_stack(kernel.ndim - len(layout.shape), path)
  kernel = kernel.reshape(layout.num_inputs, -1)
  out = (*before, *_joined(layout.neurons, path))
  return from_dense(kernel, _value(module.bias), path, source, out, Window())


def _joined(neurons: Shape, path: str) -> Shape:
  if len(neurons) > 1:
    raise ValueError(
      f"Layer {path!r} has several neuron axes, as of attention, and cannot be exported."
    )
  return neurons


def _check_stack(extra: int, path: str) -> None:
  if extra:
    raise ValueError(f"Layer {path!r} is a stack of layers, which cannot be exported.")


def _convolution(module: Any, path: str, source: int, shape: Shape) -> Layer:
  if isinstance(module, CondensedConv):
    condensed = module.prepared.condensed
    kernel_shape = condensed.kernel_shape
    fan_in, num_neurons = condensed.in_features, condensed.out_features
  else:
    kernel_shape = module.kernel.get_value().shape
    fan_in, num_neurons = math.prod(kernel_shape[:-1]), kernel_shape[-1]
  rank = len(kernel_shape) - 2
  if rank not in (1, 2) or len(shape) != rank + 1:
    raise ValueError(
      f"Layer {path!r} convolves over {rank} axes of an input of shape {shape}, which cannot be "
      "exported: only one or two axes can."
    )
  groups = module.feature_group_count
  if any(n != 1 for n in _each(module.input_dilation, rank)):
    raise ValueError(f"Layer {path!r} is a transposed convolution, which cannot be exported.")
  window = _window(module, path, kernel_shape[:rank], shape)
  lead = (1, *shape) if rank == 1 else shape
  height, width = window.positions(*lead[:2])
  out: Shape = (width, num_neurons) if rank == 1 else (height, width, num_neurons)
  if isinstance(module, CondensedConv):
    return from_condensed(condensed, path, source, out, window, fan_in * groups, groups)
  kernel = np.asarray(module.kernel.get_value(), np.float32).reshape(fan_in, num_neurons)
  return from_dense(kernel, _value(module.bias), path, source, out, window, groups)


def _window(module: Any, path: str, size: Shape, shape: Shape) -> Window:
  rank = len(size)
  strides, dilation = _each(module.strides, rank), _each(module.kernel_dilation, rank)
  padding = module.padding
  if padding in ("CIRCULAR", "REFLECT"):
    raise ValueError(f"Layer {path!r} pads by {padding}, which cannot be exported.")
  reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
  if padding == "CAUSAL":
    pads: Any = [(reach[0] - 1, 0)]
  elif isinstance(padding, str):
    pads = lax.padtype_to_pads(shape[:rank], reach, strides, padding)
  else:
    pads = padding if isinstance(padding, list | tuple) else (padding,) * rank
    pads = [(p, p) if isinstance(p, int) else tuple(p) for p in pads]
  pads = [(int(a), int(b)) for a, b in pads]
  if any(n < 0 for pair in pads for n in pair):
    raise ValueError(f"Layer {path!r} pads by a negative number, which cannot be exported.")
  two: Any = lambda values, one: (one, *values) if rank == 1 else tuple(values)
  return Window(two(size, 1), two(strides, 1), two(dilation, 1), two(pads, (0, 0)))


def _each(value: Any, rank: int) -> Shape:
  if isinstance(value, list | tuple):
    return tuple(1 if n is None else int(n) for n in value)
  return (1 if value is None else int(value),) * rank


def _value(variable: Any) -> np.ndarray | None:
  return None if variable is None else np.asarray(variable.get_value(), np.float32)
