"""What all processes of a run must agree on: the state they start from, masks, when to stop."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = TypeVar("Tree")

_NOTHING, _SOMETHING, _FAILED = range(3)


def from_first_process(read: Callable[[], Tree | None], template: Tree) -> Tree | None:
  """What process 0 reads, in every process.

  Args:
    read: is called in process 0 only; returns a tree of arrays, or None.
    template: a tree of the same structure, shapes and dtypes.

  Raises:
    ValueError: in the other processes, if `read` has raised in process 0.
  """
  if jax.process_count() == 1:
    return read()
  outcome, tree = _NOTHING, None
  try:
    if jax.process_index() == 0:
      outcome = _FAILED
      tree = read()
      outcome = _NOTHING if tree is None else _SOMETHING
  finally:  # so that the others do not wait for it
    outcome = int(multihost_utils.broadcast_one_to_all(np.int32(outcome)))
  if outcome == _FAILED:
    raise ValueError("Process 0 could not read its state: see its message.")
  if outcome == _NOTHING:
    return None
  leaves, structure = jax.tree.flatten(template)
  given = jax.tree.leaves(tree) if tree is not None else leaves
  received = [_broadcast(x, like) for x, like in zip(given, leaves, strict=True)]
  return jax.tree.unflatten(structure, received)


def _broadcast(value: Any, template: Any) -> np.ndarray:
  """An array of process 0, bit for bit: as bytes, since sums turn -0 into 0."""
  shape, dtype = template.shape, np.dtype(template.dtype)
  flat = np.ascontiguousarray(np.asarray(value, dtype)).reshape(-1).view(np.uint8)
  return np.asarray(multihost_utils.broadcast_one_to_all(flat)).view(dtype).reshape(shape)
