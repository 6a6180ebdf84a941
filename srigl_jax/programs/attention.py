"""Finds attention in a traced program, however it is written, and gives it to a native kernel.

What is looked for is a product of queries and keys, scaled and masked or not, whose softmax over
the keys is multiplied by values. Axes may come in any order; each is followed by a label from the
first product on: the axes of the batch by number, those of the two factors as "left" and "right".
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srigl_jax.programs import axis_labels
from srigl_jax.programs.attention_cache import Parts, parts_of
from srigl_jax.programs.attention_op import Found, attention_p
from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op
from srigl_kernels.backends.cpu import attention as native

_COPIES = "broadcast_in_dim", "transpose", "reshape", "convert_element_type"  # of a scalar
_SIDES = "left", "right"  # factors of the first product


class _State(NamedTuple):
  """What is known of a tensor between the first product and the result.

  Attributes:
    kind: "scores", "largest", "shifted", "powers", "sums", "shares" or "result".
    labels: of its axes; None of those of one place.
    source: the tensor of scores that it was made of.
  """

  kind: str
  labels: axis_labels.Labels
  source: int


def rewrite(jaxpr: FlatJaxpr) -> FlatJaxpr:
  """The program with an operation of `attention_p` for each attention that is found.

  What it replaces stays in the program, and nothing reads it.

  Args:
    jaxpr: the program.
  """
  makers = {x: op for op in jaxpr.ops for x in op.outputs}
  readers: dict[int, list[Op | None]] = {}
  for op in (*jaxpr.ops, None):
    for x in jaxpr.outputs if op is None else op.inputs:
      if isinstance(x, int):
        readers.setdefault(x, []).append(op)
  replaced: dict[int, Op] = {}
  for op in jaxpr.ops:
    if op.primitive is jax.lax.dot_general_p:
      new = _Search(jaxpr, makers, readers).run(op)
      if new is not None:
        replaced[new.outputs[0]] = new
  if not replaced:
    return jaxpr
  ops = [replaced.get(op.outputs[0], op) if len(op.outputs) == 1 else op for op in jaxpr.ops]
  return jaxpr._replace(ops=tuple(ops))


class _Search:
  """The search for one attention, from its first product on."""

  def __init__(self, jaxpr: FlatJaxpr, makers: dict[int, Op], readers: dict[int, list[Op | None]]):
    self.jaxpr, self.makers, self.readers = jaxpr, makers, readers
    self.states: dict[int, _State] = {}
    self.scale, self.fill = 1.0, -np.inf
    self.mask: Op | None = None  # what chooses between scores and `fill`
    self.keys = ""  # "left" or "right"
    self.values: tuple[Op, int] | None = None  # the second product, and the place of its values

  def run(self, first: Op) -> Op | None:
    """The operation for the attention that begins with a product, if one does."""
    self.first, ops = first, [first]
    labels = self._first_labels()
    if labels is None:
      return None
    self.states[first.outputs[0]] = _State("scores", labels, first.outputs[0])
    for op in self.jaxpr.ops:
      known = [self.states.get(x) if isinstance(x, int) else None for x in op.inputs]
      if not any(known) or op is first:
        continue
      if self.values is not None and not self._goes_on(op):
        continue
      state = self._next(op, known)
      if state is None:
        return None
      self.states[op.outputs[0]] = state
      ops.append(op)
    return None if self.values is None else self._operation(ops)

  def _first_labels(self) -> axis_labels.Labels | None:
    contracted, batch = self.first.params["dimension_numbers"]
    if any(a.dtype != jnp.float32 for a in (*self.first.in_avals, *self.first.out_avals)):
      return None
    if any(
      tuple(axes) != (len(aval.shape) - 1,)
      for axes, aval in zip(contracted, self.first.in_avals, strict=True)
    ):
      return None
    self.sides = [
      axis_labels.side_labels(a, b, name)
      for a, b, name in zip(self.first.in_avals, batch, _SIDES, strict=True)
    ]
    if any(side.count(name) > 1 for side, name in zip(self.sides, _SIDES, strict=True)):
      return None  # two axes of rows
    free = [
      [label for i, label in enumerate(side[:-1]) if i not in b]
      for side, b in zip(self.sides, batch, strict=True)
    ]
    return tuple([self.sides[0][i] for i in batch[0]] + free[0] + free[1])

  def _goes_on(self, op: Op) -> bool:
    """Whether an operation behind the second product only turns the result's axes."""
    x = op.inputs[0]
    is_result = isinstance(x, int) and x in self.states and self.states[x].kind == "result"
    alone = is_result and len(self.readers[x]) == 1
    return alone and axis_labels.view_labels(op, self.states[x].labels) is not None

  def _next(self, op: Op, known: Sequence[_State | None]) -> _State | None:
    """What an operation gives of what is known; None if that is no part of an attention."""
    given = [(i, state) for i, state in enumerate(known) if state is not None]
    if len(op.outputs) != 1 or op.has_effects:
      return None
    (place, state), name = given[0], op.primitive.name
    if len(given) == 1:
      labels = axis_labels.view_labels(op, state.labels, copies=state.kind in ("largest", "sums"))
      if labels is not None:
        return state._replace(labels=labels)
      return self._of_one(op, name, place, state)
    if len(given) > 2:
      return None
    (_, a), (_, b) = given
    if a.source != b.source or not axis_labels.fits(a.labels, b.labels):
      return None
    if name == "sub" and (a.kind, b.kind) == ("scores", "largest"):
      return a._replace(kind="shifted")
    if name == "div" and (a.kind, b.kind) == ("powers", "sums"):
      return a._replace(kind="shares")
    return None

  def _of_one(self, op: Op, name: str, place: int, state: _State) -> _State | None:
    others = [x for i, x in enumerate(op.inputs) if i != place]
    if state.kind == "scores" and name in ("mul", "div") and self.mask is None:
      number = self._number(others[0])
      if number is None or (name == "div" and place == 1):
        return None
      self.scale = self.scale * number if name == "mul" else self.scale / number
      return state._replace(source=op.outputs[0])
    if state.kind == "scores" and name == "select_n" and place == 2 and self.mask is None:
      fill = self._number(op.inputs[1])
      mask, scores = op.in_avals[0], op.in_avals[2]
      if fill is None or mask.dtype != bool or mask.shape != scores.shape:
        return None
      self.fill, self.mask = fill, op
      return state._replace(source=op.outputs[0])
    if name in ("reduce_max", "reduce_sum") and state.kind in ("scores", "powers"):
      if (name == "reduce_max") != (state.kind == "scores"):
        return None
      axes = op.params["axes"]
      keys = state.labels[axes[0]] if len(axes) == 1 else None
      if keys not in _SIDES or self.keys not in ("", keys):
        return None
      self.keys = keys
      labels = tuple(label for i, label in enumerate(state.labels) if i != axes[0])
      return _State("largest" if name == "reduce_max" else "sums", labels, state.source)
    if name == "max" and state.kind == "largest":
      return state if self._number(others[0]) == -np.inf else None
    if name == "exp" and state.kind == "shifted":
      return state._replace(kind="powers")
    if name == "dot_general" and state.kind == "shares":
      return self._of_values(op, place, state)
    return None

  def _of_values(self, op: Op, place: int, state: _State) -> _State | None:
    (contracted, batch), other = op.params["dimension_numbers"], 1 - place
    mine, aval = list(state.labels), op.in_avals[other]
    if any(a.dtype != jnp.float32 for a in (aval, *op.out_avals)):
      return None
    if [mine[i] for i in contracted[place]] != [self.keys]:
      return None
    labels: list[int | str | None] = [None] * len(aval.shape)
    labels[contracted[other][0]] = self.keys
    for i, j in zip(batch[place], batch[other], strict=True):
      labels[j] = mine[i]
    used = {*contracted[other], *batch[other]}
    free = [i for i in range(len(labels)) if i not in used]
    if [i for i in free if not axis_labels.is_one(aval.shape[i])] != [len(labels) - 1]:
      return None
    labels[-1] = "width"
    rows = [x for i, x in enumerate(mine) if i not in (*contracted[place], *batch[place])]
    columns = [labels[i] for i in free]
    self.values, self.value_labels = (op, other), tuple(labels)
    first = [mine[i] for i in batch[place]]
    both = [*rows, *columns] if place == 0 else [*columns, *rows]
    return _State("result", (*first, *both), state.source)

  def _number(self, x: Any) -> float | None:
    """The value of a scalar, or of copies of one."""
    while isinstance(x, int) and x in self.makers:
      op = self.makers[x]
      if op.primitive.name not in _COPIES:
        return None
      x = op.inputs[0]
    if isinstance(x, int):
      x = self.jaxpr.consts.get(x)
    return float(x) if isinstance(x, np.ndarray) and x.ndim == 0 else None

  def _operation(self, ops: list[Op]) -> Op | None:
    """The operation in place of those that were found."""
    output = ops[-1].outputs[0]
    inside = {x for op in ops for x in op.outputs} - {output}
    if any(not any(op is o for o in ops) for x in inside for op in self.readers.get(x, [])):
      return None  # something else reads what lies between
    assert self.values is not None
    value_op, place = self.values
    if not self.keys or self.states[output].labels[-1] != "width":
      return None
    first = self.first.inputs
    k_side = _SIDES.index(self.keys)
    q, k, v = first[1 - k_side], first[k_side], value_op.inputs[place]
    if not all(isinstance(x, int) for x in (q, k, v)):
      return None
    queries = _SIDES[1 - k_side]
    depth, width = self.first.in_avals[0].shape[-1], value_op.in_avals[place].shape[-1]
    batch = sorted(x for x in {*self.sides[0], *self.sides[1]} if isinstance(x, int))
    keys = self.first.in_avals[k_side].shape
    if not all(isinstance(n, int) and 1 <= n <= native.MOST_DEPTH for n in (depth, width)):
      return None
    if len(batch) > native.MOST_BATCH_AXES or 0 in keys:
      return None
    find = functools.partial(parts_of, rows=self.keys, makers=self.makers, readers=self.readers)
    of_k, of_v = find(k, self.sides[k_side]), find(v, self.value_labels)
    if of_k.head_rows != of_v.head_rows:  # each key needs its value in the same part
      of_k, of_v = Parts(k, self.sides[k_side]), Parts(v, self.value_labels)
    ops = [*of_k.ops, *of_v.ops, *ops]
    inside |= {x for op in (*of_k.ops, *of_v.ops) for x in op.outputs}
    externals = tuple(
      dict.fromkeys(x for op in ops for x in op.inputs if isinstance(x, int) and x not in inside)
    )
    mask: int | None = None
    mask_axes: tuple[int, ...] = ()
    if self.mask is not None:
      mask, mask_axes = self._mask(self.mask, batch, queries)
      if mask is None:
        return None
    axes = lambda labels, rows: axis_labels.places(labels, (*batch, rows))
    layout = native.Layout(
      axes(self.sides[1 - k_side], queries),
      axes(of_k.labels, self.keys),
      axes(of_v.labels, self.keys),
      mask_axes,
      axes(self.states[output].labels, queries),
      () if of_k.tail is None else axes(self.sides[k_side], self.keys),
      () if of_v.tail is None else axes(self.value_labels, self.keys),
      (of_k.offset, of_v.offset),
    )
    how = {"layout": layout, "shape": ops[-1].out_avals[0].shape, "scale": self.scale}
    how["fill"] = self.fill
    arrays = (q, of_k.head, of_v.head, of_k.tail, of_v.tail)
    roles = tuple(externals.index(x) for x in arrays if x is not None)
    found = Found(tuple(ops), externals, roles, how, output)
    inputs = externals if mask is None else (*externals, mask)
    avals: dict[Any, Any] = {}
    for op in self.jaxpr.ops:
      avals |= {x: a for x, a in zip(op.inputs, op.in_avals, strict=True) if isinstance(x, int)}
    in_avals = tuple(avals[x] for x in inputs)
    return Op(attention_p, {"found": found}, inputs, (output,), in_avals, ops[-1].out_avals)

  def _mask(
    self, choice: Op, batch: Sequence[int], queries: str
  ) -> tuple[int | None, tuple[int, ...]]:
    """The smallest array that the mask is a copy of, and its axes; its last is that of the keys."""
    x = choice.inputs[0]
    labels: axis_labels.Labels | None = self.states[choice.outputs[0]].labels
    best: tuple[int | None, tuple[int, ...]] = (None, ())
    while isinstance(x, int) and labels is not None:
      if labels and labels[-1] == self.keys:
        rows = axis_labels.places(labels, (*batch, queries))
        best = (x, rows)
      op = self.makers.get(x)
      if op is None:
        break
      if op.primitive.name == "and":
        others = [x for x in op.inputs if self._number(x) != 1.0]
        if len(others) != 1:
          break
        x = others[0]
      else:
        labels = axis_labels.copied_labels(op, labels)
        x = op.inputs[0] if op.inputs else None
    return best
