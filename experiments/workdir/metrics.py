"""What a run writes down: JSON lines to compute with, TensorBoard events to look at."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.common.files import Appender, read_json_lines
from experiments.workdir.patterns import of_record
from experiments.workdir.tensorboard import TensorBoardWriter
from experiments.workdir.wandb_tracker import Tracker
from srigl_jax import Summary


class MetricsWriter:
  """Appends records to `metrics.jsonl` and TensorBoard event files in a run's directory.

  A file system that fails does not stop it: what cannot be written waits for the next record.
  """

  def __init__(self, workdir: Path, *, step: int, tracker: Tracker | None = None):
    """Opens the files for a run that goes on from `step`; so does a tracker."""
    self._tracker = tracker
    self._lines = Appender(workdir / "metrics.jsonl", lines=True)
    self._tensorboard = TensorBoardWriter(workdir / "tensorboard", step=step)

  def write(self, kind: str, step: int, **values: float | None) -> None:
    """Records numbers.

    Args:
      kind: `"train"`, `"test"` or `"topology"`.
      step: batches done.
      **values: numbers by name; None where there is none.
    """
    self._write_line({"kind": kind, "step": step, **values})
    self._show({f"{kind}/{name}": value for name, value in values.items()}, step)

  def write_topology(self, step: int, summary: Summary, *, last_update: int) -> None:
    """Records the topology at `step`, in all and by layer, and the step of its last update."""
    layers = {
      x.path: {
        "density": x.density,
        "fan_in": x.max_fan_in,
        "active_neurons": x.active_neurons / x.num_neurons,
        "itop_rate": x.itop_rate,
      }
      for x in summary.layers
    }
    total = {
      "density": summary.density,
      "active_neurons": summary.active_neurons,
      "itop_rate": summary.itop_rate,
    }
    if summary.inference_flops is not None:
      total["inference_flops"] = summary.inference_flops
    self._write_line(
      {"kind": "topology", "step": step, "last_update": last_update, **total, "layers": layers}
    )
    self._show(
      {f"topology/{name}": value for name, value in total.items()}
      | {
        f"{name}/{path}": layer[name]
        for path, layer in layers.items()
        for name in ("fan_in", "active_neurons")
      },
      step,
    )

  def _show(self, values: Mapping[str, float | None], step: int) -> None:
    """Shows numbers where people look at them."""
    self._tensorboard.show(values, step)
    if self._tracker:
      self._tracker.log(values, step=step)

  def _write_line(self, record: dict[str, Any]) -> None:
    self._lines.write(json.dumps(record).encode() + b"\n")

  def settle(self) -> None:
    """Returns once all records are on disk.

    Raises:
      OSError: if they cannot be written.
    """
    self._lines.settle()

  def close(self) -> None:
    """Closes the files."""
    self._lines.close()
    self._tensorboard.close()
    if self._tracker:
      self._tracker.finish()


def read_metrics(workdir: Path) -> dict[str, list[dict[str, Any]]]:
  """The records of a run by kind, in order of step.

  A run killed between a record and the next checkpoint writes the record again when it resumes:
  the later one counts. A line that is no record, such as one cut off by the kill, is passed over
  with a warning.
  """
  records: dict[str, dict[int, dict[str, Any]]] = {"train": {}, "test": {}, "topology": {}}
  for record in read_json_lines(workdir / "metrics.jsonl", of_record):
    records.setdefault(record["kind"], {})[record["step"]] = record
  return {kind: [by_step[s] for s in sorted(by_step)] for kind, by_step in records.items()}
