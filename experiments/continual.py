"""What continual learning has kept: `python -m experiments.continual --workdir=DIR`.

Of a run, the accuracy on each task after each task, and how many positions are still free; of a
sweep a row for each variant, means over seeds with 95 % intervals, and with `--out` a results file.
"""

import math
from pathlib import Path
from typing import Any

from absl import flags

from experiments.analysis.forgetting import Measures, accuracy_matrix, measures
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import read_json, write_json
from experiments.common.markdown import markdown_table
from experiments.sweeps.results import mean_and_interval, read_sweep_results
from experiments.workdir.metrics import read_metrics
from experiments.workdir.patterns import CONFIG, RESULTS

TASK = "continual_classification"


def run_table(workdir: Path) -> str:
  """The accuracy matrix of a finished run, in per cent.

  Raises:
    ValueError: if it is not finished, or not one of tasks.
  """
  config, results = (
    read_json(workdir / f"{name}.json", pattern)
    for name, pattern in (("config", CONFIG), ("results", RESULTS))
  )
  if config is None or results is None:
    raise ValueError(f"{workdir} holds no finished run: let it come to its end first.")
  _check(config)
  records = read_metrics(workdir)
  matrix = accuracy_matrix(records["test"], results["steps"])
  length = results["steps"] // len(matrix)
  rows = []
  for task, row in enumerate(matrix):
    before = [r["density"] for r in records["topology"] if r["step"] <= (task + 1) * length]
    free = f"{100 * (1 - before[-1]):.1f}" if before else ""
    rows.append([f"after task {task}", *(f"{100 * x:.1f}" for x in row), free])
  header = ["accuracy (%)", *(f"task {task}" for task in range(len(matrix))), "free positions (%)"]
  found = measures(matrix)
  said = "" if math.isnan(found.forgetting) else f", forgetting {100 * found.forgetting:.2f} points"
  return f"{markdown_table(header, rows)}\n\naverage accuracy {found.average:.2%}{said}"


def sweep_table(workdir: Path) -> tuple[str, dict[str, list[Measures]]]:
  """A row for each variant that has finished runs, and the measures of its runs.

  Raises:
    ValueError: if none is finished, or runs are not of tasks.
  """
  found, rows = {}, []
  for variant in read_sweep_results(workdir).variants:
    if not variant.runs:
      continue
    _check(variant.config)
    joint = variant.config["task"]["kwargs"].get("joint")
    runs = [measures(accuracy_matrix(run.tests, run.results["steps"])) for run in variant.runs]
    if joint:
      runs = [run._replace(forgetting=math.nan, learnt=math.nan) for run in runs]
    found[variant.name] = runs
    free = 100 * variant.interval("sparsity")[0]
    cells = [_interval([getattr(run, name) for run in runs]) for name in Measures._fields]
    rows.append([variant.name, str(len(runs)), *cells, f"{free:.1f}"])
  header = [
    "variant",
    "seeds",
    "average accuracy (%)",
    "forgetting (points)",
    "accuracy when learnt (%)",
    "free positions (%)",
  ]
  return markdown_table(header, rows), found


def _interval(values: list[float]) -> str:
  mean, half_width = mean_and_interval([100 * x for x in values])
  if math.isnan(mean):
    return "–"
  return f"{mean:.2f}" + ("" if math.isnan(half_width) else f" ± {half_width:.2f}")


def _check(config: dict[str, Any]) -> None:
  if config.get("task", {}).get("name") != TASK:
    raise ValueError(f"{config['name']!r} is no run of {TASK}.")


def main() -> int:
  """The command."""
  workdir, out = Path(flags.FLAGS.workdir), flags.FLAGS.out
  if not (workdir / "sweep.json").exists():
    if out:
      raise ValueError("--out is for a sweep: the figures of a run are in its metrics.jsonl.")
    print(run_table(workdir))
    return 0
  table, found = sweep_table(workdir)
  print(table)
  if out:
    runs = {
      name: [{k: None if math.isnan(x) else x for k, x in run._asdict().items()} for run in variant]
      for name, variant in found.items()
    }
    said = {"command": command_line("experiments.continual"), "environment": environment()}
    write_json(Path(out), {**said, "table": table, "runs": runs})
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a run or of a sweep.", required=True)
  flags.DEFINE_string("out", "", "Results file to write, of a sweep.")
  cli.run(main)
