"""What a run of the kernel benchmark leaves: tables, JSON, CSV and bar charts."""

import csv
import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.comparison import Comparison, duration
from experiments.benchmarks.kernels.measurement import Measurement
from experiments.benchmarks.kernels.targets import count_threads, loss
from experiments.benchmarks.timing import quartiles
from experiments.common.files import write_json, write_text
from experiments.common.markdown import markdown_table
from experiments.reports import figures

_CHART_BATCHES = (1, 256)  # as in the paper's figure
_SIZES = Measurement._fields[:8]


def layer_tables(measured: Sequence[Measurement], *, with_auto: bool = True) -> list[str]:
  """For each layer the median microseconds of every method and batch size.

  Args:
    measured: of some layers.
    with_auto: whether to add what `backend="auto"` takes, what that loses, and what was left out.
  """
  by_layer: dict[tuple[Any, ...], list[Measurement]] = {}
  for one in measured:
    key = (one.threads, one.layer, one.in_features, one.out_features, one.sparsity)
    by_layer.setdefault(key, []).append(one)
  return [_layer_table(group, with_auto) for group in by_layer.values()]


def _layer_table(group: Sequence[Measurement], with_auto: bool) -> str:
  first = group[0]
  title = (
    f"{first.layer} {first.in_features}→{first.out_features}, {100 * first.sparsity:.3g} % sparse "
    f"({first.num_active} active neurons of fan-in {first.fan_in}), {count_threads(first.threads)}:"
  )
  names = dict.fromkeys(name for one in group for name in one.seconds)
  rows: list[list[str]] = [
    [name, *(f"{1e6 * one.median(name):.4g}" if name in one.seconds else "-" for one in group)]
    for name in names
  ]
  reasons: dict[str, str] = {}
  if with_auto:
    rows.append(["auto takes", *(one.choice for one in group)])
    losses = [loss(one) for one in group]
    rows.append(["its loss", *("-" if x != x else f"{100 * (x - 1):.0f} %" for x in losses)])
    reasons = {name: why for one in group for name, why in one.skipped.items()}
  table = markdown_table(["µs per call", *(f"batch {one.batch}" for one in group)], rows)
  left_out = [f"{name} is left out: {why}" for name, why in reasons.items()]
  return "\n".join([title, "", table, *left_out])


def headline(comparisons: Sequence[Comparison]) -> str:
  """Condensed against dense, for the README: all threads, layers and whole models."""
  rows = []
  for each in comparisons:
    name, _, methods = each.name.rpartition(": ")
    slower, _, ours = methods.partition(" / ")
    if slower != "dense" or ours not in ("cpu", "condensed") or name.endswith(" 1 thread"):
      continue
    low, middle, high = quartiles(each.ratios)
    times = (duration(quartiles(each.times[method])[1]) for method in (slower, ours))
    rows.append((name, *times, f"{middle:.1f} ({low:.1f}–{high:.1f})"))
  return markdown_table(("", "dense", "condensed", "times faster (quartiles)"), rows, align="lrrl")


def write(out: Path, measured: Sequence[Measurement], result: dict[str, Any]) -> list[Path]:
  """Writes `benchmark.json`, `benchmark.csv` and bar charts into a folder; returns the paths."""
  paths = [out / "benchmark.json", out / "benchmark.csv"]
  write_json(paths[0], result | {"measurements": [one._asdict() for one in measured]})
  write_text(paths[1], as_csv(measured))
  key = lambda one: (one.layer, one.threads)
  for (layer, threads), group in itertools.groupby(sorted(measured, key=key), key=key):
    paths.append(out / f"{layer.replace('/', '_')}_{threads}_threads.png")
    chart(list(group), paths[-1])
  return paths


def publish(
  path: Path,
  measured: Sequence[Measurement],
  comparisons: Sequence[Comparison],
  result: dict[str, Any],
) -> None:
  """Writes the results file of README (`headline`) and docs: targets, medians of 90 % layers."""
  at_90 = [one for one in measured if abs(one.sparsity - 0.9) < 0.005]
  tables = [result["table"], *layer_tables(at_90, with_auto=False)]
  medians = [
    {field: getattr(one, field) for field in _SIZES}
    | {"microseconds": {name: [1e6 * t for t in quartiles(v)] for name, v in one.seconds.items()}}
    | {"auto": one.choice}
    for one in measured
  ]
  shown = {"table": "\n\n".join(tables), "headline": headline(comparisons)}
  write_json(path, result | shown | {"measurements": medians})


def chart(measured: Sequence[Measurement], path: Path) -> None:
  """Bars of every method over the sparsities, at the batch sizes of the paper if they are there."""
  batches = sorted({one.batch for one in measured})
  panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
  for batch in [n for n in _CHART_BATCHES if n in batches] or batches[:1]:
    bars = panels.setdefault(f"batch {batch}", {})
    for one in sorted(measured, key=lambda one: one.sparsity):
      for method, seconds in one.seconds.items() if one.batch == batch else ():
        low, middle, high = (1e6 * t for t in quartiles(seconds))
        bars.setdefault(method, {})[f"{100 * one.sparsity:.3g} %"] = (low, middle, high)
  first = measured[0]
  title = f"{first.layer}, {first.in_features}→{first.out_features}, {count_threads(first.threads)}"
  figures.bars(panels, path, title=title, xlabel="sparsity", ylabel="µs per call")


def as_csv(measured: Sequence[Measurement]) -> str:
  """One line for each measurement and method."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  numbers = ("median_us", "lower_quartile_us", "upper_quartile_us", "rounds")
  writer.writerow([*_SIZES, "method", *numbers, "auto", "skipped"])
  for one in measured:
    for name in [*one.seconds, *one.skipped]:
      found: list[object] = ["", "", "", 0]
      if times := one.seconds.get(name):
        low, middle, high = (f"{1e6 * t:.3f}" for t in quartiles(times))
        found = [middle, low, high, len(times)]
      line = [*one[:8], name, *found, name == one.choice, one.skipped.get(name, "")]
      writer.writerow(line)
  return text.getvalue()
