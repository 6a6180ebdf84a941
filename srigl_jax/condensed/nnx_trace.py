"""Flax NNX models as traced programs in which every layer with parameters is one operation."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from srigl_jax.condensed.nnx_fused import without_fused_call
from srigl_jax.condensed.nnx_layers import LAYERS, can_fold_norm, find_modules, why_not_condensable
from srigl_jax.condensed.nnx_modules import CondensedConv, CondensedLinear, FoldedBatchNorm
from srigl_jax.condensed.parameter_uses import find_uses
from srigl_jax.layers import leaf_path
from srigl_jax.programs.flat_jaxpr import FlatJaxpr, inline, is_number, layer_p


class Trace(NamedTuple):
  """A traced model.

  Attributes:
    jaxpr: its operations.
    scalars: values of the jaxpr's inputs that are scalar variables of the model.
    marked: paths of the layers that are one operation each.
    exposed: those of them whose variables the model also reads, or changes, by itself.
    output: shapes and types of what the model returns.
  """

  jaxpr: FlatJaxpr
  scalars: dict[int, np.ndarray]
  marked: frozenset[str]
  exposed: frozenset[str]
  output: Any


def trace(
  model: nnx.Module, inputs: Sequence[Any], call: Callable[..., Any] | None = None
) -> Trace:
  """Traces a model.

  Args:
    model: in inference mode. It is left as it is.
    inputs: positional arguments, arrays or `jax.ShapeDtypeStruct`s.
    call: `(model, *inputs) -> outputs`; by default the model's own call.
  """
  model = without_fused_call(nnx.clone(model))
  marked = [path for path, module in find_modules(model).items() if _mark(module, path)]
  graphdef, state = nnx.split(model)

  def run(state, inputs):
    model = nnx.merge(graphdef, state, copy=True)
    return model(*inputs) if call is None else call(model, *inputs)

  closed, output = jax.make_jaxpr(run, return_shape=True)(state, tuple(inputs))
  jaxpr = inline(closed)
  leaves = [(leaf_path(k), x) for k, x in jax.tree_util.tree_flatten_with_path(state)[0]]
  own = dict(zip(jaxpr.inputs, leaves, strict=False))  # those of `inputs` follow
  scalars = {i: np.asarray(x) for i, (_, x) in own.items() if is_number(x)}
  uses = find_uses(closed)
  owners = {leaves[i][0].rpartition("/")[0] for i in uses.read if i < len(leaves)}
  exposed = (owners | uses.changed) & {*marked}
  return Trace(jaxpr, scalars, frozenset(marked), frozenset(exposed), output)


def _mark(module: nnx.Module, path: str) -> bool:
  """Makes a layer's call a single operation, if it is one that may be changed."""
  kind: Any = type(module)
  is_layer = kind in LAYERS and why_not_condensable(module, stacks_too=True) is None
  if is_layer or can_fold_norm(module) or kind in _CONDENSED:
    module.__class__ = _MARKED[kind]
    module.srigl_path = path  # type: ignore[attr-defined]
    return True
  return False


def _marked(base: type) -> type:
  """A subclass whose call is one operation, of the input and the layer's parameters."""

  def __call__(self, x, *args, **kwargs):
    call = lambda x: base.__call__(self, x, *args, **kwargs)
    if base is nnx.BatchNorm:
      asked = kwargs.get("use_running_average", args[0] if args else None)
      if not (self.use_running_average if asked is None else asked):
        return call(x)  # it reads the batch and changes its statistics: nothing to fold
    out = jax.eval_shape(call, x)
    parameters = jax.tree.leaves(nnx.state(self))
    return layer_p.bind(
      jax.numpy.asarray(x), *parameters, path=self.srigl_path, shape=out.shape, dtype=out.dtype.name
    )

  return type(f"Marked{base.__name__}", (base,), {"__call__": __call__})


_CONDENSED = (CondensedLinear, CondensedConv, FoldedBatchNorm)
_MARKED: dict[Any, Any] = {base: _marked(base) for base in (*LAYERS, nnx.BatchNorm, *_CONDENSED)}
