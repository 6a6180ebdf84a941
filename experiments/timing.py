"""How benchmarks time, compare and report: candidates for the same work, timed in turns.

A machine drifts (other programs, heat, clock rates). So candidates take turns round by round, the
order rotating, and what is compared is their times within a round. Nothing is subtracted.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.progress import progress
from experiments.record import environment

Times = dict[str, list[float]]


class Row(NamedTuple):
  """One line of a table: how two candidates compare.

  Attributes:
    name: what is compared with what.
    ratios: one for each round; their median is the result.
    times: seconds of the candidates by name, one for each round.
    at_most: the target if it is an upper limit.
    at_least: the target if it is a lower one.
  """

  name: str
  ratios: list[float]
  times: Times
  at_most: float | None = None
  at_least: float | None = None

  @property
  def ratio(self) -> float:
    """The result."""
    return quartiles(self.ratios)[1]

  @property
  def target(self) -> str:
    """The target in words, empty for a row that only informs."""
    if self.at_most is not None:
      return f"at most {self.at_most:g}"
    return "" if self.at_least is None else f"at least {self.at_least:g}"

  @property
  def is_met(self) -> bool | None:
    """Whether the result meets the target, if there is one."""
    if self.at_most is not None:
      return self.ratio <= self.at_most
    return None if self.at_least is None else self.ratio >= self.at_least


def seconds(run: Callable[[], Any]) -> float:
  """Time of one call, until every array that it returns is there."""
  start = time.perf_counter()
  jax.block_until_ready(run())
  return time.perf_counter() - start


def interleave(name: str, candidates: Mapping[str, Callable[[], Any]], *, repeats: int) -> Times:
  """Times candidates in turns, after a round to warm up.

  Args:
    name: of the comparison, for the progress that is shown.
    candidates: functions by name; what they return is waited for.
    repeats: rounds, at least 1.

  Returns:
    Seconds by name, one for each round.
  """
  names = list(candidates)
  times: Times = {name: [] for name in names}
  with progress(name, step=0, total_steps=repeats) as show:
    show(0, state="warming up")
    for run in candidates.values():
      seconds(run)
    for i in range(repeats):
      first = i % len(names)
      for candidate in names[first:] + names[:first]:
        times[candidate].append(seconds(candidates[candidate]))
      show(i + 1)
  return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
  """Lower quartile, median and upper quartile."""
  low, middle, high = np.percentile(np.asarray(values), [25, 50, 75])
  return float(low), float(middle), float(high)


def format_table(rows: Sequence[Row]) -> str:
  """The rows as text: ratio (quartiles), target, rounds, median times."""
  lines = [("", "ratio", "quartiles", "target", "", "rounds", "median seconds")]
  for row in rows:
    low, middle, high = quartiles(row.ratios)
    times = ", ".join(f"{name} {quartiles(values)[1]:.4g}" for name, values in row.times.items())
    met = {None: "", True: "met", False: "MISSED"}[row.is_met]
    spread = f"{low:.3f} to {high:.3f}"
    rounds = str(len(row.ratios))
    lines.append((row.name, f"{middle:.3f}", spread, row.target, met, rounds, times))
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  padded = (zip(line, widths, strict=True) for line in lines)
  return "\n".join("  ".join(cell.ljust(width) for cell, width in line).rstrip() for line in padded)


def markdown_table(rows: Sequence[Row]) -> str:
  """The rows as a table for a page."""
  lines = ["| | ratio (quartiles) | target | median seconds |", "|---|---:|---|---|"]
  for row in rows:
    low, middle, high = quartiles(row.ratios)
    times = ", ".join(f"{name} {quartiles(values)[1]:.3g}" for name, values in row.times.items())
    met = {None: "", True: ": met", False: ": **missed**"}[row.is_met]
    lines.append(
      f"| {row.name} | {middle:.2f} ({low:.2f}–{high:.2f}) | {row.target}{met} | {times} |"
    )
  return "\n".join(lines)


def as_json(rows: Sequence[Row], command: str) -> dict[str, Any]:
  """The rows with everything needed to place and to repeat them."""
  return {
    "command": command,
    "environment": environment(),
    "threads": {name: os.environ.get(name, "") for name in ("NPROC", "XLA_FLAGS")},
    "table": markdown_table(rows),
    "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    "rows": [
      {
        "name": row.name,
        "ratio": row.ratio,
        "quartiles": quartiles(row.ratios)[::2],
        "target": row.target,
        "is_met": row.is_met,
        "rounds": len(row.ratios),
        "seconds": row.times,
      }
      for row in rows
    ],
  }
