"""What a run writes as it goes, in its work directory: records and checkpoints.

With several processes all make the same calls, but process 0 alone writes.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.common.environment import versions
from experiments.common.files import as_json, write_json
from experiments.processes.cluster import is_process_0
from experiments.processes.consistency import check_same, check_same_masks, decide_on_process_0
from experiments.tasks import Task
from experiments.training.engines import TrainState
from experiments.training.setup import Run
from experiments.training.steps import Metrics
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.metrics import MetricsWriter, read_metrics
from experiments.workdir.provenance import code, write_session
from experiments.workdir.wandb_tracker import open_tracker

_LARGE = 1 << 28  # bytes of a state that is not to be in memory twice more while it is saved


class RunLog:
  """The records and checkpoints of a run.

  Attributes:
    run: the run.
    workdir: its directory.
    step: batches done when it was opened.
  """

  def __init__(self, run: Run, init_state: TrainState, workdir: Path):
    """Opens the directory and reads the last checkpoint.

    Raises:
      ValueError: if the run is not the same in all processes, or no checkpoint can be read.
    """
    check_same(lambda: _facts(run))
    self.run, self.workdir = run, workdir
    if is_process_0():
      write_json(workdir / "config.json", run.config.to_dict())
    self._checkpoints = Checkpoints(
      workdir / "checkpoints",
      keep=run.config.train.keep_checkpoints,
      config=as_json(run.config.to_dict()),
      few_files=sum(x.nbytes for x in jax.tree.leaves(init_state)) < _LARGE,
    )
    self._metrics: MetricsWriter | None = None
    try:
      restored = self._checkpoints.restore(init_state)
    except BaseException:
      self._checkpoints.close()
      raise
    self._state: TrainState | None = init_state if restored is None else restored
    self.step = int(self._state.step)
    self._summary, self._summary_step = run.summarize(self._state), self.step
    self._window: list[Metrics] = []

  def take_state(self) -> TrainState:
    """The state to train from: the last checkpoint, or step 0. Once; it is not kept here."""
    state, self._state = self._state, None
    assert state is not None, "the state has been taken"
    return state

  def start(self) -> None:
    """Opens the records, and starts the clock."""
    if is_process_0():
      write_session(self.workdir, step=self.step)
      tracker = open_tracker(self.run.config, self.workdir)
      self._metrics = MetricsWriter(self.workdir, step=self.step, tracker=tracker)
      if self.step == 0 or not read_metrics(self.workdir)["topology"]:  # or what there was is lost
        at = self.run.last_update(self.step)
        self._metrics.write_topology(self.step, self._summary, last_update=at)
    self._waited = 0.0
    self.restart_clock()

  def restart_clock(self) -> None:
    """Does not count what was done since the last record as training."""
    self._since = time.perf_counter()

  def add(self, metrics: Metrics) -> None:
    """Keeps the metrics of some steps for the next record; waits for nothing."""
    self._window.append(metrics)

  def record_train(self, step: int, state: TrainState, *, waited: float) -> dict[str, float | str]:
    """Records training since the last record, and the topology if it was updated since.

    Args:
      step: batches done.
      state: at this step.
      waited: seconds in all that the loop has waited for batches.

    Returns:
      What is worth showing.

    Raises:
      FloatingPointError: if a loss was not finite.
    """
    values = averages(self._window, self.run.task)
    seconds = time.perf_counter() - self._since
    speed = values.pop("examples") / seconds
    measured, unit = dict(values), self.run.task.unit
    values |= {
      f"{unit}_per_s": speed,
      "seconds": seconds,
      "waited_share": (waited - self._waited) / seconds,
    }
    norms, self._window, self._waited = _norms(self._window[-1]), [], waited
    self.restart_clock()
    if self.run.last_update(step) > self._summary_step:
      self._topology(step, state)
    if self._metrics:
      rate = self.run.learning_rate(step)
      self._metrics.write("train", step, **values, **norms, learning_rate=rate)
    return {
      **measured,
      f"{unit}/s": str(round(speed)),
      "sparsity": f"{self._summary.sparsity:.2%}",
      "neurons": f"{self._summary.active_neurons:.1%}",
    }

  def _topology(self, step: int, state: TrainState) -> None:
    """Records the topology as it is at `step`."""
    self._summary, self._summary_step = self.run.summarize(state), step
    if self._metrics:
      self._metrics.write_topology(step, self._summary, last_update=self.run.last_update(step))
      self.run.warn_early(self._summary, step)

  def record_eval(self, step: int, metrics: Sequence[Metrics]) -> float:
    """Records an evaluation; returns its score.

    Raises:
      FloatingPointError: if its loss is not finite.
    """
    values = averages(metrics, self.run.task)
    if self._metrics:
      self._metrics.write("test", step, **values)
    return values[self.run.task.score.name]

  def is_tested(self, step: int) -> bool:
    """Whether an evaluation of the network at `step` is on record, which is process 0's to say."""
    return decide_on_process_0(
      lambda: any(record["step"] == step for record in read_metrics(self.workdir)["test"])
    )

  def save(self, step: int, state: TrainState, *, score: float | None) -> None:
    """Starts saving a checkpoint.

    Args:
      step: of the state.
      state: on every device.
      score: of this very state in a test; None if unknown.

    Raises:
      OSError: if it cannot be written, or if the records until now cannot: a run that resumes from
        the checkpoint would not write them again.
      RuntimeError: if the devices have different masks.
    """
    check_same_masks(self.run.topology(state))
    if self._metrics:
      self._metrics.settle()
    # A score from before the network is sparse is no candidate for the best one.
    if score is not None:
      score = self.run.task.score.rising(score) if step >= self.run.sparse_from else None
    self._checkpoints.save(step, state, test_accuracy=score)

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    self._checkpoints.wait()

  def close(self) -> None:
    """Waits for saves under way and closes the files."""
    if self._metrics:
      self._metrics.close()
    self._checkpoints.close()


def _facts(run: Run) -> dict[str, Any]:
  """What makes the run, by its name for people; without what each host has for itself."""
  config = as_json(run.config.to_dict())
  del config["data"]["data_dir"]
  config["data"]["kwargs"].pop("num_workers", None)
  numbers = {"training": run.data.num_train, "test": run.data.num_test, **run.shapes}
  return {
    "config": config,
    f"number of {run.task.unit}": as_json(numbers),
    "code": code(),
    "versions": versions(),
  }


def averages(window: Sequence[Metrics], task: Task) -> dict[str, float]:
  """Loss and other metrics over some calls of the device, and the number of examples in them.

  Args:
    window: of the calls.
    task: whose metrics they are.

  Raises:
    FloatingPointError: if a loss in the window is not finite.
  """
  calls: list[Any] = jax.device_get(list(window))
  if bad := [int(m.bad_step) for m in calls if m.bad_step >= 0]:
    raise FloatingPointError(
      f"The loss of step {bad[0]} is not finite: the run has diverged. The checkpoints from before "
      "are kept. Lower config.optimizer.learning_rate, set config.optimizer.clip_norm or "
      "config.optimizer.warmup_epochs, and start in another --workdir."
    )
  count = float(sum(m.examples for m in calls))
  sums = {"loss": sum(m.loss for m in calls)}
  sums |= {name: sum(m.sums[name] for m in calls) for name in calls[0].sums}
  means = {name: np.asarray(total, np.float64) / count for name, total in sums.items()}
  return task.finish(means) | {"examples": count}


def _norms(metrics: Metrics) -> dict[str, float | None]:
  """The norms of a call's last step; None where they are not finite, or were not asked for."""
  norms: dict[str, Any] = jax.device_get(metrics.norms)
  return {name: float(x) if np.isfinite(x) else None for name, x in norms.items()}
