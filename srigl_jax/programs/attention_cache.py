"""Keys and values that a program puts together from a cache and what is new."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from srigl_jax.programs.axis_labels import Labels
from srigl_jax.programs.flat_jaxpr import Op


class Parts(NamedTuple):
  """A tensor as rows of one array, and after them those of another.

  Attributes:
    head: the tensor that has the first rows, which may have more axes.
    labels: of its axes.
    offset: of the first number in it.
    tail: the tensor that has the other rows, None if there are none; its axes are those of the
      tensor that was put together.
    head_rows: of the head, if there is a tail; else 0.
    ops: that need not be computed then, in order.
  """

  head: int
  labels: Labels
  offset: int = 0
  tail: int | None = None
  head_rows: int = 0
  ops: tuple[Op, ...] = ()


def parts_of(
  x: int,
  labels: Labels,
  rows: str,
  makers: Mapping[int, Op],
  readers: Mapping[int, Sequence[Op | None]],
) -> Parts:
  """Where the rows of a tensor come from: as it is, unless it is a concatenation of two.

  The first of these may be a layer's part of the cache of all layers, `cache[layer]`.

  Args:
    x: the tensor.
    labels: of its axes.
    rows: the label of its rows.
    makers: by tensor, the operation that computes it.
    readers: by tensor, those that read it; None for the program's outputs.
  """
  whole = Parts(x, labels)
  op = makers.get(x)
  if op is None or op.primitive.name != "concatenate" or len(op.inputs) != 2:
    return whole
  if labels[op.params["dimension"]] != rows or len(readers[x]) != 1:
    return whole
  head, tail = op.inputs
  sizes = [n for aval in op.in_avals for n in aval.shape]
  if not isinstance(head, int) or not isinstance(tail, int) or not _are_known(sizes):
    return whole
  rows_before = op.in_avals[0].shape[op.params["dimension"]]
  found = Parts(head, labels, 0, tail, rows_before, (op,))
  view, chosen = makers.get(head), None
  if view is not None and view.primitive.name in ("squeeze", "reshape"):
    chosen = makers.get(view.inputs[0]) if isinstance(view.inputs[0], int) else None
  if view is None or chosen is None or chosen.primitive.name != "slice":
    return found
  if len(readers[head]) != 1 or len(readers[chosen.outputs[0]]) != 1:
    return found
  base = _labels_of_base(view, chosen, labels)
  if base is None:
    return found
  (source,), (axis, start) = chosen.inputs, _chosen(chosen)
  offset = start * math.prod(chosen.in_avals[0].shape[axis + 1 :])
  return Parts(source, base, offset, tail, rows_before, (chosen, view, op))


def _are_known(sizes: Sequence[Any]) -> bool:
  return all(isinstance(n, int) and n > 0 for n in sizes)


def _chosen(op: Op) -> tuple[int, int]:
  """The axis along which a slice takes one place, and which; -1 if it does something else."""
  starts, ends = op.params["start_indices"], op.params["limit_indices"]
  shape, strides = op.in_avals[0].shape, op.params["strides"]
  cut = [i for i, n in enumerate(shape) if (starts[i], ends[i]) != (0, n)]
  if len(cut) != 1 or (strides is not None and any(s != 1 for s in strides)):
    return -1, 0
  return (cut[0], starts[cut[0]]) if ends[cut[0]] - starts[cut[0]] == 1 else (-1, 0)


def _labels_of_base(view: Op, chosen: Op, labels: Labels) -> Labels | None:
  """Labels of the array that a slice is taken from; None if it is no place along one axis."""
  axis, _ = _chosen(chosen)
  shape = chosen.in_avals[0].shape
  if axis < 0 or not _are_known(shape) or not isinstance(chosen.inputs[0], int):
    return None
  if tuple(view.out_avals[0].shape) != (*shape[:axis], *shape[axis + 1 :]) or axis == len(labels):
    return None
  return (*labels[:axis], None, *labels[axis:])
