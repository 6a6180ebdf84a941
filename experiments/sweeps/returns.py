"""Sweeps of networks that act: returns over steps of the environment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.analysis.returns import Estimate, estimate
from experiments.common.markdown import markdown_table
from experiments.reports.plot_style import finish, plt, save
from experiments.sweeps.results import SweepResults, VariantResults
from experiments.tasks.acting import environment_steps

KIND = "returns"
"""Of the studies that are shown so, see `spec.STUDIES`."""


def returns_table(sweep: SweepResults) -> str:
  """A row for each variant: interquartile means of its returns, with 95 % intervals.

  Of the last test, and of the mean of all tests, by which what learns sooner is better.
  """
  header = ["variant", "runs", "steps of the environment", "last test, IQM", "all tests, IQM"]
  rows = []
  for variant in _with_tests(sweep):
    _, returns = _curve(variant, sweep.score.name)
    steps = _x(variant.config, variant.runs[0].tests[-1]["step"])
    last, all_tests = estimate([returns[:, -1:]]), estimate([returns.mean(1, keepdims=True)])
    rows.append([variant.name, str(len(returns)), f"{steps:,.0f}", *map(_text, (last, all_tests))])
  return markdown_table(header, rows)


def returns_figure(sweep: SweepResults, path: Path) -> None:
  """Returns over steps of the environment, a panel for each sparsity.

  Args:
    sweep: its finished runs.
    path: of the image to write.
  """
  variants = _with_tests(sweep)
  places = sorted({float(v.axes["sparsity"]) for v in variants if "sparsity" in v.axes}) or [0.0]
  size = (1 + 4.2 * len(places), 4)
  figure, row = plt.subplots(
    1, len(places), figsize=size, layout="constrained", squeeze=False, sharey=True
  )
  methods = list(dict.fromkeys(str(v.axes["method"]) for v in variants))
  for axes, place in zip(row[0], places, strict=True):
    for variant in variants:
      if variant.axes.get("sparsity", place) != place:
        continue
      steps, returns = _curve(variant, sweep.score.name)
      found = estimate([returns])
      method = str(variant.axes["method"])
      color = f"C{methods.index(method)}"
      x = [_x(variant.config, step) for step in steps]
      axes.plot(x, found.value, color=color, label=method)
      axes.fill_between(x, found.low, found.high, color=color, alpha=0.15, linewidth=0)
    axes.set_title(f"{100 * place:g} % sparse")
    finish(axes, xlabel="steps of the environment", ylabel="return, IQM and 95 % interval")
  figure.suptitle(sweep.name)
  save(figure, path)


def _with_tests(sweep: SweepResults) -> list[VariantResults]:
  return [v for v in sweep.variants if v.runs and all(run.tests for run in v.runs)]


def _curve(variant: VariantResults, name: str) -> tuple[list[int], np.ndarray]:
  """Steps at which all runs of a variant were tested, and returns `[runs, steps]`."""
  by_run = [{test["step"]: test[name] for test in run.tests} for run in variant.runs]
  steps = sorted(set.intersection(*(set(tests) for tests in by_run)))
  return steps, np.array([[tests[step] for step in steps] for tests in by_run], float)


def _x(config: Mapping[str, Any], step: int) -> float:
  return environment_steps(config, step)


def _text(found: Estimate) -> str:
  value, low, high = (float(x[0]) for x in found)
  return f"{value:.1f} ({low:.1f} to {high:.1f})"
