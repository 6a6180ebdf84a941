"""Flax NNX models whose sparse layers train in condensed form, as functions of flat dicts.

What `functional` is for dense models. A sparse layer's parameter is its `values` under the path of
the dense kernel; its pattern is part of the model's state, under the path of its module.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from flax import nnx

import srigl_jax as sx
from experiments.models.functional import Apply, Arrays, flatten, module_fn
from srigl_jax.condensed_training.nnx_models import why_not_sparse, with_sparse_layers
from srigl_jax.condensed_training.nnx_modules import PatternVariable, ProbeVariable

Pattern = sx.Pattern

_STATE = nnx.Any(nnx.BatchStat, PatternVariable)


class CondensedModel(NamedTuple):
  """A model split into functions and the arrays it starts from.

  Attributes:
    apply: see `Apply`; `model_state` has the patterns too.
    params: by path; of sparse layers `[C]` values.
    model_state: batch statistics, and patterns by `pattern_path`.
    module: `(params, model_state) -> module`, on which `sx.condensed_value_and_grad` works.
  """

  apply: Apply
  params: Arrays
  model_state: dict[str, Any]
  module: Callable[[Arrays, Mapping[str, Any]], nnx.Module]


def init_condensed(
  build_fn: Callable[[nnx.Rngs], nnx.Module],
  key: jax.Array,
  patterns: Mapping[str, Pattern],
  values: Mapping[str, jax.Array],
) -> CondensedModel:
  """Builds a model with sparse layers in place of dense ones, and splits it.

  Args:
    build_fn: from `nnx.Rngs` to the dense model, whose sparse kernels are never made.
    key: `[]` random key of everything else.
    patterns: of the sparse layers, by their kernels' paths.
    values: `[C]` of each.
  """
  model = with_sparse_layers(lambda: build_fn(nnx.Rngs(key)), patterns, values)
  parts: tuple[Any, ...] = nnx.split(model, nnx.Param, _STATE, ProbeVariable)
  graphdef, params, model_state, probes = parts
  of_parts, idle = module_fn(graphdef, params, model_state, probes), flatten(probes)
  module = lambda params, model_state: of_parts(params, model_state, idle)

  def apply(params, model_state, x, *, train, rngs=None):
    model = module(params, model_state)
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
      rngs = nnx.Rngs(rngs)
    return model(x, train=train, rngs=rngs), state_of(model)

  return CondensedModel(apply, flatten(params), flatten(model_state), module)


def untrainable(
  build_fn: Callable[[nnx.Rngs], nnx.Module], key: jax.Array, paths: Any
) -> dict[str, str]:
  """Kernels among some that cannot train in condensed form, each with the reason."""
  return why_not_sparse(nnx.eval_shape(lambda: build_fn(nnx.Rngs(key))), paths)


def state_of(model: nnx.Module) -> dict[str, Any]:
  """A model's statistics and patterns, as `CondensedModel.model_state`."""
  return flatten(nnx.state(model, _STATE))


def patterns_of(model_state: Mapping[str, Any]) -> dict[str, Pattern]:
  """The patterns in a model's state, by the paths of the kernels; empty for a dense model."""
  return {kernel_of(path): x for path, x in model_state.items() if isinstance(x, Pattern)}


def with_patterns(
  model_state: Mapping[str, Any], patterns: Mapping[str, Pattern]
) -> dict[str, Any]:
  """A model's state with other patterns."""
  return {path: patterns.get(kernel_of(path), x) for path, x in model_state.items()}


def kernel_of(pattern_path: str) -> str:
  """The path of the kernel that a layer's pattern belongs to."""
  return f"{pattern_path.removesuffix('pattern')}kernel"
