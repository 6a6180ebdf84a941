"""The figures of sweeps, drawn from plain dictionaries of numbers.

A value with its interval is a pair: mean, and half width of the 95 % interval (nan where there is
none), as `results.mean_and_interval` gives them. Shares are from 0 to 1 and drawn in per cent.
`path` is the image to write, `title` stands above the whole figure.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.transforms import ScaledTranslation

from experiments.reports.plot_style import finish, plt, save
from experiments.sweeps.sparsity_axis import label_sparsities, nines, percent

Interval = tuple[float, float]

_BLANK = "hatched: the layer is dense at this setting (it has no masks), or no run is finished"
_ACCURACY = "test accuracy (%)"
_BESIDE_POINTS = 4.0  # between series of accuracies, whose bars would hide each other in one place


def active_by_layer(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Share of each sparse layer's neurons that have any incoming weight, mean over runs.

  The others are ablated: by SRigL on purpose, by an unstructured method unnoticed.

  Args:
    results: `results.json` of runs of one variant.

  Returns:
    By the layer's path, for one column of `active_neurons`.
  """
  shares: dict[str, list[float]] = {}
  for result in results:
    for layer in result["layers"]:
      if layer["density"] < 1:
        shares.setdefault(layer["path"], []).append(layer["active_neurons"] / layer["num_neurons"])
  return {path: float(np.mean(values)) for path, values in shares.items()}


def active_neurons(
  methods: Mapping[str, Mapping[float, Mapping[str, float]]], path: Path, *, title: str = ""
) -> None:
  """Active neurons by layer and sparsity, a panel for each method.

  Args:
    methods: fraction of neurons with an incoming weight, by method, sparsity and layer
      (`active_by_layer`); what is missing is hatched.
    path: of the image to write.
    title: of the whole figure.
  """
  layers, sparsities = _rows_and_columns(methods)
  size = (2 + len(methods) * (1 + 0.55 * len(sparsities)), 1.6 + 0.26 * len(layers))
  figure = plt.figure(figsize=size, layout="constrained")
  has_blank = _neurons_by_layer(figure, methods, xlabel="sparsity (%)")
  figure.suptitle(f"{title}\n{_BLANK}" if has_blank else title, fontsize="medium")
  save(figure, path)


def _rows_and_columns(
  panels: Mapping[Any, Mapping[float, Mapping[str, float]]],
) -> tuple[list[str], list[float]]:
  """Layers and columns of tables of active neurons."""
  tables = panels.values()
  layers = dict.fromkeys(x for table in tables for column in table.values() for x in column)
  return list(layers), sorted({x for table in tables for x in table})


def _neurons_by_layer(
  figure: Any, panels: Mapping[str, Mapping[float, Mapping[str, float]]], *, xlabel: str
) -> bool:
  """Shares of neurons as colours and numbers, layers downwards, a panel for each table.

  What is not known is hatched; whether there is any such cell.
  """
  has_blank = False
  layers, columns = _rows_and_columns(panels)
  row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
  for axes, (name, shares) in zip(row, panels.items(), strict=True):
    table = [[shares.get(x, {}).get(layer, np.nan) for x in columns] for layer in layers]
    cells = 100 * np.array(table, float)
    image = axes.imshow(cells, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(cells):
      if np.isnan(value):
        has_blank = True
        place = (j - 0.5, i - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, hatch="////", fill=False, edgecolor="0.7", lw=0))
      else:
        color = "white" if value < 60 else "black"
        axes.text(j, i, f"{value:.0f}", ha="center", va="center", color=color, fontsize=7)
    axes.set_xticks(range(len(columns)), [percent(x) for x in columns])
    axes.set_yticks(range(len(layers)), layers, fontsize=7)
    axes.set_xlabel(xlabel)
    axes.set_title(name)
  figure.colorbar(image, ax=row, label="active neurons (%)")
  return has_blank


def accuracy(
  methods: Mapping[str, Mapping[float, Interval]],
  path: Path,
  *,
  dense: Interval | None = None,
  published: Mapping[str, Mapping[float, Interval]] | None = None,
  title: str = "",
  ylabel: str = _ACCURACY,
) -> None:
  """Accuracy over sparsity with 95 % intervals.

  Args:
    methods: accuracy by method and sparsity.
    path: of the image to write.
    dense: of the dense network, a horizontal line with its interval.
    published: others' figures by the same names, drawn hollow and dashed in the same colours.
    title: of the figure.
    ylabel: what stands in place of accuracy.
  """
  figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
  published = published or {}
  names = list(dict.fromkeys([*methods, *published]))
  num_drawn = sum(name in source for name in names for source in (methods, published))
  places = itertools.count()
  for i, name in enumerate(names):
    for source, style in (
      (methods, {"fmt": "o-", "label": name}),
      (published, {"fmt": "s--", "markerfacecolor": "none", "alpha": 0.6}),
    ):
      if values := source.get(name):
        if source is published:
          style["label"] = f"{name}, published"
        x = [nines(s) for s in sorted(values)]
        intervals = [values[s] for s in sorted(values)]
        _side_by_side(axes, next(places), num_drawn, x, intervals, color=f"C{i}", **style)
  if dense is not None:
    mean, half_width = 100 * np.array(dense)
    axes.axhline(mean, color="0.3", linewidth=1, linestyle=":", label="dense")
    if not np.isnan(half_width):
      axes.axhspan(mean - half_width, mean + half_width, color="0.3", alpha=0.12, linewidth=0)
  label_sparsities(axes, {s for by in (methods, published) for v in by.values() for s in v})
  finish(axes, xlabel="sparsity (%)", ylabel=ylabel)
  axes.set_title(title)
  save(figure, path)


def gamma_sal(
  sparsities: Mapping[float, Mapping[float, Mapping[str, Interval]]],
  layers: Mapping[float, Mapping[float, Mapping[str, float]]],
  path: Path,
  *,
  title: str = "",
  ylabel: str = _ACCURACY,
) -> None:
  """Accuracy and active neurons over the fraction of salient weights that keeps a neuron.

  Args:
    sparsities: by sparsity and γ_sal: `{"accuracy": ..., "active_neurons": ...}`.
    layers: fraction of neurons with an incoming weight, by sparsity, γ_sal and layer
      (`active_by_layer`), drawn below.
    path: of the image to write.
    title: of the whole figure.
    ylabel: what stands in place of accuracy.
  """
  height = 1.6 + 0.26 * len(_rows_and_columns(layers)[0])
  figure = plt.figure(figsize=(11, 4 + height), layout="constrained")
  above, below = figure.subfigures(2, 1, height_ratios=(4, height))  # type: ignore[misc]
  row = above.subplots(1, 2)
  names = {"accuracy": ylabel, "active_neurons": "active neurons (%)"}
  for axes, (name, label) in zip(row, names.items(), strict=True):
    for i, (sparsity, values) in enumerate(sparsities.items()):
      x, intervals = [100 * g for g in sorted(values)], [values[g][name] for g in sorted(values)]
      style = {"color": f"C{i}", "fmt": "o-", "label": f"{percent(sparsity)} % sparse"}
      _side_by_side(axes, i, len(sparsities), x, intervals, **style)
    finish(axes, xlabel="γ_sal (%)", ylabel=label)
  panels = {f"{percent(sparsity)} % sparse": table for sparsity, table in layers.items()}
  has_blank = _neurons_by_layer(below, panels, xlabel="γ_sal (%)")
  figure.suptitle(f"{title}\n{_BLANK}" if has_blank else title, fontsize="medium")
  save(figure, path)


def training_length(
  panels: Mapping[str, Mapping[str, Mapping[float, Interval]]],
  path: Path,
  *,
  title: str = "",
  ylabel: str = _ACCURACY,
) -> None:
  """Accuracy over the length of training, on a logarithmic axis.

  Args:
    panels: by title of a panel (a sparsity, say), method and length (1 the standard, 2 twice).
    path: of the image to write.
    title: of the whole figure.
    ylabel: what stands in place of accuracy.
  """
  figure, row = plt.subplots(
    1, len(panels), figsize=(1 + 4.5 * len(panels), 4), layout="constrained", squeeze=False
  )
  methods = list(dict.fromkeys(method for panel in panels.values() for method in panel))
  for axes, (name, panel) in zip(row[0], panels.items(), strict=True):
    for method, values in panel.items():
      lengths = sorted(values)
      i, intervals = methods.index(method), [values[x] for x in lengths]
      style = {"color": f"C{i}", "fmt": "o-", "label": method}
      _side_by_side(axes, i, len(methods), lengths, intervals, **style)
    ticks = sorted({x for values in panel.values() for x in values})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{x:g}×" for x in ticks])
    axes.minorticks_off()
    axes.set_title(name)
    finish(axes, xlabel="training length", ylabel=ylabel)
  figure.suptitle(title)
  save(figure, path)


def diversity(
  ranks: Mapping[str, Mapping[str, Interval]],
  similarities: Mapping[tuple[str, str], np.ndarray],
  num_features: Mapping[str, int],
  path: Path,
) -> None:
  """Effective rank and CKA by layer; below, CKA of all pairs of layers.

  Args:
    ranks: effective rank by variant and layer.
    similarities: CKA `[layers, layers]` by pair of variants; rows are the first one's layers.
    num_features: of each layer, in the order of those axes.
    path: of the image to write.
  """
  layers = list(num_features)
  num_rows = max(1, -(-len(similarities) // 3))
  figure = plt.figure(figsize=(12, 4 + 4 * num_rows), layout="constrained")
  above, below = figure.subfigures(2, 1, height_ratios=(4, 4 * num_rows))  # type: ignore[misc]
  left, right = above.subplots(1, 2)
  for i, (name, by_layer) in enumerate(ranks.items()):
    shares = [tuple(np.array(by_layer[layer]) / num_features[layer]) for layer in layers]
    _intervals(left, range(len(layers)), shares, color=f"C{i}", fmt="o-", label=name)
  for i, (pair, matrix) in enumerate(similarities.items()):
    label = _pair_name(pair)
    right.plot(range(len(layers)), np.diagonal(matrix), "o-", color=f"C{i}", label=label)
  for axes in (left, right):
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
  finish(left, ylabel="effective rank (% of features)")
  finish(right, ylabel="CKA of the same layer")
  row = below.subplots(num_rows, 3, squeeze=False).ravel()
  for axes in row[len(similarities) :]:
    axes.remove()
  for axes, (pair, matrix) in zip(row, similarities.items(), strict=False):
    image = axes.imshow(matrix, cmap="magma", vmin=0, vmax=1, origin="lower")
    axes.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
    axes.set_yticks(range(len(layers)), layers, fontsize=6)
    axes.set_xlabel(pair[1])
    axes.set_ylabel(pair[0])
    axes.set_title(_pair_name(pair), fontsize="medium")
  if similarities:
    below.colorbar(image, ax=row[: len(similarities)], label="CKA")
  save(figure, path)


def _pair_name(pair: tuple[str, str]) -> str:
  return f"{pair[0]}, seeds" if pair[0] == pair[1] else f"{pair[0]} and {pair[1]}"


def _intervals(axes: Axes, x: Sequence[float], values: Sequence[Interval], **style: Any) -> None:
  """A line of means with intervals, shares in per cent; no bar where there is no interval."""
  mean, half_width = 100 * np.array(values, float).reshape(-1, 2).T
  axes.errorbar(x, mean, np.nan_to_num(half_width), markersize=4, capsize=3, **style)


def _side_by_side(
  axes: Axes, i: int, num_series: int, x: Sequence[float], values: Sequence[Interval], **style: Any
) -> None:
  """`_intervals` of one of several series, a little to the side of the others."""
  points = _BESIDE_POINTS * (i - (num_series - 1) / 2)
  beside = ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)
  _intervals(axes, x, values, transform=axes.transData + beside, **style)
  # What is drawn beside its place does not make room for itself.
  mean, half_width = 100 * np.nan_to_num(np.array(values, float)).T
  ends = [*zip(x, mean - half_width, strict=True), *zip(x, mean + half_width, strict=True)]
  axes.update_datalim(ends)
  axes.autoscale_view()
