"""The results of a finished run."""

from pathlib import Path
from typing import Any

from experiments.common.environment import environment
from experiments.common.files import as_json
from experiments.training.engines import TrainState
from experiments.training.setup import Run
from experiments.workdir.metrics import read_metrics
from experiments.workdir.scores import as_results


def results_of(run: Run, state: TrainState, workdir: Path) -> dict[str, Any]:
  """What `results.json` holds of a finished run.

  Args:
    run: the run.
    state: its last.
    workdir: that holds its records.

  Returns:
    Plain values, as they come back from the file.
  """
  metrics = read_metrics(workdir)
  summary = run.summarize(state)
  score = run.task.score
  tests = [
    r[score.name] for r in metrics["test"] if r["step"] >= run.sparse_from and score.name in r
  ]
  inference = summary.inference_flops
  if inference is not None:
    inference *= run.model.share_of_macs
  method = run.config.method
  training = None
  batches = run.config.optimizer.accumulation_steps
  topology = [r for r in metrics["topology"] if r.get("inference_flops") is not None]
  history = {r["last_update"] // batches: r["inference_flops"] for r in topology}
  if inference is not None and (run.plan.method.flops != "mean" or 0 in history):
    training = run.plan.training_flops(
      inference, update_every=method.update_every_steps, history=history
    )
  values = {
    "name": run.config.name,
    "method": method.name,
    "engine": method.engine,
    "seed": run.config.seed,
    "steps": run.total_steps,
    **as_results(score, tests),
    "sparsity": 1 - (1 - summary.sparsity) * run.model.share_of_weights,
    "active_neurons": summary.active_neurons,
    "itop_rate": summary.itop_rate,
    "inference_flops": inference,
    "training_flops": training,
    "train_seconds": sum(record["seconds"] for record in metrics["train"]),
    "layers": [layer._asdict() for layer in summary.layers],
    "table": str(summary),
    "environment": environment(),
  }
  return as_json(values)
