"""What a sparse network looks like, layer by layer: records that print as a table."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from srigl_jax.analysis.flops import relative_flops
from srigl_jax.analysis.paths import broken_paths
from srigl_jax.arguments import ARRAYS, check_by_path
from srigl_jax.condensed_training.tree import Pattern, dense_shapes
from srigl_jax.layer_filters import LayerFilter, find_layers
from srigl_jax.layers import AxesFn, Layer, check_paths
from srigl_jax.masks import fan_ins
from srigl_jax.stacks import layer_names, leaf_of, num_weights, one_layer


class LayerSummary(NamedTuple):
  """One layer of a `Summary`.

  Attributes:
    path: the leaf's path; of a layer in a stack with its index, `blocks/mlp/kernel[3]`.
    shape: the kernel's shape.
    num_neurons: N.
    dense_fan_in: I.
    density: active weights / all weights; 1 for a dense layer.
    active_neurons: neurons with a connection at all.
    min_fan_in: the smallest fan-in of an active neuron (0 if none is active).
    max_fan_in: the largest one.
    itop_rate: fraction of the weights that were ever active; None if not asked for.
    macs: multiply-accumulates of the dense layer for one example; None if not asked for.
  """

  path: str
  shape: tuple[int, ...]
  num_neurons: int
  dense_fan_in: int
  density: float
  active_neurons: int
  min_fan_in: int
  max_fan_in: int
  itop_rate: float | None
  macs: int | None

  @property
  def size(self) -> int:
    """Number of weights when dense."""
    return self.num_neurons * self.dense_fan_in

  @property
  def is_sparse(self) -> bool:
    """Whether any weight is missing."""
    return self.density < 1


class Summary(NamedTuple):
  """Statistics of a sparse network; `str()` is a table.

  Attributes:
    layers: every layer that counts, dense ones and those of stacks included, in natural order of
      the leaves' paths.
  """

  layers: tuple[LayerSummary, ...]

  @property
  def density(self) -> float:
    """Active weights of all layers / their weights when dense."""
    return sum(x.density * x.size for x in self.layers) / sum(x.size for x in self.layers)

  @property
  def sparsity(self) -> float:
    """`1 - density`."""
    return 1 - self.density

  @property
  def active_neurons(self) -> float:
    """Share of the layers' neurons that have a connection at all."""
    return sum(x.active_neurons for x in self.layers) / sum(x.num_neurons for x in self.layers)

  @property
  def itop_rate(self) -> float | None:
    """Share of all layers' weights that were ever active, dense layers counting in full.

    Source: Liu et al., Do We Actually Need Dense Over-Parameterization? (arXiv:2102.02887).
    """
    if any(x.itop_rate is None for x in self.layers):
      return None
    explored = sum((x.itop_rate or 0.0) * x.size for x in self.layers)
    return explored / sum(x.size for x in self.layers)

  @property
  def inference_flops(self) -> float | None:
    """FLOPs of a forward pass relative to dense; see `relative_flops`."""
    macs = {x.path: x.macs for x in self.layers if x.macs is not None}
    if not macs:
      return None
    return relative_flops(macs, {x.path: x.density for x in self.layers if x.path in macs})

  def __str__(self) -> str:
    return _table(self)


def summarize(
  params: Any,
  masks: Mapping[str, Array | Pattern],
  *,
  explored: Mapping[str, Array] | None = None,
  macs: Mapping[str, int] | None = None,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> Summary:
  """Counts what the masks leave of each layer. Runs on the host.

  Args:
    params: parameter tree, of arrays or of `jax.ShapeDtypeStruct`.
    masks: bool arrays by path, or patterns of layers in condensed form; layers without one are
      dense.
    explored: weights that were ever active (`get_state(opt_state).explored`), for the ITOP rate; of
      layers in condensed form their bits (`state.explored`).
    macs: multiply-accumulates of each dense layer (`layer_macs`), for FLOPs.
    sparse: as given to the transformation, where it asked for unusual leaves.
    axes: the layout of kernels, where masks that do not come from `get_masks` have another.

  Returns:
    A `Summary`. A warning says so if a layer has lost all of its weights, or outputs are reached
    by no path from an input.

  Raises:
    ValueError: if a mask's path is no layer's.
  """
  wanted = "bool arrays, from get_masks(opt_state), or patterns"
  check_by_path("masks", masks, (*ARRAYS, Pattern), wanted)
  patterns = {path: mask for path, mask in masks.items() if isinstance(mask, Pattern)}
  layers = find_layers(dense_shapes(params, patterns), sparse=sparse, axes=axes, masks=masks)
  check_paths(masks, layers, name="masks")
  counts_of: dict[str, np.ndarray] = {}

  def summarize_leaf(path: str, leaf: Layer) -> list[LayerSummary]:
    mask, macs_of_leaf = masks.get(path), None if macs is None else macs.get(path)
    if mask is None:
      counts = np.full((leaf.num_stacked, leaf.num_neurons), leaf.dense_fan_in)
    elif isinstance(mask, Pattern):
      num_active, fan_in = (int(n) for n in mask.sizes)
      counts = np.where(np.arange(leaf.num_neurons) < num_active, fan_in, 0)[None]
    else:
      counts = np.asarray(fan_ins(mask, leaf)).reshape(leaf.num_stacked, -1)
    counts_of.update(zip(layer_names(leaf), counts, strict=True))
    ever = None
    if explored is not None:
      ever = _num_set(explored[path], leaf) / leaf.size if path in explored else None
    return [
      LayerSummary(
        path=name,
        shape=one_layer(leaf).shape,
        num_neurons=leaf.num_neurons,
        dense_fan_in=leaf.dense_fan_in,
        density=float(of_layer.sum() / leaf.size),
        active_neurons=int((of_layer > 0).sum()),
        min_fan_in=int(of_layer[of_layer > 0].min(initial=leaf.dense_fan_in))
        if any(of_layer)
        else 0,
        max_fan_in=int(of_layer.max(initial=0)),
        itop_rate=None if explored is None else 1.0 if ever is None else float(ever[i]),
        macs=None if macs_of_leaf is None else macs_of_leaf // leaf.num_stacked,
      )
      for i, (name, of_layer) in enumerate(zip(layer_names(leaf), counts, strict=True))
    ]

  summary = Summary(tuple(x for path, leaf in layers.items() for x in summarize_leaf(path, leaf)))
  if not patterns:  # a constant fan-in, which leaves paths
    for broken in broken_paths(layers, masks, counts_of):
      warnings.warn(broken, stacklevel=2)
  return summary


def _num_set(explored: Array, leaf: Layer) -> np.ndarray:
  """How many weights of each of a leaf's layers are marked, in a bool array or in packed bits."""
  marks = np.asarray(explored)
  if marks.dtype == np.uint8:
    return np.asarray([np.bitwise_count(marks).sum()])
  return np.ravel(num_weights(marks, leaf))


def warn_if_over_ablated(
  summary: Summary, gamma_sal: float, *, threshold: float = 0.5
) -> list[str]:
  """Warns about layers that lost most of their neurons although they are not very sparse.

  Ablation is meant for neurons that a very sparse layer cannot feed. A layer at, say, 80 %
  sparsity that loses more than half of its neurons in the first updates has a `gamma_sal` too high
  for it, as happens to multi-layer perceptrons.

  Args:
    summary: from `summarize`, soon after the first topology updates.
    gamma_sal: the setting in force.
    threshold: fraction of ablated neurons from which to warn.

  Returns:
    Paths of those layers (sparsity at most 0.95), each warned about.
  """
  over = [
    x
    for x in summary.layers
    if 0.05 <= x.density < 1 and x.active_neurons < (1 - threshold) * x.num_neurons
  ]
  for x in over:
    warnings.warn(
      f"Layer {x.path!r} has lost {x.num_neurons - x.active_neurons} of its {x.num_neurons} "
      f"neurons at only {1 - x.density:.0%} sparsity: gamma_sal={gamma_sal} is too high for it. "
      "Lower gamma_sal (0 for no ablation), or protect the layer with "
      f"ablate=all_but('head', {leaf_of(x.path)!r}).",
      stacklevel=2,
    )
  return [x.path for x in over]


def _table(summary: Summary) -> str:
  columns = ["layer", "shape", "density", "fan-in", "active neurons"]
  has_itop = summary.itop_rate is not None
  has_macs = summary.inference_flops is not None
  columns += ["ITOP"] * has_itop + ["MACs"] * has_macs

  def fan_in(x: LayerSummary) -> str:
    kept = f"{x.min_fan_in}" if x.min_fan_in == x.max_fan_in else f"{x.min_fan_in}–{x.max_fan_in}"
    return f"{kept} of {x.dense_fan_in}"

  rows = [
    [
      x.path,
      "×".join(map(str, x.shape)),
      f"{x.density:.4f}" if x.is_sparse else "dense",
      fan_in(x),
      f"{x.active_neurons} of {x.num_neurons}",
      *([f"{x.itop_rate:.3f}"] if has_itop else []),
      *([f"{round(x.density * x.macs):,}" if x.macs is not None else "–"] if has_macs else []),
    ]
    for x in summary.layers
  ]
  total = ["all layers", "", f"{summary.density:.4f}", "", f"{summary.active_neurons:.1%}"]
  total += [f"{summary.itop_rate:.3f}"] if has_itop else []
  total += [f"{summary.inference_flops:.3f} of dense"] if has_macs else []
  return format_table(columns, rows, total)


def format_table(
  columns: Sequence[str], rows: Sequence[Sequence[str]], total: Sequence[str]
) -> str:
  """Right-aligned columns under their names, the first one left-aligned; rules; the totals."""
  widths = [max(len(r[i]) for r in [columns, *rows, total]) for i in range(len(columns))]

  def line(cells: Sequence[str]) -> str:
    first, *rest = zip(cells, widths, strict=True)
    return "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()

  rule = "  ".join("-" * w for w in widths)
  return "\n".join([line(columns), rule, *map(line, rows), rule, line(total)])
