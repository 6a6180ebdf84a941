"""Reports: `python -m experiments.report --workdir=DIR`, of a run or of a sweep.

They are made from what the runs recorded and nothing else, so they can be made again any time.
"""

import shutil
from pathlib import Path
from typing import Any

from absl import flags

from experiments import cli, figures, study_figures, study_tables
from experiments import study as study_module
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


def write_sweep_report(workdir: Path) -> tuple[Path, str]:
  """Writes `report.md` and the figures of a sweep from its finished runs.

  Returns:
    The report's path, and its table as text.

  Raises:
    ValueError: if no run of the sweep is finished.
  """
  study = study_module.collect(workdir)
  table = study_tables.comparison(study)
  finished = {v.name: v for v in study.variants if v.runs}
  figures.comparison(
    {name: [run.tests for run in v.runs] for name, v in finished.items()},
    {name: v.interval("test_accuracy") for name, v in finished.items()},
    workdir / "figures" / "comparison.png",
  )
  pivot = study_tables.pivot(study)
  parts = [f"# {study.name}", "", table, ""]
  parts += [pivot, ""] if pivot else []
  parts += [f"{study.missing} runs are not finished.", ""] if study.missing else []
  for name, error in study.failed.items():
    parts += [f"- {name} failed: {error}"]
  parts += [""] if study.failed else []
  if study_figures.study_figure(study, workdir / "figures" / "study.png"):
    parts += [f"![{study.name}](figures/study.png)", ""]
  parts += ["![Test accuracy by variant](figures/comparison.png)", ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path, table if not pivot else f"{table}\n\n{pivot}"


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  if (workdir / "sweep.json").exists():
    path, table = write_sweep_report(workdir)
    print(table)
    if flags.FLAGS.out:
      study = study_module.collect(workdir)
      write_json(Path(flags.FLAGS.out), study_module.results_file(study, table))
    if flags.FLAGS.figure:
      drawn = workdir / "figures" / "study.png"
      drawn = drawn if drawn.exists() else workdir / "figures" / "comparison.png"
      Path(flags.FLAGS.figure).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(drawn, flags.FLAGS.figure)
  else:
    path = write_run_report(workdir)
  print(f"report in {path}, figures in {workdir / 'figures'}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a run or of a sweep.", required=True)
  flags.DEFINE_string(
    "out", "", "For a sweep: results file to write, with its table and its runs' figures."
  )
  flags.DEFINE_string("figure", "", "For a sweep: where to put a copy of its figure.")
  cli.run(main)
