"""Comparisons as the benchmarks report them: a ratio of times, its quartiles and its target."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from experiments.benchmarks.timing import Times, quartiles
from experiments.common.environment import environment
from experiments.common.markdown import markdown_table


class Comparison(NamedTuple):
  """How two candidates compare.

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
    """The target in words, empty if there is none."""
    if self.at_most is not None:
      return f"at most {self.at_most:g}"
    return "" if self.at_least is None else f"at least {self.at_least:g}"

  @property
  def is_met(self) -> bool | None:
    """Whether the result meets the target, if there is one."""
    if self.at_most is not None:
      return self.ratio <= self.at_most
    return None if self.at_least is None else self.ratio >= self.at_least


def compare(
  name: str,
  times: Times,
  slower: str,
  faster: str,
  *,
  at_least: float | None = None,
  at_most: float | None = None,
) -> Comparison:
  """The time of one candidate over that of another, round by round.

  Args:
    name: of the comparison.
    times: seconds of both by name, and of others; of more rounds than both have the first count.
    slower: the candidate above the fraction bar.
    faster: the one below.
    at_least: target if it is a lower limit.
    at_most: target if it is an upper one.
  """
  ratios = [a / b for a, b in zip(times[slower], times[faster], strict=False)]
  both = {candidate: times[candidate] for candidate in (slower, faster)}
  return Comparison(name, ratios, both, at_least=at_least, at_most=at_most)


def comparison_table(comparisons: Sequence[Comparison]) -> str:
  """The comparisons as a Markdown table."""
  rows = []
  for each in comparisons:
    low, middle, high = quartiles(each.ratios)
    met = {None: "", True: ": met", False: ": **missed**"}[each.is_met]
    times = ", ".join(f"{k} {duration(quartiles(t)[1])}" for k, t in each.times.items())
    ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})"
    rows.append((each.name, ratio, f"{each.target}{met}", times))
  return markdown_table(("", "ratio (quartiles)", "target", "median times"), rows, align="lrll")


def duration(seconds: float) -> str:
  """A time to three digits with its unit."""
  for unit, name in ((1.0, "s"), (1e-3, "ms")):
    if seconds >= unit:
      return f"{seconds / unit:.3g} {name}"
  return f"{1e6 * seconds:.3g} µs"


def results(
  comparisons: Sequence[Comparison], command: str, *, every_round: bool = True
) -> dict[str, Any]:
  """A results file: the comparisons with everything needed to place and to repeat them.

  Args:
    comparisons: what was measured.
    command: that measured it.
    every_round: whether to hold the times of every round, or their medians.
  """
  return {
    "command": command,
    "environment": environment(),
    "table": comparison_table(comparisons),
    "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
    "rows": [
      {
        "name": each.name,
        "ratio": each.ratio,
        "quartiles": quartiles(each.ratios)[::2],
        "target": each.target,
        "is_met": each.is_met,
        "rounds": len(each.ratios),
        "seconds": {k: t if every_round else quartiles(t)[1] for k, t in each.times.items()},
      }
      for each in comparisons
    ],
  }
