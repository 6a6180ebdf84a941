"""States as earlier versions named their fields, so that their checkpoints can still be read."""

import collections
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

import srigl_jax as sx

State = TypeVar("State")

_FORMER_FIELDS = tuple("memory" if name == "extra" else name for name in sx.SparseState._fields)
_FormerState = collections.namedtuple("_FormerState", _FORMER_FIELDS)  # type: ignore[misc]


def named_as_stored(template: State, stored: Any) -> State:
  """The template with the names of a stored one, where `SparseState.extra` may be `memory`."""
  if not _has_key(stored, "memory"):
    return template
  is_sparse = lambda x: isinstance(x, sx.SparseState)
  rename = lambda x: _FormerState(*x) if is_sparse(x) else x
  return jax.tree.map(rename, template, is_leaf=is_sparse)


def _has_key(tree: Any, key: str) -> bool:
  if isinstance(tree, Mapping):
    return key in tree or any(_has_key(x, key) for x in tree.values())
  return isinstance(tree, list | tuple) and any(_has_key(x, key) for x in tree)
