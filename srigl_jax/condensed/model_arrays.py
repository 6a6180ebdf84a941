"""Between a condensed model and what a file of it holds: layers and arrays by name."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array

from srigl_jax.condensed import condense_equinox, condense_linen
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.layers import check_paths, kernel_path
from srigl_kernels import Condensed

Model = Any  # an nnx.Module


def split_condensed(model: Model) -> tuple[dict[str, Condensed], dict[str, Array]]:
  """All numbers of a condensed model, for `save_condensed(path, layers, arrays=arrays)`.

  Args:
    model: from `condense_model`, `condense_linen` or `condense_equinox`.

  Returns:
    `(layers, arrays)`: the condensed layers by the paths of the kernels that they stand for, and
    every other variable by its path. Random state, such as a dropout's, is left out: inference
    needs none.
  """
  layers, arrays = _split(model)
  stacks = [path for path, layer in layers.items() if layer.values.ndim > 2]
  if stacks:
    raise ValueError(
      f"Layer {stacks[0]!r} is a stack of condensed layers, which a file does not hold: save the "
      "layers one by one, from condense(kernel, mask, bias, axes=Axes(..., stack=(0,)))."
    )
  return layers, arrays


def _split(model: Model) -> tuple[dict[str, Condensed], dict[str, Array]]:
  if isinstance(model, condense_linen.CondensedLinen):
    return condense_linen.split(model)
  if condense_equinox.is_module(model):
    return condense_equinox.split(model)
  flax = import_with_flax("nnx_layers")
  if not flax.is_model(model):
    raise ValueError(
      f"model is a {type(model).__name__}; it must be what condense_model, condense_linen or "
      "condense_equinox returned. Layers condensed one by one go to save_condensed as they are."
    )
  layers = {
    kernel_path(path): module.prepared.condensed
    for path, module in flax.find_condensed(model).items()
  }
  return layers, {path: x.get_value() for path, x in flax.find_variables(model).items()}


def merge_condensed(
  model: Model,
  layers: Mapping[str, Condensed],
  arrays: Mapping[str, Any],
  *,
  backend: str | Sequence[str] = "auto",
) -> Model:
  """Builds the condensed model that `split_condensed` took apart; needs no masks.

  Args:
    model: the dense model, freshly built with the settings of the one that was condensed; its
      numbers do not matter (`nnx.eval_shape` makes a model without any). It is left as it is. Of
      Flax Linen, the module.
    layers: condensed layers by the path of the kernel that each stands for.
    arrays: the other variables by path. Kernels, biases and batch norms may have fewer channels
      than the model's, as folding leaves them; a layer may have gained a bias; and a batch norm
      none of whose arrays are here is folded into the layer before it.
    backend: what layers are prepared for; see `srigl_jax.prepare`.

  Returns:
    A new model, as it was before it was taken apart. That sizes of different layers go together is
    found out when it is called.

  Raises:
    ValueError: if names, shapes or types do not fit the model.
  """
  if condense_equinox.is_module(model):
    return condense_equinox.merge(model, layers, arrays, backend)
  flax = import_with_flax("nnx_layers")
  if not flax.is_model(model):
    return condense_linen.merge(model, layers, arrays, backend)
  model = flax.for_inference(model)
  modules = flax.find_modules(model)
  check_paths(
    layers, [kernel_path(p) for p in modules if hasattr(modules[p], "kernel")], name="layers"
  )
  new = {}
  for name, layer in layers.items():
    path = name.removesuffix("kernel").removesuffix("/")
    _check_layer(flax, modules[path], path, layer)
    new[path] = flax.make_condensed_module(modules[path], layer, backend)
  for path, module in modules.items():
    own = {variable for variable in flax.find_variables(module) if "/" not in variable}
    given = {variable for variable in own if _join(path, variable) in arrays}
    if flax.can_fold_norm(module) and not given:
      new[path] = flax.folded_norm(module)
  model = flax.swap(model, new)
  _set_arrays(flax, model, arrays)
  return import_with_flax("nnx_fused").with_fused_call(model)


def _check_layer(flax: Any, module: Any, path: str, layer: Condensed) -> None:
  """Checks that a condensed layer can stand for a module."""
  reason = flax.why_not_condensable(module)
  if reason is None:
    layout = flax.kernel_layout(module)
    if layer.neuron_axes != layout.neuron_axes or not layout.fits(layer.kernel_shape):
      reason = (
        f"it has kernel shape {layer.kernel_shape} and neuron axes {layer.neuron_axes}, but the "
        f"model's layer {layout.shape} and {layout.neuron_axes}: build the model with the "
        "settings of the one that was condensed"
      )
  if reason is not None:
    raise ValueError(f"Layer {path!r} of `layers` cannot stand in the model: {reason}.")


def _set_arrays(flax: Any, model: Model, arrays: Mapping[str, Any]) -> None:
  """Gives a condensed model its other arrays, and its layers the sizes of these."""
  modules = flax.find_modules(model)
  owners = {name: modules.get(name.rpartition("/")[0]) for name in arrays}
  for name, owner in owners.items():
    if name.rpartition("/")[2] == "bias" and type(owner) in flax.LAYERS and owner.bias is None:
      flax.set_bias(owner, jnp.asarray(arrays[name]))
  variables = flax.find_variables(model)
  check_paths(arrays, variables, name="arrays")
  missing = [path for path in variables if path not in arrays]
  if missing:
    raise ValueError(
      f"`arrays` lacks {missing[0]!r}, which the model has. Build the model with the settings of "
      "the one that was condensed, and give all arrays that split_condensed returned."
    )
  for path, variable in variables.items():
    old, array = variable.get_value(), jnp.asarray(arrays[path])
    if array.dtype != old.dtype or not flax.fits_variable(owners[path], path, array.shape):
      raise ValueError(
        f"`arrays` has {path!r} of type {array.dtype} and shape {array.shape}, but the model of "
        f"{old.dtype} and {old.shape}."
      )
    variable.set_value(array)
  for path, module in modules.items():
    try:
      flax.take_sizes(module)
    except ValueError as error:
      raise ValueError(f"The arrays of {path!r} do not go together: {error}") from None


def _join(path: str, name: str) -> str:
  return f"{path}/{name}" if path else name
