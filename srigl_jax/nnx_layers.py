"""Layers of Flax NNX models: read, changed, condensed, and put in the place of others.

What a layer computes is described to the rest of the library as `Weights` and `Norm`.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from srigl_jax.condense import condense
from srigl_jax.folding import Norm, Weights, pad_fan_in
from srigl_jax.leaves import Axes
from srigl_jax.nnx_twins import CondensedConv, CondensedLinear, FoldedBatchNorm
from srigl_kernels import Condensed, prepare
from srigl_kernels.format import FLOATS

Layer = nnx.Linear | nnx.LinearGeneral | nnx.Conv
LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv)


def for_inference(model: nnx.Module) -> nnx.Module:
  """A copy of a model in inference mode."""
  model = nnx.clone(model)
  model.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
  return model


def clone(model: nnx.Module) -> nnx.Module:
  """A copy that shares nothing that changes."""
  return nnx.clone(model)


def find_modules(model: nnx.Module) -> dict[str, nnx.Module]:
  """All modules of a model by path; one that is at two places under the first."""
  return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def fault(module: Any) -> str | None:
  """Why a layer cannot be condensed or folded, or None if it can."""
  if type(module) not in LAYERS:
    return (
      "only nnx.Linear, nnx.LinearGeneral (attention projections) and nnx.Conv themselves can be "
      "condensed, no subclass, which may compute something else"
    )
  shape = kernel_shape(module)
  if module.kernel.get_value().shape != shape:
    return f"its kernel should have the shape {shape}; layers stacked by nnx.vmap are not handled"
  if getattr(module, "batch_axis", None) or getattr(module, "mask", None) is not None:
    return "its batch_axis or mask is set"
  product = "conv_general_dilated" if isinstance(module, nnx.Conv) else "dot_general"
  own = getattr(module, product) not in (None, getattr(lax, product))
  if own or getattr(module, "dot_general_cls", None) is not None:
    return f"it computes with a {product} of its own"
  if module.promote_dtype is not nnx.nn.dtypes.promote_dtype:
    return "it has a promote_dtype of its own"
  if module.preferred_element_type is not None:
    return "its preferred_element_type is set"
  if module.dtype is not None and np.dtype(module.dtype) not in FLOATS:
    return f"it computes in {np.dtype(module.dtype).name}, not in float32 or bfloat16"
  return None


def kernel_shape(module: Layer) -> tuple[int, ...]:
  """The shape that a layer's settings say its kernel has."""
  if isinstance(module, nnx.Conv):
    channels = module.in_features // module.feature_group_count
    return (*module.kernel_size, channels, module.out_features)
  sizes = (module.in_features, module.out_features)
  return sum((x if isinstance(x, tuple) else (x,) for x in sizes), ())


def neuron_axes(module: Layer) -> tuple[int, ...]:
  """Which axes of a layer's kernel are neurons."""
  shape = kernel_shape(module)
  count = len(module.out_features) if isinstance(module, nnx.LinearGeneral) else 1
  return tuple(range(len(shape) - count, len(shape)))


def read_layer(module: Layer, mask: Any = None) -> Weights:
  """A layer as `folding` sees it."""
  kernel = np.asarray(module.kernel.get_value())
  bias = None if module.bias is None else np.asarray(module.bias.get_value()).reshape(-1)
  ndim, num_outputs = kernel.ndim, len(neuron_axes(module))
  num_inputs = 1 if isinstance(module, nnx.Conv) else ndim - num_outputs
  window = kernel.shape[: ndim - num_outputs - num_inputs]
  sizes = math.prod(window), -1, math.prod(kernel.shape[ndim - num_outputs :])
  last = getattr(module, "axis", (-1,)) == (-1,)
  is_grouped = isinstance(module, nnx.Conv) and module.feature_group_count != 1
  return Weights(
    kernel=kernel.reshape(sizes),
    mask=(kernel != 0 if mask is None else np.asarray(mask)).reshape(sizes),
    bias=bias,
    reads_channels=num_inputs == 1 and last and not is_grouped,
    writes_channels=num_outputs == 1,
    can_shrink=not is_grouped,
    pads_zeros=isinstance(module, nnx.Conv) and _pads_zeros(module),
  )


def _pads_zeros(conv: nnx.Conv) -> bool:
  """Whether zeros stand between or around the inputs of some positions."""
  if any(n not in (None, 1) for n in jax.tree.leaves(conv.input_dilation)):
    return True
  if isinstance(conv.padding, str):
    is_pointwise = all(n == 1 for n in conv.kernel_size)
    return conv.padding in ("SAME", "SAME_LOWER", "CAUSAL") and not is_pointwise
  return any(jax.tree.leaves(conv.padding))


def can_fold_norm(module: Any) -> bool:
  """Whether a module is a batch norm over the last axis alone."""
  if type(module) is not nnx.BatchNorm or module.axis not in (-1, (-1,)):
    return False
  is_plain = module.promote_dtype is nnx.nn.dtypes.promote_dtype
  return is_plain and module.mean.get_value().ndim == 1


def read_norm(module: nnx.BatchNorm) -> Norm:
  """A batch norm in inference mode as `folding` sees it."""
  read = lambda x, default: np.asarray(default if x is None else x.get_value(), np.float64)
  scale = read(module.scale, 1) / np.sqrt(read(module.var, 1) + module.epsilon)
  return Norm(scale, read(module.bias, 0) - read(module.mean, 0) * scale)


def shrink_norm(module: nnx.BatchNorm, keep: np.ndarray) -> None:
  """Removes channels from a batch norm."""
  for variable in (module.mean, module.var, module.scale, module.bias):
    if variable is not None:
      variable.set_value(variable.get_value()[keep])
  module.num_features = int(keep.sum())


def write_layer(module: Layer, weights: Weights) -> None:
  """Gives a dense layer other weights, channels and neurons."""
  window, features = _features(module, weights)
  shape = (*window, *features[0], *features[1])
  module.kernel.set_value(jnp.asarray(weights.kernel.reshape(shape)))
  if weights.bias is not None:
    set_bias(module, jnp.asarray(weights.bias.reshape(features[1])))
  resize(module, features)


def _features(module: Layer, weights: Weights) -> tuple[tuple[int, ...], tuple[tuple, tuple]]:
  """Window, input sizes and neuron sizes of a layer's kernel once it has these weights."""
  shape, first = kernel_shape(module), neuron_axes(module)[0]
  num_window = len(module.kernel_size) if isinstance(module, nnx.Conv) else 0
  inputs, outputs = shape[num_window:first], shape[first:]
  inputs = inputs if math.prod(inputs) == weights.kernel.shape[1] else weights.kernel.shape[1:2]
  outputs = outputs if math.prod(outputs) == weights.kernel.shape[2] else weights.kernel.shape[2:]
  return shape[:num_window], (inputs, outputs)


def set_bias(module: Layer, bias: jax.Array) -> None:
  """Gives a dense layer a bias, also if it had none."""
  if module.bias is None:
    module.bias, module.use_bias = nnx.Param(bias), True
  else:
    module.bias.set_value(bias)


def resize(module: Layer, features: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
  """Sets the numbers of inputs and neurons of a dense layer to those of its kernel."""
  inputs, outputs = features
  if isinstance(module, nnx.LinearGeneral):
    module.in_features, module.out_features = inputs, outputs
    return
  groups = module.feature_group_count if isinstance(module, nnx.Conv) else 1
  module.in_features, module.out_features = inputs[0] * groups, outputs[0]
  if isinstance(module, nnx.Conv):
    module.kernel_shape = (*module.kernel_size, *inputs, *outputs)


def condense_layer(module: Layer, mask: Any) -> Condensed:
  """The condensed form of a layer as it is."""
  bias = None if module.bias is None else module.bias.get_value()
  return condense(module.kernel.get_value(), mask, bias, axes=Axes(neuron_axes(module)))


def condense_weights(module: Layer, weights: Weights) -> Condensed:
  """The condensed form of a layer once it has these weights; rows get equal fan-ins."""
  window, features = _features(module, weights)
  shape = (*window, *features[0], *features[1])
  mask = pad_fan_in(weights.mask.reshape(-1, weights.mask.shape[-1]))
  bias = None if weights.bias is None else weights.bias.reshape(features[1])
  axes = Axes(tuple(range(-len(features[1]), 0)))
  return condense(weights.kernel.reshape(shape), mask.reshape(shape), bias, axes=axes)


def make_twin(module: Layer, condensed: Condensed, backend: Any) -> nnx.Module:
  """The condensed twin of a layer, its weights in the type in which the layer computes."""
  if module.dtype is not None:
    values = condensed.values.astype(module.dtype)
    condensed = dataclasses.replace(condensed, values=values)
  layer = prepare(condensed, backend=backend)
  if isinstance(module, nnx.Conv):
    return CondensedConv(layer, module)
  return CondensedLinear(layer, module)


def folded_norm(module: nnx.BatchNorm) -> nnx.Module:
  """What stands in the place of a batch norm that is part of the layer before it."""
  return FoldedBatchNorm(module)


def swap(model: nnx.Module, modules: Mapping[str, nnx.Module]) -> nnx.Module:
  """Puts modules in place of those at the paths, wherever else in the model these stand."""
  found = find_modules(model)
  by_id = {id(found[path]): new for path, new in modules.items()}
  for parent in found.values():
    for name, child in list(vars(parent).items()):
      if isinstance(child, nnx.Module) and id(child) in by_id:
        setattr(parent, name, by_id[id(child)])
  model = by_id.get(id(model), model)
  left = [path for path, module in find_modules(model).items() if id(module) in by_id]
  if left:
    raise ValueError(
      f"Module {left[0]!r} cannot be replaced where it is kept: keep modules as attributes, in "
      "nnx.List or in nnx.Dict."
    )
  return model
