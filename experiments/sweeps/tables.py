"""The Markdown tables of a study: a row for each variant, and methods against an axis."""

import math

import numpy as np

from experiments.common.markdown import markdown_table
from experiments.sweeps.results import SweepResults, VariantResults, mean_and_interval
from experiments.sweeps.spec import STUDIES
from experiments.workdir.scores import last_score, score_of, scored


def comparison(sweep: SweepResults) -> str:
  """A row for each variant that has finished runs: means over seeds, 95 % intervals.

  The score, such as the accuracy, is that of the last step; "best" is the best test of a run,
  which the paper's tables show. FLOPs are relative to the dense network's, those of a training
  step to its training step.
  """
  header = [
    "variant",
    "seeds",
    sweep.score_axis,
    f"best{' (%)' * sweep.score.percent}",
    "sparsity (%)",
    "active neurons (%)",
    "ITOP rate",
    "inference FLOPs",
    "FLOPs of a step",
    "steps",
  ]

  def mean(variant: VariantResults, name: str, factor: float = 1.0, digits: int = 3) -> str:
    values = [run.results[name] for run in variant.runs]
    return "–" if None in values else f"{factor * float(np.mean(values)):.{digits}f}"

  rows = [
    [
      variant.name,
      str(len(variant.runs)),
      _score(variant),
      _best(variant),
      mean(variant, "sparsity", 100, 1),
      mean(variant, "active_neurons", 100, 1),
      mean(variant, "itop_rate"),
      mean(variant, "inference_flops"),
      mean(variant, "training_flops"),
      mean(variant, "steps", digits=0),
    ]
    for variant in sweep.variants
    if variant.runs
  ]
  return markdown_table(header, rows)


def pivot(sweep: SweepResults) -> str:
  """The score by method (rows) and the axis of the study (columns), mean ± interval.

  Variants that differ in another axis have rows of their own. A variant without a number on the
  axis (a dense network among sparsities) has its score in the first column. Empty for a study
  without axis.
  """
  axis = STUDIES[sweep.kind]
  if not axis:
    return ""
  places: dict[str, dict[float | None, VariantResults]] = {}
  for variant in sweep.variants:
    if variant.runs:
      others = {k: v for k, v in variant.axes.items() if k not in ("method", axis)}
      name = ", ".join([str(variant.axes["method"]), *(f"{k} {v:g}" for k, v in others.items())])
      row = places.setdefault(name, {})
      place = variant.axes.get(axis)
      if place in row:
        raise ValueError(
          f"Variants {row[place].name!r} and {variant.name!r} of {sweep.name!r} are in one place "
          f"of its table ({name}, {axis} {place}): give them axes in which they differ."
        )
      row[place] = variant
  values = sorted({v for row in places.values() for v in row if v is not None})
  columns = [*([None] if any(None in row for row in places.values()) else []), *values]
  header = [f"method, {axis}", *("none" if v is None else f"{v:g}" for v in columns)]
  rows = [
    [method, *(_score(row[v]) if v in row else "" for v in columns)]
    for method, row in places.items()
  ]
  return markdown_table(header, rows)


def _score(variant: VariantResults) -> str:
  """The score of the last test, an accuracy in per cent, with its interval."""
  score = score_of(variant.runs[0].results)
  values = [score.factor * last_score(run.results) for run in variant.runs]
  mean, half_width = mean_and_interval(values)
  digits = score.digits
  return f"{mean:.{digits}f}" + ("" if math.isnan(half_width) else f" ± {half_width:.{digits}f}")


def _best(variant: VariantResults) -> str:
  """The mean of the best tests."""
  score = score_of(variant.runs[0].results)
  best = score.factor * float(np.mean([scored(run.results).best for run in variant.runs]))
  return f"{best:.{score.digits}f}"
