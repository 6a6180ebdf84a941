"""The report of one run, finished or not: `report.md` and `figures/` in its directory."""

from pathlib import Path
from typing import Any

from experiments.common.files import read_json, write_text
from experiments.data.holdout import tested_on
from experiments.reports import figures
from experiments.workdir.metrics import read_metrics
from experiments.workdir.patterns import CONFIG, RESULTS
from experiments.workdir.scores import ACCURACY, scored

_WORDS = """\
Density is the share of a layer's weights that are active (not masked); sparsity is 1 minus the
density of all layers together. An active neuron has at least one active weight. The ITOP rate
(in-time overparameterization, arXiv:2102.02887) is the share of weights that were active at any
time of the run: it grows as the topology explores, until T_end, the last topology update."""


def write_run_report(workdir: Path) -> Path:
  """Writes `report.md` and `figures/` of one run, finished or not; returns the report's path.

  Raises:
    ValueError: if the directory holds no run, or a file of it is damaged.
  """
  metrics = read_metrics(workdir)
  config = read_json(workdir / "config.json", CONFIG)
  results = read_json(workdir / "results.json", RESULTS)
  if config is None or not (metrics["train"] or results):
    raise ValueError(
      f"{workdir} holds no run that has trained: give --workdir the directory of a run or a sweep."
    )
  score = ACCURACY if results is None else scored(results).score
  figures.training(metrics, workdir / "figures" / "training.png", score=score)
  parts = [f"# {config['name']}", ""]
  if results is None:
    last = metrics["train"][-1]
    parts += [f"Not finished: step {last['step']}, loss {last['loss']:.4g}.", ""]
  else:
    images = tested_on(config["data"])
    parts += [_key_figures(results, images), "", "```", results["table"], "```", ""]
  parts += [f"![Loss and {score.label}](figures/training.png)", ""]
  topology = metrics["topology"]
  if topology and any(layer["density"] < 1 for layer in topology[-1]["layers"].values()):
    figures.topology(metrics, workdir / "figures" / "topology.png")
    parts += ["![Fan-in, active neurons and exploration](figures/topology.png)", ""]
  parts += [_WORDS, ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path


def _flops(value: float | None) -> str:
  return "unknown" if value is None else f"{value:.3f}"


def _key_figures(results: dict[str, Any], images: str) -> str:
  """What a finished run has come to, as a list; `images` are those that it was tested on."""
  environment = ", ".join(f"{k} {v}" for k, v in results["environment"].items())
  minutes, seconds = divmod(round(results["train_seconds"]), 60)
  score, last, best = scored(results)
  itop = "" if results["itop_rate"] is None else f", ITOP rate {results['itop_rate']:.3f}"
  engine = results.get("engine", "masked")
  return "\n".join(
    [
      f"- test {score.label} {score.text(last)}, best {score.text(best)}"
      + (f" ({images})" if images != "test images" else ""),
      f"- sparsity {results['sparsity']:.2%}, active neurons {results['active_neurons']:.1%}{itop}",
      f"- FLOPs relative to dense: {_flops(results['inference_flops'])} to infer, "
      f"{_flops(results['training_flops'])} to train",
      f"- {results['steps']} steps in {minutes} min {seconds} s ({engine}); {environment}",
    ]
  )
