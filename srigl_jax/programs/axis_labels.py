"""Labels of a tensor's axes, followed through what only turns them or adds and removes some."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from srigl_jax.programs.flat_jaxpr import Op

Labels = tuple[int | str | None, ...]
"""Of the axes of a tensor; None of those of one place."""

_RESHAPES = ("reshape", "squeeze", "expand_dims")


def is_one(size: Any) -> bool:
  """Whether an axis has one place; not, if its size is left open."""
  return isinstance(size, int) and size == 1


def fits(a: Labels, b: Labels) -> bool:
  """Whether b has the axes of a, or one place."""
  return len(a) == len(b) and all(y in (x, None) for x, y in zip(a, b, strict=True))


def view_labels(op: Op, labels: Labels, copies: bool = False) -> Labels | None:
  """The labels of what an operation turns or names anew; None of one that does something else.

  Args:
    op: the operation.
    labels: of the axes of its input.
    copies: whether it may also copy, along axes that have no label then.
  """
  name = op.primitive.name
  if name in ("stop_gradient", "copy", "copy_p"):
    return labels
  if name == "transpose":
    return tuple(labels[i] for i in op.params["permutation"])
  if name in _RESHAPES:
    return reshaped(op.in_avals[0].shape, op.out_avals[0].shape, labels)
  if name == "broadcast_in_dim" and len(op.inputs) == 1:
    before, after = op.in_avals[0].shape, op.out_avals[0].shape
    dims = op.params["broadcast_dimensions"]
    kept = {d for i, d in enumerate(dims) if before[i] == after[d]}
    if not copies and any(not is_one(n) for d, n in enumerate(after) if d not in kept):
      return None
    new: list[int | str | None] = [None] * len(after)
    for label, d in zip(labels, dims, strict=True):
      new[d] = label
    return tuple(new)
  return None


def reshaped(before: Sequence[Any], after: Sequence[Any], labels: Labels) -> Labels | None:
  """The labels behind a reshape that only adds and removes axes of one place."""
  kept = [(n, x) for n, x in zip(before, labels, strict=True) if not is_one(n)]
  if [n for n, _ in kept] != [n for n in after if not is_one(n)]:
    return None
  rest = iter(x for _, x in kept)
  return tuple(None if is_one(n) else next(rest) for n in after)


def copied_labels(op: Op, labels: Labels) -> Labels | None:
  """The labels of what an operation copies, from those of its result; None if it does more.

  An axis along which all is the same has the label None.
  """
  name, before = op.primitive.name, op.in_avals[0].shape if op.in_avals else ()
  if name == "transpose":
    return tuple(labels[i] for i in np.argsort(op.params["permutation"]))
  if name == "broadcast_in_dim" and len(op.inputs) == 1:
    dims = op.params["broadcast_dimensions"]
    return tuple(None if is_one(n) else labels[d] for n, d in zip(before, dims, strict=True))
  if name in _RESHAPES:
    return reshaped(op.out_avals[0].shape, before, labels)
  return None


def side_labels(aval: Any, batch: Sequence[int], name: str) -> Labels:
  """The labels of a factor of a product over last axes.

  Args:
    aval: of the factor.
    batch: its axes that both factors have, which are numbered.
    name: of its other axes but the last, which is "depth".
  """
  place = {axis: i for i, axis in enumerate(batch)}
  *sizes, _ = aval.shape
  return (*(None if is_one(n) else place.get(i, name) for i, n in enumerate(sizes)), "depth")


def places(labels: Labels, wanted: Sequence[int | str]) -> tuple[int, ...]:
  """The axes that have these labels; -1 for each that none has."""
  return tuple(labels.index(x) if x in labels else -1 for x in wanted)
