"""What an optimizer's state holds for single weights, whatever the optimizer.

Optax keeps moments in trees shaped like the parameters, somewhere inside its nested states. They
are found by their paths (`0/mu/layer1/kernel` ends in the parameter's path) and their shapes, not
by naming optimizer classes: that holds for any nesting, for `optax.multi_transform` and
`optax.masked` too, whose trees have holes, and for optimizers not yet written.
"""

from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax.layers import leaf_dict, leaf_path, map_leaves

_ZEROS: Mapping[str, Array] = {}


def fresh_state(
  inner: optax.GradientTransformation, params: Any, paths: Mapping[str, Any]
) -> dict[str, Array]:
  """What `inner.init` has for weights that are 0, as those that grow: its leaves by path.

  Adam's moments are 0 then. Adagrad's sum of squares and RMSprop's mean may start at something
  else, and COCOB's scale must.

  Args:
    inner: the optimizer.
    params: the parameters.
    paths: of the leaves that are to be 0; the others are as they are.
  """
  zeros = map_leaves(lambda x, _: jnp.zeros_like(x), params, paths)
  return _by_path(inner.init(zeros))


def mask_moments(
  inner_state: Any,
  params: Any,
  masks: Mapping[str, Array],
  fresh: Mapping[str, Array] = _ZEROS,
) -> Any:
  """Replaces the moments of masked weights by those of weights that have just begun.

  Args:
    inner_state: any optimizer state.
    params: the parameters that it belongs to (shapes and paths are looked at).
    masks: bool arrays by path.
    fresh: from `fresh_state`; what it does not have is 0.

  Returns:
    The state with every param-shaped leaf of a sparse parameter (momentum, Adam's mu and nu, an
    average of weights or gradients, ...) off the mask as in `fresh`: mostly 0. Leaves of other
    shapes, such as Adafactor's factored second moments, stay as they are.
  """
  mask = lambda path, leaf, start: jnp.where(masks[path], leaf, start)
  return map_moments(mask, inner_state, params, masks, fresh)


def map_moments(
  fn: Callable[[str, Array, Array], Array],
  inner_state: Any,
  params: Any,
  paths: Container[str],
  fresh: Mapping[str, Array] = _ZEROS,
) -> Any:
  """Applies `fn(path, leaf, its fresh value)` to the leaves shaped like the parameters."""
  shapes = {path: jnp.shape(leaf) for path, leaf in leaf_dict(params).items()}

  def visit(key_path, leaf):
    at = leaf_path(key_path)
    path = parameter_of(at, shapes)
    if path is None or path not in paths or jnp.shape(leaf) != shapes[path]:
      return leaf
    return fn(path, leaf, fresh[at].astype(leaf.dtype) if at in fresh else jnp.zeros_like(leaf))

  return jax.tree_util.tree_map_with_path(visit, inner_state)


def parameter_of(path: str, known: Mapping[str, Any]) -> str | None:
  """The longest ending of a state leaf's path that is a parameter's path."""
  parts = path.split("/")
  endings = ("/".join(parts[start:]) for start in range(len(parts) + 1))
  return next((ending for ending in endings if ending in known), None)


def start_from(
  inner: optax.GradientTransformation, inner_state: Any, params: Any, step: Array
) -> Any:
  """In the first step, what the state remembers of the weights at the start is that of these.

  Prodigy, DoG, COCOB, schedule-free and others keep the parameters that `init` was given. Those
  are others where weights were drawn after it, since drawing them takes the masks.

  Args:
    inner: the optimizer.
    inner_state: its state.
    params: the parameters, masked.
    step: `[]` int32, steps done before this one.

  Returns:
    The state; that of an optimizer whose `init` looks at shapes alone as it is.
  """
  from_weights = _depend_on_weights(inner, params)
  if not any(from_weights):
    return inner_state
  start = _by_path(inner.init(params))
  depends = dict(zip(start, from_weights, strict=True))

  def visit(key_path, leaf):
    at = leaf_path(key_path)
    return jnp.where(step == 0, start[at].astype(leaf.dtype), leaf) if depends.get(at) else leaf

  return jax.tree_util.tree_map_with_path(visit, inner_state)


def _depend_on_weights(inner: optax.GradientTransformation, params: Any) -> list[bool]:
  """For each leaf of the optimizer's first state, whether it depends on the weights' values."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), params)
  jaxpr = jax.make_jaxpr(inner.init)(shapes).jaxpr
  dependent = set(jaxpr.invars)
  for equation in jaxpr.eqns:
    if any(not isinstance(x, jax.extend.core.Literal) and x in dependent for x in equation.invars):
      dependent.update(equation.outvars)
  return [not isinstance(x, jax.extend.core.Literal) and x in dependent for x in jaxpr.outvars]


def _by_path(state: Any) -> dict[str, Array]:
  return {leaf_path(at): x for at, x in jax.tree_util.tree_flatten_with_path(state)[0]}
