"""Which optimizers can train layers in condensed form: those that treat each weight by itself."""

from collections.abc import Container
from typing import Any

import jax
import jax.numpy as jnp

from srigl_jax.layers import leaf_dict, leaf_path
from srigl_jax.moments import parameter_of

# State classes of optimizers that see a parameter as a matrix, or its mean over all entries.
_NOT_ELEMENTWISE = {
  "FactoredState": "adafactor factors its second moments by rows and columns",
  "MuonState": "muon orthogonalises the matrix of a layer's momentum",
  "ShampooState": "shampoo preconditions rows and columns",
  "ScaleBySM3State": "sm3 keeps a statistic for each row and column",
}


def check_elementwise(inner_state: Any, params: Any, paths: Container[str]) -> None:
  """Raises a ValueError if an optimizer's state shows that it does not go weight by weight.

  Args:
    inner_state: the optimizer's state.
    params: the parameters that it belongs to.
    paths: of the layers in condensed form.
  """
  is_known = lambda node: type(node).__name__ in _NOT_ELEMENTWISE
  for node in filter(is_known, jax.tree.leaves(inner_state, is_leaf=is_known)):
    _refuse(_NOT_ELEMENTWISE[type(node).__name__])
  shapes = {path: jnp.shape(leaf) for path, leaf in leaf_dict(params).items()}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(inner_state)[0]:
    path = parameter_of(leaf_path(key_path), shapes)
    if path is not None and path in paths and jnp.shape(leaf) not in ((), shapes[path]):
      _refuse(f"it keeps a statistic of shape {jnp.shape(leaf)} for the weights {path!r}")


def _refuse(reason: str) -> None:
  raise ValueError(
    f"The optimizer does not treat each weight by itself: {reason}, but a layer in condensed form "
    "has no rows and columns. Use an element-wise one (sgd, adam, adamw, lion, rmsprop, ...), or "
    "train with masks: sx.srigl."
  )
