"""Layers of Flax Linen: what they compute, and their condensed products in the place of that.

A condensed layer's `Prepared` stands in the variables where its kernel stood. Transformations of
Linen (`nn.scan`, `nn.remat`, `nn.vmap`) slice and carry it as they would the kernel.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import Array

from srigl_jax.condensed.nnx_modules import as_static, over_axes, promote
from srigl_jax.condensed.transposed_padding import transposed_padding
from srigl_kernels import Prepared, condensed_conv, condensed_matmul
from srigl_kernels.format import FLOATS

LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.ConvTranspose)
_CONVOLUTIONS = (nn.Conv, nn.ConvTranspose)
unbox = nn.meta.unbox


def flatten(variables: Any) -> dict[str, Any]:
  """The leaves of nested dicts by path; a `Prepared` is one leaf."""
  return {"/".join(path): x for path, x in flatten_dict(dict(variables)).items()}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Back from `flatten`."""
  return unflatten_dict({tuple(path.split("/")): x for path, x in leaves.items()})


def is_module(model: Any) -> bool:
  """Whether this is a Flax Linen module."""
  return isinstance(model, nn.Module)


def find_layers(run: Callable[[], Any], paths: set[str]) -> dict[str, nn.Module]:
  """The modules that are called and own the kernels at the paths, settings and all.

  Args:
    run: calls the model.
    paths: of kernels within the parameters.
  """
  found: dict[str, nn.Module] = {}

  def look(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
    path = "/".join((*context.module.path, "kernel"))
    if context.method_name == "__call__" and path in paths:
      found[path] = context.module.clone(parent=None)
    return call(*args, **kwargs)

  with nn.intercept_methods(look):
    jax.eval_shape(run)
  return found


def why_not(module: Any, rank: int) -> str | None:
  """Why a layer with a kernel of so many axes cannot be condensed, or None if it can."""
  if type(module) not in LAYERS:
    names = ", ".join(f"nn.{kind.__name__}" for kind in LAYERS)
    return f"only {names} themselves can be condensed, no {type(module).__name__}"
  own = [f"{name}_cls" for name in ("dot_general", "conv_general_dilated")]
  own += ["dot_general", "conv_general_dilated", "mask", "preferred_element_type"]
  own = [name for name in own if getattr(module, name, None) is not None]
  if own or getattr(module, "batch_dims", None):
    return f"its {own[0] if own else 'batch_dims'} is set"
  if module.promote_dtype is not nn.dtypes.promote_dtype:
    return "it has a promote_dtype of its own"
  if module.dtype is not None and np.dtype(module.dtype) not in FLOATS:
    return f"it computes in {np.dtype(module.dtype).name}, not in float32 or bfloat16"
  if type(module) is nn.ConvTranspose and (module.transpose_kernel or module.padding == "CIRCULAR"):
    return "its kernel is transposed, or it pads circularly"
  if rank > own_rank(module) + 1:
    return "its kernel has two axes or more than the layer: only one stack of layers is handled"
  return None


def own_rank(module: Any) -> int:
  """The number of axes of a layer's kernel; in a stack, as of `nn.scan`, there is one more."""
  inputs = len(_axis(module)) if type(module) not in _CONVOLUTIONS else 1 + len(_window(module))
  return inputs + len(_features(module))


def neuron_axes(module: Any, rank: int) -> tuple[int, ...]:
  """Which axes of a layer's kernel are neurons."""
  return tuple(range(rank - len(_features(module)), rank))


def _features(module: Any) -> tuple[int, ...]:
  return _tuple(module.features)


def _axis(module: Any) -> tuple[int, ...]:
  return _tuple(getattr(module, "axis", -1))  # nn.Dense has none


def _window(module: Any) -> tuple[int, ...]:
  return _tuple(module.kernel_size)


def _tuple(value: Any) -> tuple[int, ...]:
  return (value,) if isinstance(value, int) else tuple(value)


def run_condensed(call: Any, args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
  """For `nn.intercept_methods`: a layer's product, where its kernel is a `Prepared`."""
  module = context.module
  if context.method_name != "__call__" or type(module) not in LAYERS or module.scope is None:
    return call(*args, **kwargs)
  layer = module.get_variable("params", "kernel")
  if not isinstance(layer, Prepared):
    return call(*args, **kwargs)
  x: Array = [*args, *kwargs.values()][0]
  condensed = layer.condensed
  x = promote(x, module.dtype, condensed.values, condensed.bias)
  return (
    _convolve(module, x, layer) if isinstance(module, _CONVOLUTIONS) else _map(module, x, layer)
  )


def _map(module: Any, x: Array, layer: Prepared) -> Array:
  axis = _axis(module)
  shape, neurons = layer.condensed.kernel_shape, layer.condensed.neuron_axes
  return over_axes(lambda x: condensed_matmul(x, layer), x, axis, shape, neurons)


def _convolve(module: Any, x: Array, layer: Prepared) -> Array:
  rank = len(layer.condensed.kernel_shape) - 2
  strides, padding, dilation = map(
    as_static, (module.strides, module.padding, module.kernel_dilation)
  )
  if isinstance(module, nn.Conv):
    return condensed_conv(
      x,
      layer,
      strides=strides,
      padding=padding,
      input_dilation=as_static(module.input_dilation),
      kernel_dilation=dilation,
      feature_group_count=module.feature_group_count,
    )
  size = layer.condensed.kernel_shape[:rank]
  pads = transposed_padding(size, strides, padding, dilation)
  return condensed_conv(x, layer, padding=pads, input_dilation=strides, kernel_dilation=dilation)


def apply(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> Any:
  """`module.apply` with condensed layers among the variables."""
  with nn.intercept_methods(run_condensed):
    return module.apply(variables, *args, **kwargs)
