"""Masks the param-shaped leaves of an optimizer's state, whatever the optimizer.

Optax keeps moments in trees shaped like the parameters, somewhere inside its nested states. They
are found by their paths (`0/mu/layer1/kernel` ends in the parameter's path) and their shapes, not
by naming optimizer classes: that holds for any nesting, for `optax.multi_transform` and
`optax.masked` too, whose trees have holes, and for optimizers not yet written.
"""

from collections.abc import Callable, Container, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.layers import leaf_dict, leaf_path


def mask_moments(inner_state: Any, params: Any, masks: Mapping[str, Array]) -> Any:
  """Zeroes the moments of masked weights.

  Args:
    inner_state: any optimizer state.
    params: the parameters that it belongs to (shapes and paths are looked at).
    masks: bool arrays by path.

  Returns:
    The state with every param-shaped leaf of a sparse parameter (momentum, Adam's mu and nu, an
    average of weights or gradients, ...) exactly 0 off the mask. Leaves of other shapes, such as
    Adafactor's factored second moments, stay as they are.
  """
  zero = lambda path, leaf: jnp.where(masks[path], leaf, jnp.zeros_like(leaf))
  return map_moments(zero, inner_state, params, masks)


def map_moments(
  fn: Callable[[str, Array], Array], inner_state: Any, params: Any, paths: Container[str]
) -> Any:
  """Applies `fn(path, leaf)` to the leaves shaped like the parameters at the paths."""
  shapes = {path: jnp.shape(leaf) for path, leaf in leaf_dict(params).items()}

  def visit(key_path, leaf):
    path = parameter_of(leaf_path(key_path), shapes)
    if path is None or path not in paths or jnp.shape(leaf) != shapes[path]:
      return leaf
    return fn(path, leaf)

  return jax.tree_util.tree_map_with_path(visit, inner_state)


def parameter_of(path: str, known: Mapping[str, Any]) -> str | None:
  """The longest ending of a state leaf's path that is a parameter's path."""
  parts = path.split("/")
  endings = ("/".join(parts[start:]) for start in range(len(parts) + 1))
  return next((ending for ending in endings if ending in known), None)
