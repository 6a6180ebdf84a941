"""The finished runs of a sweep, as tables, figures and results files need them."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments.common.files import read_json, read_sound
from experiments.common.old_configs import converted
from experiments.sweeps.failures import read_failure
from experiments.sweeps.spec import read_record, same_variant
from experiments.workdir.metrics import read_metrics
from experiments.workdir.patterns import SWEEP_RESULTS, SWEPT_CONFIG, SWEPT_RESULTS
from experiments.workdir.scores import Score, last_score, score_of


class FinishedRun(NamedTuple):
  """A run of a variant.

  Attributes:
    seed: of it.
    results: as `results.json` holds them.
    tests: its test records.
  """

  seed: int
  results: dict[str, Any]
  tests: list[dict[str, Any]]


class VariantResults(NamedTuple):
  """The runs of a variant that are finished.

  Attributes:
    name: of the variant.
    axes: where it stands; see `sweeps.Variant`.
    config: of its runs, the seed being that of the first.
    runs: by seed.
  """

  name: str
  axes: dict[str, Any]
  config: dict[str, Any]
  runs: list[FinishedRun]

  def interval(self, field: str) -> tuple[float, float]:
    """Mean of a number of the results over runs, and the half width of its 95 % interval."""
    return mean_and_interval([run.results[field] for run in self.runs])

  def score_interval(self) -> tuple[float, float]:
    """The same of the score of the last test."""
    return mean_and_interval([last_score(run.results) for run in self.runs])


class SweepResults(NamedTuple):
  """The finished runs of a sweep.

  Attributes:
    name: of the sweep.
    kind: a key of `sweeps.STUDIES`.
    command: that started it.
    variants: all of them, also those without a finished run.
    missing: how many runs are not finished.
    failed: why runs failed, by name.
    published: others' accuracy with its interval, by method and place on the study's axis.
    comparisons: pairs of variants or methods that the sweep was made to compare.
  """

  name: str
  kind: str
  command: str
  variants: list[VariantResults]
  missing: int
  failed: dict[str, str]
  published: dict[str, dict[float, tuple[float, float]]]
  comparisons: list[tuple[str, str]]

  @property
  def score(self) -> Score:
    """What its runs are judged by."""
    return score_of(next(v.runs[0].results for v in self.variants if v.runs))

  @property
  def score_axis(self) -> str:
    """The score's label on tables and figures: validation images may stand in for test images."""
    axis, data = self.score.axis, [v.config.get("data", {}) for v in self.variants]
    held_out = any(section.get("validation_fraction") for section in data)
    return axis.replace("test", "validation", 1) if held_out else axis


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half width of its 95 % interval by Student's t; nan for a single value."""
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, math.nan
  half_width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return mean, float(half_width)


def read_sweep_results(workdir: Path) -> SweepResults:
  """Reads the runs of a sweep that are finished.

  A directory whose run has another config than the sweep's is passed over: it is what an earlier
  sweep left there. So is one whose files are damaged, with a warning: the sweep mends it when it is
  run again.

  Raises:
    ValueError: if none is finished.
  """
  record = read_record(workdir)
  variants, missing, failed = [], 0, {}
  for name, variant in record["variants"].items():
    runs = []
    for seed in variant["seeds"]:
      directory = workdir / name / f"seed{seed}"
      results = read_sound(directory / "results.json", SWEPT_RESULTS)
      config = read_sound(directory / "config.json", SWEPT_CONFIG)
      if results and config and same_variant(converted(config), variant["config"]):
        runs.append(FinishedRun(seed, results, read_metrics(directory)["test"]))
        continue
      missing += 1
      if failure := read_failure(directory):
        failed[f"{name}/seed{seed}"] = failure.error
    variants.append(VariantResults(name, variant["axes"], variant["config"], runs))
  if not any(v.runs for v in variants):
    reasons = "".join(f" {name}: {error}" for name, error in failed.items())
    raise ValueError(f"No run in {workdir} is finished: run the sweep again, it goes on.{reasons}")
  published: dict[str, dict[float, tuple[float, float]]] = {}
  for method, place, accuracy, half_width in record.get("published", ()):
    published.setdefault(method, {})[place] = accuracy, half_width
  said = record["name"], record["study"], record["command"]
  comparisons = [(first, second) for first, second in record.get("comparisons", ())]
  return SweepResults(*said, variants, missing, failed, published, comparisons)


def read_results_file(path: Path) -> SweepResults:
  """Reads a sweep's results file: the numbers of its runs; their tests over time if it has them.

  Raises:
    ValueError: if it is not there, damaged, or not of a sweep.
  """
  content = read_json(path, SWEEP_RESULTS)
  if content is None:
    raise ValueError(f"{path} does not exist: give a file of `experiments/results/`.")
  variants = [
    VariantResults(
      name,
      variant["axes"],
      variant["config"],
      [
        FinishedRun(
          run["seed"], {"environment": content["environment"]} | run, run.get("tests", [])
        )
        for run in variant["runs"]
      ],
    )
    for name, variant in content["variants"].items()
  ]
  said = content["name"], content["study"], content["command"]
  comparisons = [(first, second) for first, second in content.get("comparisons", ())]
  return SweepResults(*said, variants, content["missing_runs"], {}, {}, comparisons)


def put_together(sweeps: Sequence[SweepResults], names: Iterable[str]) -> SweepResults:
  """Sweeps as one, so that variants of one can be compared with those of another.

  Args:
    sweeps: of one study.
    names: of variants or methods that are to be compared.

  Raises:
    ValueError: if they are of several studies, judged by other scores or of other data, or two
      have what a name stands for.
  """
  first, *others = sweeps
  for other in others:
    if (other.kind, other.score) != (first.kind, first.score):
      raise ValueError(
        f"{first.name!r} is a study {first.kind!r} by {first.score.label}, {other.name!r} one "
        f"{other.kind!r} by {other.score.label}: variants of these cannot be compared."
      )
  data: dict[str, Any] | None = None
  for name in names:
    has = [s.name for s in sweeps if any(name in (v.name, v.axes["method"]) for v in s.variants)]
    if len(has) > 1:
      raise ValueError(
        f"{name} is in {' and in '.join(map(repr, has))}: name a variant of one of them alone."
      )
    for variant in (v for s in sweeps for v in s.variants if name in (v.name, v.axes["method"])):
      mine = variant.config.get("data", {})
      data = mine if data is None else data
      if differ := [key for key in data | mine if data.get(key) != mine.get(key)]:
        raise ValueError(
          f"{variant.name} does not see the batches or tests of what it is compared with: "
          f"config.data.{differ[0]} is {mine.get(differ[0])!r}, not {data.get(differ[0])!r}."
        )
  return first._replace(
    name=", ".join(sweep.name for sweep in sweeps),
    variants=[v for sweep in sweeps for v in sweep.variants],
    missing=sum(sweep.missing for sweep in sweeps),
    comparisons=[],
  )


def results_file(sweep: SweepResults, table: str) -> dict[str, Any]:
  """What `experiments/results/NAME.json` holds of a study: all that its tables come from.

  Args:
    sweep: see `read_sweep_results`.
    table: as printed.
  """
  finished = [v for v in sweep.variants if v.runs]
  return {
    "command": sweep.command,
    "environment": finished[0].runs[0].results["environment"],
    "table": table,
    "name": sweep.name,
    "study": sweep.kind,
    "missing_runs": sweep.missing,
    "comparisons": [list(pair) for pair in sweep.comparisons],
    "variants": {
      v.name: {
        "axes": v.axes,
        "config": v.config,
        "runs": [_run_entry(run, finished[0].runs[0], sweep.kind) for run in v.runs],
      }
      for v in finished
    },
  }


_NUMBERS = (
  "test_accuracy",
  "best_test_accuracy",
  "sparsity",
  "active_neurons",
  "itop_rate",
  "inference_flops",
  "training_flops",
  "steps",
  "train_seconds",
)


def _run_entry(run: FinishedRun, first: FinishedRun, kind: str) -> dict[str, Any]:
  names = [name for name in _NUMBERS if name in run.results or "accuracy" not in name]
  entry = {"seed": run.seed, **{name: run.results.get(name) for name in names}}
  if kind == "returns":  # of which how soon they come counts
    name = score_of(run.results).name
    entry["tests"] = [{"step": test["step"], name: test[name]} for test in run.tests]
  if "score" in run.results:
    entry |= {"score": run.results["score"], "last_test": run.tests[-1] if run.tests else None}
  entry["layers"] = {
    layer["path"]: {
      "density": layer["density"],
      "active_neurons": layer["active_neurons"] / layer["num_neurons"],
    }
    for layer in run.results.get("layers", [])
  }
  if run.results["environment"] != first.results["environment"]:
    entry["environment"] = run.results["environment"]
  return entry
