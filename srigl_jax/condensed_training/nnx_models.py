"""Dense Flax NNX models made into models that train in condensed form, and those into exported."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
from flax import nnx
from jax import Array

from srigl_jax.allocation import allocate
from srigl_jax.arguments import check_callable
from srigl_jax.condensed.nnx_layers import clone, find_modules, swap, why_not_condensable
from srigl_jax.condensed.nnx_modules import CondensedConv, CondensedLinear
from srigl_jax.condensed_training.init import init_condensed_weights, init_patterns
from srigl_jax.condensed_training.nnx_modules import (
  SparseConv,
  SparseLayer,
  SparseLinear,
  check_model,
  sparse_layers,
)
from srigl_jax.condensed_training.tree import to_condensed
from srigl_kernels import prepare
from srigl_kernels.pattern import Pattern


def sparsify(
  model: nnx.Module | Callable[[], nnx.Module], seed: int, scheme: str, **sparsity_kwargs: Any
) -> nnx.Module:
  """See `srigl_jax.sparsify`."""
  if not isinstance(model, nnx.Module):
    check_callable("model", model, "an nnx.Module, or a function of no arguments that makes one")
  make = (lambda: clone(model)) if isinstance(model, nnx.Module) else model
  abstract = nnx.eval_shape(make)
  allocation = allocate(nnx.state(abstract, nnx.Param), **sparsity_kwargs)
  _owners(abstract, allocation.budgets)
  key = jax.random.key(seed)
  patterns = init_patterns(key, allocation)
  weights_key = jax.random.fold_in(key, len(patterns))
  return with_sparse_layers(make, patterns, init_condensed_weights(weights_key, patterns, scheme))


def with_sparse_layers(
  make: Callable[[], nnx.Module], patterns: Mapping[str, Pattern], values: Mapping[str, Array]
) -> nnx.Module:
  """A model with sparse layers in place of dense ones, whose kernels are never made.

  Args:
    make: makes the dense model.
    patterns: of the layers that are sparse, by their kernels' paths.
    values: `[C]` of each.

  Raises:
    ValueError: if one of them cannot train in condensed form.
  """
  abstract = nnx.eval_shape(make)
  owners, modules, new = _owners(abstract, patterns), find_modules(abstract), {}
  for path, owner in owners.items():
    kind = SparseConv if isinstance(modules[owner], nnx.Conv) else SparseLinear
    new[owner] = kind(values[path], patterns[path], modules[owner])

  @jax.jit  # so that kernels, which are not among the results, are never computed
  def init_others() -> dict[str, Any]:
    flat = _flat(nnx.state(make()))
    return {path: x.get_value() for path, x in flat.items() if path not in owners}

  others = init_others()
  graphdef, state = nnx.split(swap(abstract, new))
  flat = nnx.to_flat_state(state)
  filled = [
    (path, x.replace(others["/".join(map(str, path))]) if _is_shape(x) else x) for path, x in flat
  ]
  return nnx.merge(graphdef, nnx.from_flat_state(filled))


def _owners(model: nnx.Module, paths: Iterable[str]) -> dict[str, str]:
  """The paths of the modules whose kernels are at these paths; a ValueError if one cannot train."""
  paths = list(paths)
  for path, reason in why_not_sparse(model, paths).items():
    raise ValueError(
      f"Layer {path!r} cannot train in condensed form: {reason}. Keep it dense with "
      f"sparse=all_but({path!r})."
    )
  return {path: _owner(path) for path in paths}


def why_not_sparse(model: nnx.Module, paths: Iterable[str]) -> dict[str, str]:
  """Kernels among some of a model that cannot train in condensed form, each with the reason."""
  modules = find_modules(model)
  reasons = {path: _why_not(modules.get(_owner(path))) for path in paths}
  return {path: reason for path, reason in reasons.items() if reason}


def _owner(path: str) -> str:
  return path.removesuffix("kernel").removesuffix("/")


def condense(model: nnx.Module, backend: Any) -> nnx.Module:
  """See `srigl_jax.condense_trained`."""
  check_model(model)
  model = clone(model)
  model.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
  modules = {id(module): path for path, module in find_modules(model).items()}
  layers = sparse_layers(model).values()
  return swap(model, {modules[id(layer)]: _condensed(layer, backend) for layer in layers})


def _condensed(layer: SparseLayer, backend: Any) -> nnx.Module:
  bias = None if layer.bias is None else layer.bias.get_value()
  values = layer.kernel.get_value().astype(layer.dtype or layer.kernel.get_value().dtype)
  prepared = prepare(to_condensed(values, layer.pattern.get_value(), bias), backend=backend)
  if isinstance(layer, SparseConv):
    return CondensedConv(prepared, layer)
  return CondensedLinear(prepared, layer)


def _why_not(module: Any) -> str | None:
  if module is None:
    return "it is not the kernel of a layer"
  if isinstance(module, nnx.ConvTranspose):
    return "it is a transposed convolution"
  if isinstance(module, nnx.Conv) and module.feature_group_count != 1:
    return "it is a convolution in groups"
  return why_not_condensable(module)


def _flat(state: Any) -> dict[str, Any]:
  return {"/".join(map(str, path)): x for path, x in nnx.to_flat_state(state)}


def _is_shape(variable: Any) -> bool:
  return isinstance(variable.get_value(), jax.ShapeDtypeStruct)
