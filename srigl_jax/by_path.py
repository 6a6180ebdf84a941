"""Dicts by path in states: as any dict, but Flax nests them at the slashes of their paths.

Many write checkpoints with flat names such as `masks/layer1/kernel` (`flatten_dict` of
`to_state_dict`, with `sep="/"`). Which slash is a path's own they do not say: what is nested comes
back from them.
"""

import sys
from typing import Any, TypeVar

import jax

T = TypeVar("T")


class ByPath(dict[str, T]):
  """A dict by path. Leaves have the key paths and the order that they have in a plain dict."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__(*args, **kwargs)
    _register_with_flax()


def _flatten(node: ByPath[Any]) -> tuple[list[tuple[Any, Any]], tuple[str, ...]]:
  keys = tuple(sorted(node))
  return [(jax.tree_util.DictKey(key), node[key]) for key in keys], keys


jax.tree_util.register_pytree_with_keys(
  ByPath,
  _flatten,
  lambda keys, leaves: ByPath(zip(keys, leaves, strict=True)),
  lambda node: ([node[key] for key in sorted(node)], tuple(sorted(node))),
)


def nested(node: dict[str, Any]) -> dict[str, Any]:
  """`{"a/b": x}` as `{"a": {"b": x}}`; flat if one path is the beginning of another."""
  tree: dict[str, Any] = {}
  for path in node:
    *parents, name = path.split("/")
    branch: Any = tree
    for parent in parents:
      branch = branch.setdefault(parent, {})
      if not isinstance(branch, dict):
        return dict(node)
    if name in branch:
      return dict(node)
    branch[name] = node[path]
  return tree


def _register_with_flax() -> None:
  """Once Flax is there: importing it for this alone would take a second, and it is optional."""
  global _is_registered
  serialization = sys.modules.get("flax.serialization")
  if _is_registered or serialization is None:
    return

  def to_state(node: ByPath[Any]) -> dict[str, Any]:
    return nested({path: serialization.to_state_dict(x) for path, x in node.items()})

  def from_state(target: ByPath[Any], state: dict[str, Any]) -> ByPath[Any]:
    restore = serialization.from_state_dict
    return ByPath({p: restore(x, _find(state, p), name=p) for p, x in target.items()})

  serialization.register_serialization_state(ByPath, to_state, from_state)
  _is_registered = True


def _find(state: dict[str, Any], path: str) -> Any:
  """What is stored at a path: nested, or flat, as in files of earlier versions."""
  if path in state:
    return state[path]
  branch: Any = state
  for name in path.split("/"):
    if not isinstance(branch, dict) or name not in branch:
      raise ValueError(f"The stored state has no {path!r}: it belongs to another model.")
    branch = branch[name]
  return branch


_is_registered = False
_register_with_flax()
