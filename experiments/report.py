"""Reports: `python -m experiments.report --workdir=DIR`, of a run or of a sweep.

They are made from what the runs recorded and nothing else, so they can be made again any time.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from scipy import stats

from experiments import cli, figures
from experiments.files import read_json, write_json, write_text
from experiments.record import read_metrics


def write_run_report(workdir: Path) -> Path:
  """Writes `report.md` and `figures/` of one run, finished or not; returns the report's path.

  Raises:
    ValueError: if the directory holds no run.
  """
  metrics = read_metrics(workdir)
  config = read_json(workdir / "config.json")
  if config is None or not metrics["train"]:
    raise ValueError(
      f"{workdir} holds no run that has trained: give --workdir the directory of a run or a sweep."
    )
  results = read_json(workdir / "results.json")
  figures.training(metrics, workdir / "figures" / "training.png")
  parts = [f"# {config['name']}", ""]
  if results is None:
    last = metrics["train"][-1]
    parts += [f"Not finished: step {last['step']}, loss {last['loss']:.4g}.", ""]
  else:
    parts += [_key_figures(results), "", "```", results["table"], "```", ""]
  parts += ["![Loss and accuracy](figures/training.png)", ""]
  if any(layer["density"] < 1 for layer in metrics["topology"][-1]["layers"].values()):
    figures.topology(metrics, workdir / "figures" / "topology.png")
    parts += ["![Fan-in, active neurons and exploration](figures/topology.png)", ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path


def _key_figures(results: dict[str, Any]) -> str:
  """What a finished run has come to, as a list."""
  environment = ", ".join(f"{k} {v}" for k, v in results["environment"].items())
  minutes, seconds = divmod(round(results["train_seconds"]), 60)
  return "\n".join(
    [
      f"- test accuracy {results['test_accuracy']:.2%}, best {results['best_test_accuracy']:.2%}",
      f"- sparsity {results['sparsity']:.2%}, active neurons {results['active_neurons']:.1%}, "
      f"ITOP rate {results['itop_rate']:.3f}",
      f"- FLOPs relative to dense: {results['inference_flops']:.3f} to infer, "
      f"{results['training_flops']:.3f} to train",
      f"- {results['steps']} steps in {minutes} min {seconds} s; {environment}",
    ]
  )


def mean_and_interval(values: Sequence[float]) -> tuple[float, float]:
  """Mean and half width of its 95 % interval by Student's t; nan for a single value."""
  mean = float(np.mean(values))
  if len(values) < 2:
    return mean, math.nan
  half_width = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
  return mean, float(half_width)


def write_sweep_report(workdir: Path) -> tuple[Path, str]:
  """Writes `report.md` and a figure of a sweep from its finished runs.

  Returns:
    The report's path, and its table as text.

  Raises:
    ValueError: if no run of the sweep is finished.
  """
  sweep = read_json(workdir / "sweep.json")
  finished = {
    variant: [
      workdir / variant / f"seed{seed}"
      for seed in sweep["seeds"]
      if (workdir / variant / f"seed{seed}" / "results.json").exists()
    ]
    for variant in sweep["variants"]
  }
  finished = {variant: directories for variant, directories in finished.items() if directories}
  if not finished:
    raise ValueError(f"No run in {workdir} is finished: run the sweep again, it goes on.")
  results = {v: [read_json(d / "results.json") for d in ds] for v, ds in finished.items()}
  table = _comparison_table(results)
  figures.comparison(
    {v: [read_metrics(d)["test"] for d in ds] for v, ds in finished.items()},
    {v: mean_and_interval([r["test_accuracy"] for r in rs]) for v, rs in results.items()},
    workdir / "figures" / "comparison.png",
  )
  missing = len(sweep["seeds"]) * len(sweep["variants"]) - sum(map(len, finished.values()))
  parts = [f"# {sweep['name']}", "", table, ""]
  parts += [f"{missing} runs are not finished.", ""] if missing else []
  parts += ["![Test accuracy by variant](figures/comparison.png)", ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path, table


def _comparison_table(results: dict[str, list[dict[str, Any]]]) -> str:
  """A Markdown table with a row for each variant: means over seeds, 95 % intervals."""
  header = [
    "variant",
    "seeds",
    "test accuracy (%)",
    "sparsity (%)",
    "active neurons (%)",
    "ITOP rate",
    "inference FLOPs",
    "training FLOPs",
  ]

  def mean(runs, name, factor=1.0, digits=3):
    return f"{factor * float(np.mean([r[name] for r in runs])):.{digits}f}"

  rows = []
  for variant, runs in results.items():
    accuracy, half_width = mean_and_interval([100 * r["test_accuracy"] for r in runs])
    interval = "" if math.isnan(half_width) else f" ± {half_width:.2f}"
    rows.append(
      [
        variant,
        str(len(runs)),
        f"{accuracy:.2f}{interval}",
        mean(runs, "sparsity", 100, 1),
        mean(runs, "active_neurons", 100, 1),
        mean(runs, "itop_rate"),
        mean(runs, "inference_flops"),
        mean(runs, "training_flops"),
      ]
    )
  widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

  def line(cells):
    first, *rest = zip(cells, widths, strict=True)
    return "| " + " | ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]) + " |"

  rule = "|" + "|".join(["-" * (widths[0] + 2), *("-" * (w + 1) + ":" for w in widths[1:])]) + "|"
  return "\n".join([line(header), rule, *map(line, rows)])


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  if (workdir / "sweep.json").exists():
    path, table = write_sweep_report(workdir)
    print(table)
    if flags.FLAGS.out:
      first = next(workdir.glob("*/seed*/results.json"))
      write_json(
        Path(flags.FLAGS.out),
        {
          "command": read_json(workdir / "sweep.json")["command"],
          "environment": read_json(first)["environment"],
          "table": table,
        },
      )
  else:
    path = write_run_report(workdir)
  print(f"report in {path}, figures in {workdir / 'figures'}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a run or of a sweep.", required=True)
  flags.DEFINE_string("out", "", "For a sweep: results file to write its table to.")
  cli.run(main)
