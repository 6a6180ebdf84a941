"""Table and figure of paired differences, and the results file that holds them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.markdown import markdown_table
from experiments.reports.plot_style import finish, plt, save
from experiments.sweeps.paired import Comparison, pairs_needed, pooled_spread
from experiments.workdir.scores import ACCURACY, Score


def paired_table(
  comparisons: Sequence[Comparison], *, smallest: float = 0.0, score: Score = ACCURACY
) -> str:
  """A row for each comparison, and what it takes to find a difference that matters.

  Args:
    comparisons: from `paired.compare`, one family.
    smallest: difference that matters, in points of accuracy; 0: none is named.
    score: what differs; points are its hundredths if it is a share, else its own unit.
  """
  sign = -1 if score.lower_is_better else 1
  header = [
    "first − second",
    "at",
    "pairs",
    f"difference ({_unit(score)})",
    "first is better in",
    "p, paired t",
    "p, sign flips",
    "p, Holm",
  ]
  rows = [
    [
      one.name,
      one.place,
      str(len(one.differences)),
      f"{score.factor * one.mean:+.{score.digits}f}" + _plus_minus(one.half_width, score),
      f"{sum(sign * d > 0 for d in one.differences)} of {len(one.differences)}",
      *map(_p_value, (one.t_p, one.sign_flip_p, one.holm_p)),
    ]
    for one in comparisons
  ]
  table = markdown_table(header, rows, align="llrrrrrr")
  return f"{table}\n\n{_power(comparisons, smallest, score)}" if smallest else table


def _unit(score: Score) -> str:
  return "points" if score.percent else score.label


def _power(comparisons: Sequence[Comparison], smallest: float, score: Score) -> str:
  """How many pairs find the smallest difference that matters, by the spread of all of these."""
  spread, most, freedom = pooled_spread(comparisons)
  spread, most = score.factor * spread, score.factor * most
  if not freedom:
    return "One pair of each: how much differences vary is not known."
  tests = sum(not math.isnan(one.t_p) for one in comparisons)
  needed = [
    str(pairs_needed(sd, smallest, tests=tests) or "more than 1000") for sd in (spread, most)
  ]
  unit = "point" if smallest == 1 and score.percent else _unit(score)
  level = f"5 % / {tests}" if tests > 1 else "5 %"
  digits = score.digits
  return (
    f"Differences within a row have a standard deviation of {spread:.{digits}f} {_unit(score)} "
    f"({freedom} degrees of freedom; at most {most:.{digits}f} with 95 % confidence). The paired "
    f"t-test at {level} finds {smallest:g} {unit} with a power of 80 % in {needed[0]} pairs "
    f"({needed[1]} at that most)."
  )


def _plus_minus(half_width: float, score: Score) -> str:
  return "" if math.isnan(half_width) else f" ± {score.factor * half_width:.{score.digits}f}"


def _p_value(p: float) -> str:
  if math.isnan(p):
    return "–"
  return f"{p:.1e}" if p < 1e-3 else f"{p:.3f}"


def paired_figure(
  comparisons: Sequence[Comparison],
  path: Path,
  *,
  smallest: float = 0.0,
  title: str = "",
  score: Score = ACCURACY,
) -> None:
  """The differences as points above one another, with intervals; each pair is a small dot below.

  Args:
    comparisons: from `paired.compare`, the first at the top.
    path: of the image to write.
    smallest: difference that matters, in points: less than it is shaded.
    title: of the figure.
    score: what differs.
  """
  size = (7.5, 1.3 + 0.36 * len(comparisons))
  figure, axes = plt.subplots(figsize=size, layout="constrained")
  names = list(dict.fromkeys(one.name for one in comparisons))
  rows = np.arange(len(comparisons))
  for row, one in zip(rows, comparisons, strict=True):
    color = f"C{names.index(one.name) % 10}"
    half_width = [score.factor * np.nan_to_num(one.half_width)]
    axes.errorbar(
      [score.factor * one.mean], [row], xerr=half_width, fmt="o", color=color, capsize=3
    )
    pairs = score.factor * np.array(one.differences)
    axes.plot(pairs, np.full(len(pairs), row + 0.28), ".", color=color, alpha=0.5, markersize=4)
  axes.axvline(0, color="0.3", linewidth=1)
  if smallest:
    axes.axvspan(-smallest, smallest, color="0.3", alpha=0.1, linewidth=0)
  labels = [f"{one.name}, {one.place}" if one.place else one.name for one in comparisons]
  axes.set_yticks(rows, labels, fontsize="small")
  axes.set_ylim(len(comparisons) - 0.4, -0.6)
  axes.set_title(title, fontsize="medium")
  what = "test accuracy (points)" if score == ACCURACY else score.axis
  finish(axes, xlabel=f"difference in {what}, mean and 95 % interval", legend=False)
  save(figure, path)


def paired_file(
  comparisons: Sequence[Comparison], table: str, *, command: str, environment: dict[str, Any]
) -> dict[str, Any]:
  """What `experiments/results/NAME.json` holds of a comparison.

  Args:
    comparisons: from `paired.compare`.
    table: of them, as printed.
    command: that compared.
    environment: of the runs.
  """
  return {
    "command": command,
    "environment": environment,
    "table": table,
    "comparisons": [
      {k: None if v != v else v for k, v in one._asdict().items()} for one in comparisons
    ],
  }
