"""The figures of reports, drawn from recorded metrics; `path` is the image to write."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.patches import Patch

from experiments.reports.plot_style import finish as _finish
from experiments.reports.plot_style import plt
from experiments.reports.plot_style import save as _save
from experiments.workdir.scores import ACCURACY, Score

Records = list[dict[str, Any]]


_CONTRASTING = [f"C{i}" for i in (*range(7), 8, 9)]  # without the grey of grids
_EARLY_TO_LATE = plt.get_cmap("plasma")


def training(metrics: Mapping[str, Records], path: Path, *, score: Score = ACCURACY) -> None:
  """Loss and score over steps, topology updates marked.

  Args:
    metrics: from `read_metrics`.
    path: of the image to write.
    score: what the run is judged by; drawn where it was recorded.
  """
  figure, (above, below) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, layout="constrained")
  for kind in ("train", "test"):
    steps = [r["step"] for r in metrics[kind]]
    known = [r for r in metrics[kind] if score.name in r]
    style = {"marker": "o", "markersize": 3} if kind == "test" else {"alpha": 0.7}
    values = [score.factor * r[score.name] for r in known]
    above.plot([r["step"] for r in known], values, label=kind, **style)
    below.plot(steps, [r["loss"] for r in metrics[kind]], label=kind, **style)
  updates = [r["last_update"] for r in metrics["topology"][1:]]
  for axes in (above, below):
    for i, step in enumerate(updates):
      label = "topology update" if i == 0 else None
      axes.axvline(step, color="0.85", linewidth=0.6, zorder=0, label=label)
  _finish(above, ylabel=score.axis.removeprefix("test "))
  _finish(below, xlabel="step", ylabel="loss")
  below.set_yscale("log")
  _save(figure, path)


def topology(metrics: Mapping[str, Records], path: Path) -> None:
  """Fan-in and active neurons of each sparse layer, and the ITOP rate, over steps.

  A dotted line marks T_end, the last update, from where the topology stays as it is.

  Args:
    metrics: from `read_metrics`.
    path: of the image to write.
  """
  records = metrics["topology"]
  steps = [r["step"] for r in records]
  sparse = [name for name, layer in records[-1]["layers"].items() if layer["density"] < 1]
  figure, axes = plt.subplots(1, 3, figsize=(14, 4.5), layout="constrained")
  by_name = len(sparse) <= len(_CONTRASTING)
  for i, name in enumerate(sparse):
    # Of a few layers each is told by its colour; of many, early from late, none too pale to see.
    color = _CONTRASTING[i] if by_name else _EARLY_TO_LATE(0.85 * i / (len(sparse) - 1))
    fan_ins = [r["layers"][name]["fan_in"] for r in records]
    active = [100 * r["layers"][name]["active_neurons"] for r in records]
    axes[0].step(steps, fan_ins, where="post", color=color, label=name)
    axes[1].step(steps, active, where="post", color=color)
  axes[0].set_yscale("log")
  if records[-1]["itop_rate"] is not None:
    ever = [100 * r["itop_rate"] for r in records]
    axes[2].step(steps, ever, where="post", color="C1", label="ever active")
  density = [100 * r["density"] for r in records]
  axes[2].step(steps, density, where="post", color="C0", label="active")
  for panel in axes:
    if updates := [r["last_update"] for r in records if r["last_update"]]:
      across = panel.get_xaxis_transform()  # from the bottom of the panel to its top
      panel.vlines(updates[-1], 0, 1, transform=across, color="0.2", linestyle=":", label="T_end")
  axes[0].set_title("connections of a neuron")
  axes[1].set_title("neurons with any connection")
  axes[2].set_title("weights active, and explored (ITOP rate)")
  _finish(axes[0], xlabel="step", ylabel="largest fan-in of a neuron", legend=False)
  _finish(axes[1], xlabel="step", ylabel="active neurons (%)", legend=False)
  _finish(axes[2], xlabel="step", ylabel="weights (%)")
  handles, labels = axes[0].get_legend_handles_labels()
  if not by_name:  # the first, the middle and the last of the layers
    shown = [0, len(sparse) // 2, len(sparse) - 1, *range(len(sparse), len(labels))]
    handles, labels = [handles[i] for i in shown], [labels[i] for i in shown]
    figure.suptitle(f"{len(sparse)} sparse layers, first to last from dark to light")
  figure.legend(
    handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small"
  )
  _save(figure, path)


def comparison(
  curves: Mapping[str, Sequence[Records]],
  finals: Mapping[str, tuple[float, float]],
  path: Path,
  score: Score = ACCURACY,
) -> None:
  """Test score of several variants: over steps, and at the end with intervals.

  Args:
    curves: the test records of each run, by variant.
    finals: mean and half width of the 95 % interval of the final test score, by variant.
    path: of the image to write.
    score: what it is.
  """
  figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
  for i, (name, runs) in enumerate(curves.items()):
    color = f"C{i}"
    for j, records in enumerate(runs):
      steps = [r["step"] for r in records if score.name in r]
      values = [score.factor * r[score.name] for r in records if score.name in r]
      left.plot(steps, values, color=color, alpha=0.7, label=name if j == 0 else None)
    mean, half_width = finals[name]
    right.errorbar(
      [i], [score.factor * mean], [score.factor * half_width], fmt="o", color=color, capsize=4
    )
  right.set_xticks(range(len(curves)), [name.replace("_", "\n") for name in curves])
  right.set_title("final, mean and 95 % interval")
  _finish(left, xlabel="step", ylabel=score.axis)
  _finish(right, ylabel=score.axis, legend=False)
  _save(figure, path)


def bars(
  panels: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]],
  path: Path,
  *,
  title: str,
  xlabel: str,
  ylabel: str,
) -> None:
  """Groups of bars on a logarithmic scale, with intervals.

  Args:
    panels: by title of a panel, by what a bar stands for, by group: lower end of the interval,
      value and upper end.
    path: of the image to write.
    title: of the whole figure.
    xlabel: what the groups are.
    ylabel: what the values are.
  """
  figure, row = plt.subplots(
    1, len(panels), figsize=(6 * len(panels), 4), layout="constrained", sharey=True
  )
  names = list(dict.fromkeys(name for panel in panels.values() for name in panel))
  colors = {name: plt.get_cmap("tab20")(i % 20) for i, name in enumerate(names)}
  for axes, (panel_title, panel) in zip(np.atleast_1d(row), panels.items(), strict=True):
    groups = list(dict.fromkeys(group for values in panel.values() for group in values))
    for name, values in panel.items():
      i = names.index(name)
      where = [groups.index(group) + (i + 0.5) / len(names) * 0.8 - 0.4 for group in values]
      low, middle, high = np.array(list(values.values())).T
      interval = (middle - low, high - middle)
      axes.bar(where, middle, 0.8 / len(names), yerr=interval, color=colors[name])
    axes.set_xticks(range(len(groups)), groups)
    axes.set_yscale("log")
    axes.set_title(panel_title)
    _finish(axes, xlabel=xlabel, ylabel=ylabel, legend=False)
  figure.legend([Patch(color=c) for c in colors.values()], list(colors), loc="outside right center")
  figure.suptitle(title)
  _save(figure, path)


def latency(seconds: Mapping[int, Mapping[str, Sequence[float]]], path: Path) -> None:
  """Time of one call over batch size, by model; medians, quartiles shaded.

  Args:
    seconds: by batch size and model, one for each round.
    path: of the image to write.
  """
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  sizes = list(seconds)
  for i, name in enumerate(seconds[sizes[0]]):
    low, middle, high = (
      1e3 * np.array([np.percentile(seconds[size][name], [25, 50, 75]) for size in sizes]).T
    )
    axes.plot(sizes, middle, marker="o", markersize=4, color=f"C{i}", label=name)
    axes.fill_between(sizes, low, high, color=f"C{i}", alpha=0.2, linewidth=0)
  axes.set_xscale("log", base=2)
  axes.set_yscale("log")
  axes.set_xticks(sizes, [str(size) for size in sizes])
  _finish(axes, xlabel="images at a time", ylabel="milliseconds")
  _save(figure, path)
