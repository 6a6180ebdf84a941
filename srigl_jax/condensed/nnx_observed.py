"""Condensed Flax NNX modules that are looked at while a model runs, and that get other layers."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flax import nnx

from srigl_jax.condensed.nnx_layers import find_condensed, swap
from srigl_jax.condensed.nnx_modules import CondensedState
from srigl_kernels import Prepared


class _Observed(nnx.Module):
  """Computes what a module does, and shows its inputs."""

  def __init__(self, module: Callable[..., Any], see: Callable[[Any], None]):
    self.run = lambda *args, **kwargs: module(*args, **kwargs)  # so that it is no module of this
    self.see = see

  def __call__(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    self.see(inputs)
    return self.run(inputs, *args, **kwargs)


def observed(
  model: nnx.Module, paths: Iterable[str], see: Callable[[str, Any], None]
) -> nnx.Module:
  """A copy of a condensed model that calls `see(path, inputs)` in every call of these layers."""
  model = nnx.clone(model)
  modules = find_condensed(model)
  show = lambda path: lambda inputs: see(path, inputs)
  return swap(model, {path: _Observed(modules[path], show(path)) for path in paths})


def with_layer(module: nnx.Module, layer: Prepared) -> Any:
  """A copy of a condensed module with another layer."""
  copy: Any = nnx.clone(module)
  copy.layer = CondensedState(layer)
  return copy


def with_prepared(model: nnx.Module, layers: Mapping[str, Prepared]) -> nnx.Module:
  """A copy of a condensed model with other layers, by path."""
  model = nnx.clone(model)
  modules = find_condensed(model)
  for path, layer in layers.items():
    modules[path].layer = CondensedState(layer)
  return model
