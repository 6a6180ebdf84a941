"""What a run leaves: tables on the terminal, JSON, CSV, bar charts, and the file for the README."""

import csv
import io
import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.benchmarks.kernels import targets
from experiments.benchmarks.kernels.baselines import versions
from experiments.benchmarks.kernels.measure import Cell
from experiments.benchmarks.timing import Row, as_json, as_markdown, quartiles
from experiments.common.files import write_json, write_text
from experiments.reports import figures

_CHART_BATCHES = (1, 256)  # as in the paper's figure


def header(environment: dict[str, Any]) -> str:
  """Machine, cores and versions in a line; and a warning if others use the machine."""
  line = ", ".join(f"{name} {value}" for name, value in environment.items())
  load = environment["load"]
  if load != "unknown" and float(load) > 0.25 * environment["cpu_cores"]:
    line += (
      f"\nThe machine is busy (load {load}): times will be long, and ratios not what they are."
    )
  return line


def environment(base: dict[str, Any]) -> dict[str, Any]:
  """What there is to say of machine and versions, beyond the harness's own."""
  load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"
  return base | versions() | {"load": load}


def groups(cells: Sequence[Cell]) -> list[list[Cell]]:
  """Cells that differ in their batch only, in the order in which they came."""
  by_key: dict[tuple[Any, ...], list[Cell]] = {}
  for cell in cells:
    key = (cell.threads, cell.layer, cell.in_features, cell.out_features, cell.sparsity)
    by_key.setdefault(key, []).append(cell)
  return list(by_key.values())


def title(cell: Cell) -> str:
  """Layer, sparsity and threads in words."""
  return (
    f"{cell.layer} {cell.in_features}→{cell.out_features}, {100 * cell.sparsity:.3g} % sparse "
    f"({cell.num_active} active neurons of fan-in {cell.fan_in}), {cell.threads} "
    f"thread{'s' if cell.threads > 1 else ''}"
  )


def grid(cells: Sequence[Cell]) -> str:
  """Median microseconds of every method and batch size, a table for each layer."""
  parts = []
  for group in groups(cells):
    lines = [["batch", *(str(cell.batch) for cell in group)]]
    lines += [[name, *(_median(cell, name) for cell in group)] for name in _methods(group)]
    lines.append(["auto takes", *(cell.choice for cell in group)])
    lines.append(["  loss to the best", *(_loss(cell) for cell in group)])
    parts.append("\n".join([title(group[0]) + ", median µs", _align(lines)]))
    reasons = {name: why for cell in group for name, why in cell.skipped.items()}
    parts[-1] += "".join(f"\n  {name} is left out: {why}" for name, why in reasons.items())
  return "\n\n".join(parts)


def _methods(group: Sequence[Cell]) -> list[str]:
  return list(dict.fromkeys(name for cell in group for name in cell.seconds))


def _median(cell: Cell, name: str) -> str:
  return f"{1e6 * cell.median(name):.4g}" if name in cell.seconds else "-"


def _loss(cell: Cell) -> str:
  loss = targets.loss(cell)
  return "-" if loss != loss else f"{100 * (loss - 1):.0f} %"


def _align(lines: Sequence[Sequence[str]]) -> str:
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in lines
  )


def write(out: Path, cells: Sequence[Cell], result: dict[str, Any]) -> list[Path]:
  """Writes `benchmark.json`, `benchmark.csv` and bar charts into a folder; returns the paths."""
  paths = [out / "benchmark.json", out / "benchmark.csv"]
  write_json(paths[0], result | {"cells": [cell._asdict() for cell in cells]})
  write_text(paths[1], as_csv(cells))
  key = lambda cell: (cell.layer, cell.threads)
  for (layer, threads), group in itertools.groupby(sorted(cells, key=key), key=key):
    path = out / f"{layer.replace('/', '_')}_{threads}_threads.png"
    chart(list(group), path)
    paths.append(path)
  return paths


def chart(cells: Sequence[Cell], path: Path) -> None:
  """Bars of every method over the sparsities, at the batch sizes of the paper if they are there."""
  batches = sorted({cell.batch for cell in cells})
  shown = [n for n in _CHART_BATCHES if n in batches] or batches[:1]
  panels: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
  for batch in shown:
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for cell in sorted(cells, key=lambda cell: cell.sparsity):
      if cell.batch == batch:
        for method, seconds in cell.seconds.items():
          low, middle, high = (1e6 * t for t in quartiles(seconds))
          bars.setdefault(method, {})[f"{100 * cell.sparsity:.3g} %"] = (low, middle, high)
    panels[f"batch {batch}"] = bars
  first = cells[0]
  shape = f"{first.layer}, {first.in_features}→{first.out_features}, {first.threads} threads"
  figures.bars(panels, path, title=shape, xlabel="sparsity", ylabel="µs per call")


def as_csv(cells: Sequence[Cell]) -> str:
  """One line for each cell and method."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator="\n")
  fields = Cell._fields[:8]
  numbers = ("median_us", "lower_quartile_us", "upper_quartile_us", "rounds")
  writer.writerow([*fields, "method", *numbers, "auto", "skipped"])
  for cell in cells:
    for name in [*cell.seconds, *cell.skipped]:
      times = cell.seconds.get(name)
      found: list[object] = ["", "", "", 0]
      if times:
        low, middle, high = (f"{1e6 * t:.3f}" for t in quartiles(times))
        found = [middle, low, high, len(times)]
      line = [*cell[:8], name, *found, name == cell.choice, cell.skipped.get(name, "")]
      writer.writerow(line)
  return text.getvalue()


def summary(rows: Sequence[Row], command: str, about: dict[str, Any]) -> dict[str, Any]:
  """The rows as JSON, without the time of every round."""
  result = as_json(rows, command) | {"environment": about}
  for row in result["rows"]:
    row["seconds"] = {name: quartiles(values)[1] for name, values in row["seconds"].items()}
  return result


def headline(rows: Sequence[Row]) -> str:
  """Condensed against dense, for the README: all threads, layers and whole models."""
  lines = ["| | dense | condensed | times faster (quartiles) |", "|---|--:|--:|---|"]
  for row in rows:
    name, _, methods = row.name.rpartition(": ")
    peer, _, ours = methods.partition(" / ")
    if peer != "dense" or ours not in ("cpu", "condensed") or name.endswith(" 1 thread"):
      continue
    times = [_duration(quartiles(row.times[method])[1]) for method in (peer, ours)]
    low, middle, high = quartiles(row.ratios)
    lines.append(f"| {name} | {times[0]} | {times[1]} | {middle:.1f} ({low:.1f}–{high:.1f}) |")
  return "\n".join(lines)


def _duration(seconds: float) -> str:
  return f"{1e6 * seconds:.3g} µs" if seconds < 1e-3 else f"{1e3 * seconds:.3g} ms"


def publish(path: Path, cells: Sequence[Cell], rows: Sequence[Row], result: dict[str, Any]) -> None:
  """Writes the results file of README (`headline`) and docs: targets, medians of 90 % layers."""
  tables = [as_markdown(rows)]
  for group in groups([cell for cell in cells if abs(cell.sparsity - 0.9) < 0.005]):
    head = ["µs per call", *(f"batch {cell.batch}" for cell in group)]
    lines = [head, ["---", *["--:"] * len(group)]]
    lines += [[name, *(_median(cell, name) for cell in group)] for name in _methods(group)]
    tables += [title(group[0]) + ":", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
  medians = [
    {field: getattr(cell, field) for field in Cell._fields[:8]}
    | {"microseconds": {name: [1e6 * t for t in quartiles(v)] for name, v in cell.seconds.items()}}
    | {"auto": cell.choice}
    for cell in cells
  ]
  shown = {"table": "\n\n".join(tables), "headline": headline(rows)}
  write_json(path, result | shown | {"cells": medians})
