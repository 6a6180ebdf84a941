"""Checksums of a tree of arrays, leaf by leaf, by which damage on a disk is detected.

They are taken of the arrays before they are written and again after they were read, so they cover
all that lies between: files, file system, and the libraries that write and read.
"""

import hashlib
from typing import Any, NamedTuple

import jax
import numpy as np


class Leaf(NamedTuple):
  """What is known of an array without its numbers.

  Attributes:
    dtype: name of its type.
    shape: its shape.
    sha256: of its bytes, row by row; empty if not known.
  """

  dtype: str
  shape: tuple[int, ...]
  sha256: str = ""


def signature(tree: Any) -> dict[str, Leaf]:
  """Types and shapes by path; a field of a tuple and a key of a dict look alike."""
  return {path: Leaf(np.dtype(x.dtype).name, tuple(x.shape)) for path, x in _leaves(tree)}


def checksums(tree: Any) -> dict[str, Leaf]:
  """Types, shapes and checksums by path, see `signature`; waits for the arrays."""
  return {
    path: Leaf(np.dtype(x.dtype).name, tuple(x.shape), _sha256(np.asarray(x)))
    for path, x in _leaves(tree)
  }


def differing(a: dict[str, Leaf], b: dict[str, Leaf]) -> list[str]:
  """Paths at which two trees differ, in order; a checksum that is not known differs from none."""
  return sorted(path for path in a.keys() | b.keys() if not _agree(a.get(path), b.get(path)))


def to_json(leaves: dict[str, Leaf]) -> dict[str, list[Any]]:
  """As JSON can hold it."""
  return {path: [leaf.dtype, list(leaf.shape), leaf.sha256] for path, leaf in leaves.items()}


def from_json(value: dict[str, list[Any]]) -> dict[str, Leaf]:
  """What `to_json` was given.

  Raises:
    ValueError: if it is not of this form.
  """
  try:
    return {path: Leaf(d, tuple(s), digest) for path, (d, s, digest) in value.items()}
  except (TypeError, ValueError, AttributeError) as error:
    raise ValueError(f"the list of checksums is not as it should be: {error}") from error


def _leaves(tree: Any) -> list[tuple[str, Any]]:
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return [(jax.tree_util.keystr(p, simple=True, separator="/"), leaf) for p, leaf in leaves]


def _sha256(array: np.ndarray) -> str:
  as_bytes = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return hashlib.sha256(as_bytes.data).hexdigest()


def _agree(a: Leaf | None, b: Leaf | None) -> bool:
  if a is None or b is None or a[:2] != b[:2]:
    return False
  return not a.sha256 or not b.sha256 or a.sha256 == b.sha256
