"""What one run keeps as it goes: its records and checkpoints, in its work directory.

With several processes all go through the same motions, but process 0 alone writes.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.common.environment import versions
from experiments.common.files import as_json, write_json
from experiments.processes.cluster import is_process_0
from experiments.processes.consistency import check_same
from experiments.training.setup import Run
from experiments.training.steps import Metrics, TrainState
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.metrics import Recorder
from experiments.workdir.provenance import code, write_session
from experiments.workdir.wandb_tracker import open_tracker


class Logbook:
  """The records and checkpoints of a run.

  Attributes:
    run: the run, its `init_state` in shapes only.
    workdir: its directory.
    step: batches done when it was opened.
    state: where it goes on from: the last checkpoint, or step 0; None once it was taken.
    error: why it can go on no more; None while it can.
  """

  def __init__(self, run: Run, workdir: Path):
    """Opens the directory and reads the last checkpoint.

    Raises:
      ValueError: if the run is not the same in all processes, or no checkpoint can be read.
    """
    check_same(lambda: _facts(run))
    # What is not let go of here stays in memory as long as training lasts.
    self.run = run._replace(init_state=jax.eval_shape(lambda: run.init_state))
    self.workdir = workdir
    self.error: Exception | None = None
    if is_process_0():
      write_json(workdir / "config.json", run.config.to_dict())
    self._checkpoints = Checkpoints(workdir / "checkpoints", keep=run.config.train.keep_checkpoints)
    self._recorder: Recorder | None = None
    try:
      restored = self._checkpoints.restore(run.init_state)
    except BaseException:
      self._checkpoints.close()
      raise
    state = run.init_state if restored is None else restored
    self.state: TrainState | None = state
    self.step = int(state.step)
    self._summary, self._summary_step = run.summarize(state), self.step

  def take_state(self) -> TrainState:
    """Where the run goes on from, which is not kept here any longer; to be called once."""
    state, self.state = self.state, None
    assert state is not None, "the state has been taken"
    return state

  def start(self) -> None:
    """Opens the records, to go on from `state`."""
    if not is_process_0():
      return
    write_session(self.workdir, step=self.step)
    tracker = open_tracker(self.run.config, self.workdir)
    self._recorder = Recorder(self.workdir, step=self.step, tracker=tracker)
    if self.step == 0:
      self._recorder.write_topology(0, self._summary, last_update=0)

  def needs_summary(self, step: int) -> bool:
    """Whether the topology has been updated since it was last recorded."""
    return self.run.last_update(step) > self._summary_step

  def topology(self, step: int, state: TrainState) -> None:
    """Records the topology as it is at `step`."""
    self._summary, self._summary_step = self.run.summarize(state), step
    if self._recorder:
      self._recorder.write_topology(step, self._summary, last_update=self.run.last_update(step))
      self.run.warn_early(self._summary, step)

  def train(
    self, step: int, values: dict[str, float], seconds: float, waited_share: float
  ) -> dict[str, float | str]:
    """Records training since the last record; returns what is worth showing.

    Args:
      step: batches done.
      values: see `averages`.
      seconds: that it took.
      waited_share: part of it in which the next batch was waited for.
    """
    values = dict(values)
    values |= {
      "images_per_s": values.pop("examples") / seconds,
      "seconds": seconds,
      "waited_share": waited_share,
    }
    if self._recorder:
      self._recorder.write("train", step, **values, learning_rate=self.run.learning_rate(step))
    return {
      "loss": values["loss"],
      "accuracy": values["accuracy"],
      "images/s": str(round(values["images_per_s"])),
      "sparsity": f"{self._summary.sparsity:.2%}",
      "neurons": f"{self._summary.active_neurons:.1%}",
    }

  def test(self, step: int, values: dict[str, float]) -> None:
    """Records a test; see `averages`."""
    if self._recorder:
      self._recorder.write("test", step, **values)

  def save(self, step: int, state: TrainState, *, test_accuracy: float | None) -> None:
    """Starts saving a checkpoint.

    Raises:
      OSError: if it cannot be written, or if the records until now cannot: a run that goes on from
        the checkpoint would not write them again.
    """
    if self._recorder:
      self._recorder.settle()
    self._checkpoints.save(step, state, test_accuracy=test_accuracy)

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    self._checkpoints.wait()

  def close(self) -> None:
    """Waits for saves under way and closes the files."""
    if self._recorder:
      self._recorder.close()
    self._checkpoints.close()


def _facts(run: Run) -> dict[str, Any]:
  """What makes the run, by its name for people; without what each host has for itself."""
  config = as_json(run.config.to_dict())
  del config["data"]["data_dir"]
  config["data"]["kwargs"].pop("num_workers", None)
  images = [run.data.num_train, run.data.num_test, run.data.num_classes]
  return {"config": config, "number of images": images, "code": code(), "versions": versions()}


def averages(window: Sequence[Metrics], index: int) -> dict[str, float]:
  """Loss and accuracy of a run over some calls of the device, and the examples in them.

  Args:
    window: the metrics of each call.
    index: of the run in its pack.

  Raises:
    FloatingPointError: if a loss in the window is not finite.
  """
  calls: list[Any] = [jax.tree.map(lambda x: x[index], m) for m in jax.device_get(list(window))]
  if bad := [int(m.bad_step) for m in calls if m.bad_step >= 0]:
    raise FloatingPointError(
      f"The loss of step {bad[0]} is not finite: the run has diverged. The checkpoints from before "
      "are kept. Lower config.optimizer.learning_rate, set config.optimizer.clip_norm or "
      "config.optimizer.warmup_epochs, and start in another --workdir."
    )
  count = float(sum(m.examples for m in calls))
  return {
    "loss": float(sum(m.loss for m in calls)) / count,
    "accuracy": float(sum(m.correct for m in calls)) / count,
    "examples": count,
  }
