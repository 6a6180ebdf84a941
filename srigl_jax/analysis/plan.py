"""See before you train: what a transformation will do to each leaf of a parameter tree."""

import collections
import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from srigl_jax.allocation import Allocation, allocate
from srigl_jax.analysis.summary import format_table
from srigl_jax.layer_filters import LayerFilter, all_but, judge_leaves, select
from srigl_jax.layers import AxesFn
from srigl_jax.leaves.ends import Head, find_head
from srigl_jax.leaves.judge import Leaf
from srigl_jax.leaves.specs import LeafSpec, leaf_specs
from srigl_jax.structures import ConstantFanIn
from srigl_jax.training_plan import training_plan


class LeafPlan(NamedTuple):
  """One leaf of a `Plan`.

  Attributes:
    path: the leaf's path.
    shape: the leaf's shape.
    kind: what it is taken for: "dense", "convolution", "depthwise convolution", "attention in",
      "attention out", with "5 × " in front for a stack of five; or what is no layer: "bias",
      "norm", "embedding", "position table", "token", "adapter", "scale", "state", "statistic",
      "table", "vector", "not floating".
    rule: what it was judged by.
    num_neurons: N, of one layer of a stack; 0 if it is no layer.
    dense_fan_in: I; 0 if it is no layer.
    num_stacked: layers in a stack, 1 for others.
    sparsity: fraction of its weights that will be missing; 0 for dense layers and other leaves.
    fan_in: connections of each neuron, I for a dense layer, 0 if it is no layer; the mean where
      the structure fixes none, or the layers of a stack have different ones.
    may_ablate: whether neurons of it may be ablated.
    is_head: whether it is taken for the head.
  """

  path: str
  shape: tuple[int, ...]
  kind: str
  rule: str
  num_neurons: int
  dense_fan_in: int
  num_stacked: int
  sparsity: float
  fan_in: float
  may_ablate: bool
  is_head: bool

  @property
  def is_layer(self) -> bool:
    """Whether it counts for the sparsity."""
    return self.num_neurons > 0

  @property
  def is_sparse(self) -> bool:
    """Whether any weight will be missing."""
    return self.sparsity > 0


class Plan(NamedTuple):
  """What will be done to each leaf; `str()` is a table with the warnings below.

  Attributes:
    leaves: every leaf, in natural order of their paths.
    head: what is taken for the head, by which rule.
    warnings: what looks wrong.
  """

  leaves: tuple[LeafPlan, ...]
  head: Head
  warnings: tuple[str, ...]

  def __getitem__(self, path: str) -> LeafPlan:  # type: ignore[override]
    """The plan of one leaf by its path."""
    return {leaf.path: leaf for leaf in self.leaves}[path]

  @property
  def layers(self) -> tuple[LeafPlan, ...]:
    """The leaves that are layers."""
    return tuple(leaf for leaf in self.leaves if leaf.is_layer)

  def table(self, *, compact: bool = False) -> str:
    """The table with the warnings below.

    Args:
      compact: leave out what is no layer and by which rules leaves were judged, and let one row
        stand for all layers that differ only in a number in their paths.
    """
    return _table(self, compact)

  def __str__(self) -> str:
    return _table(self, compact=False)


def plan(
  params: Any,
  tx: Any = None,
  *,
  sparse: LayerFilter = True,
  ablate: LayerFilter | None = None,
  axes: AxesFn | None = None,
  show: bool = True,
  **sparsity_kwargs: Any,
) -> Plan:
  """Says what sparse training will do to each leaf, before anything is drawn or compiled.

  ```python
  sx.plan(params, sparsity=0.9)
  sx.plan(params, tx)  # what this transformation will do
  ```

  Args:
    params: parameter tree, of arrays or of `jax.ShapeDtypeStruct` (`jax.eval_shape` of the
      model's `init`).
    tx: an optax transformation with sparse training in it, in any nesting of others, in place of
      the arguments below.
    sparse: which layers may be sparse.
    ablate: which layers may lose neurons; all but the head by default, as for `srigl`.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised.
    show: print the plan, too.
    **sparsity_kwargs: the other arguments of `allocate`: `sparsity`, `distribution`, `density`,
      `fan_in`, `structure`. Without any of them all layers stay dense.

  Returns:
    A `Plan`.

  Raises:
    ValueError: if `tx` holds no sparse training, arguments are given beside it, or the sparsity
      does not fit the parameters.
  """
  if tx is None:
    masks_kwargs = sparsity_kwargs or {"density": 1.0}
    leaves = judge_leaves(params, sparse=sparse, axes=axes)
    allocation = allocate(params, sparse=sparse, axes=axes, **masks_kwargs)
    head = find_head(allocation.layers)
    asked = all_but(*(f"^{path}$" for path in head.paths)) if ablate is None else ablate
    ablatable = select(asked, allocation.layers, name="ablate")
  else:
    if sparsity_kwargs or sparse is not True or ablate is not None or axes is not None:
      raise ValueError(
        "tx has arguments of its own: give either `tx` or sparsity, sparse, ablate and axes."
      )
    if not callable(getattr(tx, "init", None)):
      raise ValueError(
        f"tx is a {type(tx).__name__}; it must be an optax transformation, given after the "
        "parameters: plan(params, tx)."
      )
    leaves, allocation, layers = training_plan(tx, params)
    head = find_head(allocation.layers)
    ablatable = frozenset(path for path, layer in layers.items() if layer.may_ablate)
  found = _make_plan(leaves, allocation, head, ablatable, _export_notes(params, allocation))
  if show:
    print(found)
  return found


def _make_plan(
  leaves: Mapping[str, Leaf],
  allocation: Allocation,
  head: Head,
  ablatable: frozenset[str],
  notes: list[str],
) -> Plan:
  def plan_leaf(path: str, leaf: Leaf) -> LeafPlan:
    layer, budget = leaf.layer, allocation.budgets.get(path)
    n, i = (layer.num_neurons, layer.dense_fan_in) if layer else (0, 0)
    fan_in = float(i)
    if budget is not None:
      fan_ins = np.ravel(budget) / n  # of a stack, each layer's
      fan_ins = np.trunc(fan_ins) if isinstance(allocation.structure, ConstantFanIn) else fan_ins
      fan_in = float(fan_ins.mean())
    return LeafPlan(
      path=path,
      shape=leaf.shape,
      kind=leaf.kind,
      rule=leaf.rule,
      num_neurons=n,
      dense_fan_in=i,
      num_stacked=layer.num_stacked if layer else 1,
      sparsity=0.0 if budget is None else 1 - fan_in / i,
      fan_in=fan_in,
      may_ablate=path in ablatable and path in allocation.budgets,
      is_head=path in head.paths,
    )

  doubts = [leaf.doubt for path, leaf in leaves.items() if leaf.doubt]
  exposed = [path for path in head.paths if path in ablatable and path in allocation.budgets]
  lost = []
  if exposed and head.doubt:
    paths = ", ".join(map(repr, exposed))
    lost = [f"Neurons of {paths} may be ablated: leave out of `ablate` what makes the outputs."]
  elif exposed:
    lost = [
      f"{path!r}, taken for the head, may lose outputs: leave it out of `ablate`."
      for path in exposed
    ]
  # That a head was guessed matters where that is why it keeps its neurons.
  is_safe = ablatable and ablatable.isdisjoint(head.paths)
  guessed = [head.doubt] if head.doubt and is_safe else []
  return Plan(
    leaves=tuple(plan_leaf(path, leaf) for path, leaf in leaves.items()),
    head=head,
    warnings=(*doubts, *guessed, *lost, *notes),
  )


def _export_notes(params: Any, allocation: Allocation) -> list[str]:
  """Which sparse layers the exporters will refuse, as far as their leaves tell."""
  specs = leaf_specs(params)
  refused: dict[str, list[str]] = {}
  for path, layer in allocation.layers.items():
    if path in allocation.budgets:
      reason = _why_no_export(specs[path], layer.axes.stack)
      refused.setdefault(reason, []).append(path)
  return [
    f"{', '.join(map(repr, paths))} cannot be exported in condensed form: {reason}. After training "
    "leave them out of the masks that are exported, where they stay dense; or keep them dense by "
    "`sparse`."
    for reason, paths in refused.items()
    if reason
  ]


def _why_no_export(spec: LeafSpec, stack: tuple[int, ...]) -> str:
  holder = spec.holder.removeprefix("equinox ")
  if np.dtype(spec.dtype).name not in ("float32", "bfloat16"):
    return f"condensed layers are of float32 or bfloat16, not {np.dtype(spec.dtype).name}"
  if holder and (holder not in ("Linear", "Conv", "Conv1d", "Conv2d", "Conv3d") or stack):
    own = "a module of your own" if holder == "Module" else f"equinox.nn.{holder}"
    what = "a stack" if stack else own
    return f"condense_equinox takes single equinox.nn.Linear and Conv layers, not those of {what}"
  if stack not in ((), (0,)):
    return "whole models are exported with one axis of stacked layers, the first"
  return ""


def _table(plan: Plan, compact: bool) -> str:
  columns = ["leaf", "shape", "taken for", "inputs", "neurons", "sparsity", "fan-in", "ablated"]
  columns += [] if compact else ["judged by"]
  layers = plan.layers
  rows = [_row(x)[: len(columns)] for x in (layers if compact else plan.leaves)]
  if compact:
    alike = collections.Counter(
      (re.sub(r"\d+", "#", path) if not x.is_head else path, *rest)
      for x, (path, *rest) in zip(layers, rows, strict=True)
    )
    rows = [[f"{path} ({n})" if n > 1 else path, *rest] for (path, *rest), n in alike.items()]
  size = sum(x.num_stacked * x.num_neurons * x.dense_fan_in for x in layers)
  kept = sum(x.num_stacked * x.num_neurons * x.fan_in for x in layers)
  total = ["all layers", "", "", "", "", f"{1 - kept / size:.4f}", *[""] * (len(columns) - 6)]
  heads = ", ".join(plan.head.paths)
  lines = [format_table(columns, rows, total), f"head: {heads} ({plan.head.rule})"]
  for warning in plan.warnings:
    lines += ["", textwrap.fill(f"WARNING: {warning}", 100, subsequent_indent="  ")]
  return "\n".join(lines)


def _row(x: LeafPlan) -> list[str]:
  shape = "×".join(map(str, x.shape))
  if not x.is_layer:
    return [x.path, shape, x.kind, "", "", "", "", "", x.rule]
  return [
    x.path,
    shape,
    f"{x.kind}, head" if x.is_head else x.kind,
    str(x.dense_fan_in),
    str(x.num_neurons),
    f"{x.sparsity:.4f}" if x.is_sparse else "dense",
    f"{x.fan_in:.4g}" if x.fan_in == int(x.fan_in) else f"~{x.fan_in:.4g}",
    "may be" if x.may_ablate else "never",
    x.rule,
  ]
