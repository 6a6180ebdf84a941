"""States as earlier versions had their fields, so that their checkpoints can still be read."""

import collections
from collections.abc import Mapping
from typing import Any, TypeVar

import jax

import srigl_jax as sx

State = TypeVar("State")


def as_stored(template: State, stored: Any) -> State:
  """The template with the fields of a stored state.

  `SparseState.extra` may be `memory` there, and `noticed` not be there yet; nor may `experience`,
  the field of a whole state that is empty unless a network acts.

  Args:
    template: a state of today's fields.
    stored: the stored tree, or its metadata.
  """
  whole: Any = template
  if hasattr(whole, "experience") and not _has_key(stored, "experience"):
    kept = {name: field for name, field in whole._asdict().items() if name != "experience"}
    template = collections.namedtuple("_FormerState", kept)(**kept)  # type: ignore[assignment]
  fields = [name for name in sx.SparseState._fields if name != "noticed" or _has_key(stored, name)]
  names = ["memory" if name == "extra" and _has_key(stored, "memory") else name for name in fields]
  if tuple(names) == sx.SparseState._fields:
    return template
  former = collections.namedtuple("_FormerState", names)  # type: ignore[misc]
  convert = lambda x: former(*(getattr(x, name) for name in fields)) if _is_sparse(x) else x
  return jax.tree.map(convert, template, is_leaf=_is_sparse)


def as_now(template: State, restored: Any) -> State:
  """A state restored into `as_stored` of a template, in today's fields; new ones are as there."""
  leaves = iter(jax.tree.leaves(restored))

  def take(x: Any) -> Any:
    if not _is_sparse(x):
      return next(leaves)
    has = len(jax.tree.leaves(restored)) == len(jax.tree.leaves(template))
    filled = {
      name: value if name == "noticed" and not has else jax.tree.map(lambda _: next(leaves), value)
      for name, value in x._asdict().items()
    }
    return sx.SparseState(**filled)

  return jax.tree.map(take, template, is_leaf=_is_sparse)


def _is_sparse(node: Any) -> bool:
  return isinstance(node, sx.SparseState)


def _has_key(tree: Any, key: str) -> bool:
  if isinstance(tree, Mapping):
    return key in tree or any(_has_key(x, key) for x in tree.values())
  return isinstance(tree, list | tuple) and any(_has_key(x, key) for x in tree)
