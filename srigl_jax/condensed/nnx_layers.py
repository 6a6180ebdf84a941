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

from srigl_jax.condensed.condense import condense
from srigl_jax.condensed.constant_folding import Norm, Weights, pad_fan_in
from srigl_jax.condensed.nnx_layout import (
  CONVOLUTIONS,
  LAYERS,
  Layer,
  is_stack,
  kernel_layout,
  why_not_condensable,
)
from srigl_jax.condensed.nnx_modules import (
  CondensedConv,
  CondensedLinear,
  CondensedState,
  FoldedBatchNorm,
)
from srigl_jax.condensed.nnx_weight_norms import WRAPPERS, normalized
from srigl_jax.condensed.stacked import backend_in_loop, condense_stack, prepare_stack
from srigl_jax.condensed.transposed_padding import dilations
from srigl_jax.layers import Axes
from srigl_kernels import Condensed, prepare


def for_inference(model: nnx.Module) -> nnx.Module:
  """A copy of a model in inference mode, weights normalised where something normalises them."""
  model = nnx.clone(model)
  model.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
  wrappers = {path: x for path, x in find_modules(model).items() if type(x) in WRAPPERS}
  return swap(model, {path: normalized(x) for path, x in wrappers.items()}) if wrappers else model


def is_model(model: Any) -> bool:
  """Whether this is a Flax NNX model."""
  return isinstance(model, nnx.Module)


def clone(model: nnx.Module) -> nnx.Module:
  """A copy that shares nothing that changes."""
  return nnx.clone(model)


def find_modules(model: nnx.Module) -> dict[str, nnx.Module]:
  """All modules of a model by path; one that is at two places under the first."""
  return {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}


def find_sharing(modules: Mapping[str, nnx.Module]) -> dict[str, set[str]]:
  """For each module of a model that holds a variable which others hold, too, the paths of these."""
  is_node = lambda x: isinstance(x, (nnx.Variable, nnx.Module))
  held: dict[int, set[str]] = {}
  for path, module in modules.items():
    for x in jax.tree.leaves(vars(module), is_leaf=is_node):
      if isinstance(x, nnx.Variable):
        held.setdefault(id(x), set()).add(path)
  sharing: dict[str, set[str]] = {}
  for paths in held.values():
    for path in paths if len(paths) > 1 else ():
      sharing.setdefault(path, set()).update(paths - {path})
  return sharing


def holds_kernel_of(module: Any, other: Any) -> bool:
  """Whether a layer that can be condensed holds the kernel of another one."""
  holds = getattr(module, "kernel", None) is other.kernel
  return holds and why_not_condensable(module) is None


def find_condensed(model: nnx.Module) -> dict[str, CondensedLinear | CondensedConv]:
  """The condensed layers of a model by path."""
  kinds = (CondensedLinear, CondensedConv)
  return {path: x for path, x in find_modules(model).items() if isinstance(x, kinds)}


def find_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
  """All variables of a model by path, without condensed layers and random state.

  Raises:
    ValueError: if the model holds an array that is no variable.
  """
  state = nnx.state(model, nnx.Not(nnx.Any(CondensedState, nnx.RngState)))
  found = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
  condensed = find_condensed(model)
  variables = {path: x for path, x in found.items() if path.rpartition("/")[0] not in condensed}
  bare = [path for path, x in variables.items() if not isinstance(x, nnx.Variable)]
  if bare:
    raise ValueError(
      f"The model holds an array at {bare[0]!r} that is no nnx.Variable, so that a file would "
      "lack it: make it an nnx.Param, or an nnx.Variable if it is not trained."
    )
  return variables


def read_layer(module: Layer, mask: Any = None) -> Weights:
  """A layer as `folding` sees it."""
  layout = kernel_layout(module)
  sizes = math.prod(layout.window), math.prod(layout.inputs), math.prod(layout.neurons)
  kernel = np.asarray(module.kernel.get_value())
  return Weights(
    kernel=kernel.reshape(sizes),
    mask=(kernel != 0 if mask is None else np.asarray(mask)).reshape(sizes),
    bias=None if module.bias is None else np.asarray(module.bias.get_value()).reshape(-1),
    reads_channels=layout.can_lose_inputs,
    writes_channels=len(layout.neurons) == 1,
    can_shrink=layout.can_lose_neurons,
    pads_zeros=isinstance(module, CONVOLUTIONS) and _pads_zeros(module),
  )


def _pads_zeros(conv: Any) -> bool:
  """Whether zeros stand between or around the inputs of some positions."""
  if isinstance(conv, nnx.ConvTranspose):
    return True
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
      variable.set_value(jnp.asarray(np.asarray(variable.get_value())[keep]))
  take_sizes(module)


def write_layer(module: Layer, weights: Weights) -> None:
  """Gives a dense layer other weights, channels and neurons."""
  layout = kernel_layout(module).resized(*weights.kernel.shape[1:])
  module.kernel.set_value(jnp.asarray(weights.kernel.reshape(layout.shape)))
  if weights.bias is not None:
    set_bias(module, jnp.asarray(weights.bias.reshape(layout.neurons)))
  take_sizes(module)


def set_bias(module: Layer, bias: jax.Array) -> None:
  """Gives a dense layer a bias, also if it had none."""
  if module.bias is None:
    module.bias, module.use_bias = nnx.Param(bias), True
  else:
    module.bias.set_value(bias)


def take_sizes(module: Any) -> None:
  """Sets the numbers of channels of a dense layer or batch norm to those of its variables.

  Raises:
    ValueError: if its variables have different ones.
  """
  if type(module) in LAYERS:
    shape, layout = module.kernel.get_value().shape, kernel_layout(module)
    first = len(layout.window) + len(layout.inputs)
    inputs, neurons = shape[len(layout.window) : first], shape[first:]
    _check_sizes([neurons] if module.bias is None else [neurons, module.bias.get_value().shape])
    if isinstance(module, nnx.LinearGeneral):
      module.in_features, module.out_features = inputs, neurons
    else:
      groups = getattr(module, "feature_group_count", 1)
      module.in_features, module.out_features = inputs[0] * groups, neurons[0]
    if isinstance(module, CONVOLUTIONS):
      module.kernel_shape = shape
  elif can_fold_norm(module):
    parts = (module.mean, module.var, module.scale, module.bias)
    shapes = [x.get_value().shape for x in parts if x is not None]
    _check_sizes(shapes)
    module.num_features = shapes[0][0]


def _check_sizes(shapes: list[tuple[int, ...]]) -> None:
  if len(set(shapes)) > 1:
    raise ValueError(f"their channels are {', '.join(map(str, shapes))}, not the same.")


def fits_variable(module: Any, path: str, shape: tuple[int, ...]) -> bool:
  """Whether a variable of a module can have a shape, after folding."""
  name = path.rpartition("/")[2]
  full = getattr(module, name).get_value().shape
  if type(module) in LAYERS and name in ("kernel", "bias"):
    layout = kernel_layout(module)
    return layout.fits(shape if name == "kernel" else layout.shape[: -len(layout.neurons)] + shape)
  if can_fold_norm(module):
    return len(shape) == 1 and 1 <= shape[0] <= full[0]
  return shape == full


def condense_layer(module: Layer, mask: Any) -> Condensed | list[Condensed]:
  """The condensed form of a layer as it is; of a stack, those of its layers."""
  bias = None if module.bias is None else module.bias.get_value()
  axes = Axes(kernel_layout(module).neuron_axes)
  if is_stack(module):
    axes = Axes(tuple(a + 1 for a in axes.neurons), stack=(0,))
    return condense_stack(module.kernel.get_value(), mask, bias, axes)
  return condense(module.kernel.get_value(), mask, bias, axes=axes)


def condense_weights(module: Layer, weights: Weights) -> Condensed:
  """The condensed form of a layer once it has these weights; rows get equal fan-ins."""
  layout = kernel_layout(module).resized(*weights.kernel.shape[1:])
  mask = pad_fan_in(weights.mask.reshape(-1, weights.mask.shape[-1]))
  bias = None if weights.bias is None else weights.bias.reshape(layout.neurons)
  kernel = weights.kernel.reshape(layout.shape)
  return condense(kernel, mask.reshape(layout.shape), bias, axes=Axes(layout.neuron_axes))


def make_condensed_module(
  module: Layer,
  condensed: Condensed | list[Condensed],
  backend: Any,
  gradients: bool = False,
  dtype: str | None = None,
  in_loop: bool = False,
) -> nnx.Module:
  """The module of a condensed layer, its weights in the type in which the layer computes.

  With `gradients` they keep their own type and are parameters. Of the layers of a stack it is a
  stack, too, and runs under what ran the dense one.
  """
  layers = condensed if isinstance(condensed, list) else [condensed]
  keeps_dtype = gradients or dtype is not None or layers[0].is_reduced
  if module.dtype is not None and not keeps_dtype:
    layers = [dataclasses.replace(x, values=x.values.astype(module.dtype)) for x in layers]
  groups = getattr(module, "feature_group_count", 1)
  options: dict[str, Any] = {"feature_group_count": groups, "gradients": gradients}
  options |= {} if dtype is None else {"dtype": dtype}
  if isinstance(condensed, list):
    layer = prepare_stack(layers, backend, **options)
  else:
    backend = backend_in_loop(layers[0], backend) if in_loop else backend
    layer = prepare(layers[0], backend=backend, **options, **dilations(module))
  kind = CondensedConv if isinstance(module, CONVOLUTIONS) else CondensedLinear
  return kind(layer, module)


def folded_norm(module: nnx.BatchNorm) -> nnx.Module:
  """What stands in the place of a batch norm that is part of the layer before it."""
  return FoldedBatchNorm(module)


def is_folded_norm(module: Any) -> bool:
  """Whether a module stands in the place of a folded batch norm."""
  return isinstance(module, FoldedBatchNorm)


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
