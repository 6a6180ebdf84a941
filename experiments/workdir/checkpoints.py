"""Checkpoints of a run: asynchronous, atomic, checked; the latest few and the best one.

With several processes, process 0 reads and writes and the others get from it what it has read: all
have the same state, and only one needs the disk. Every process must make the same calls.
"""

import contextlib
import shutil
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from experiments.processes.consistency import broadcast_from_process_0
from experiments.workdir import checksums
from experiments.workdir.former_states import as_now, as_stored
from experiments.workdir.owner import CHECKPOINT_FILE

State = TypeVar("State")

_CLEARING_SECONDS = 10.0
_MASKS = jax.tree_util.DictKey("masks")  # the field of `srigl_jax.SparseState`


class Checkpoints:
  """The checkpoints of one run, in one directory."""

  def __init__(
    self,
    directory: Path,
    *,
    keep: int,
    config: Mapping[str, Any] | None = None,
    read_only: bool = False,
    few_files: bool = True,
  ):
    """Opens or creates the directory; the latest `keep` checkpoints stay, and the best one.

    What a save that was cut short has left there is removed. With `read_only` nothing there is
    ever changed, not even while another process saves; each process reads for itself then.
    What is saved carries `config`, the run's, as JSON holds it; see `owner`. With `few_files`
    arrays are put together in memory before they are written, else each has files of its own.
    """
    self._config = dict(config or {})
    self._directory, self._keep, self._read_only = directory.absolute(), keep, read_only
    self._few_files = few_files
    self._is_active = read_only or jax.process_index() == 0
    self._saving: tuple[int, int] | None = None  # step and bytes of the save under way
    if self._is_active:
      self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    accuracy = lambda metrics: metrics["test_accuracy"]
    best = BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
    several, process = jax.process_count() > 1, jax.process_index()
    if not self._read_only:
      self._directory.mkdir(parents=True, exist_ok=True)
      # Not left to Orbax, whose thread for it outlives its manager and meets the next one's.
      _remove_unfinished(self._directory)
    return ocp.CheckpointManager(
      self._directory,
      # Named, so that metadata can be read before anything else is.
      item_handlers={
        "state": ocp.StandardCheckpointHandler(use_ocdbt=self._few_files),
        "checksums": ocp.JsonCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(CHECKPOINT_FILE),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(self._keep), best]),
        best_fn=accuracy,  # without it the metrics are not written, and lost when the run resumes
        create=False,
        read_only=self._read_only,
        multiprocessing_options=ocp.options.MultiprocessingOptions(
          active_processes={process} if several else None,
          primary_host=process,
          barrier_sync_key_prefix=f"checkpoints{process}" if several else None,
        ),
      ),
    )

  def save(self, step: int, state: State, test_accuracy: float | None) -> None:
    """Starts saving in the background; a step that is already there is left alone.

    If the save before this one turns out to have failed, a warning says so and this one is waited
    for: the disk may have room again, and if not, it is time to stop.

    Args:
      step: of the state.
      state: a pytree of arrays, the same on all devices.
      test_accuracy: of this very state, by which the best checkpoint is chosen; None if unknown.

    Raises:
      OSError: if it cannot be written.
      RuntimeError: if the checkpoint manager declines to save.
    """
    if not self._is_active:
      return
    try:
      self.wait()
    except OSError as error:
      warnings.warn(f"{error} Trying again with the state of step {step}.", stacklevel=2)
      failed_before = True
    else:
      failed_before = False
    if step in self._manager.all_steps():
      return
    state = jax.tree.map(np.asarray, state)  # orbax takes a copy before it returns
    self._saving = step, sum(x.nbytes for x in jax.tree.leaves(state))
    try:
      saved = self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          checksums=ocp.args.JsonSave(checksums.to_json(checksums.checksums(state))),
          config=ocp.args.JsonSave(self._config),
        ),
        metrics=None if test_accuracy is None else {"test_accuracy": test_accuracy},
      )
    except Exception as error:
      raise self._failed(error) from error
    if not saved:
      self._saving = None
      raise RuntimeError(
        f"The checkpoint of step {step} was not saved, since a later one exists in "
        f"{self._directory}: {self._manager.all_steps()}. Use another directory."
      )
    if failed_before:
      self.wait()

  def best_step(self) -> int | None:
    """The step of the checkpoint with the best test accuracy; None if there is none."""
    return self._manager.best_step()

  def restore(self, template: State, *, step: int | None = None) -> State | None:
    """The latest checkpoint that can be read and is undamaged, in memory; None if there is none.

    Later ones that are not are moved out of the way then: the run will come to their steps again,
    and could save neither there nor before. They may well be sound, if it was the file system that
    failed.

    Args:
      template: a state of the same structure, shapes and dtypes.
      step: of the checkpoint to read, instead of the latest.

    Raises:
      ValueError: if checkpoints are there but none can be read.
    """
    if self._read_only:
      return self._restore(template, step)
    return broadcast_from_process_0(lambda: self._restore(template, step), template)

  def restore_as_saved(self) -> Any:
    """The latest checkpoint as nested dicts, for those who do not know what its run was.

    Raises:
      ValueError: if there is none, or none can be read.
    """
    step = self._manager.latest_step()
    if step is None:
      raise ValueError(f"{self._directory} has no checkpoint.")
    shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    return self._restore(jax.tree.map(shape, self._manager.item_metadata(step)["state"].tree), None)

  def _restore(self, template: State, step: int | None) -> State | None:
    steps = [step] if step is not None else sorted(self._manager.all_steps(), reverse=True)
    for i, step in enumerate(steps):
      try:
        state = self._read(step, template)
      except Exception as error:  # whatever a damaged directory makes the reader raise
        warnings.warn(
          f"The checkpoint of step {step} in {self._directory} cannot be read "
          f"({type(error).__name__}: {error}); trying the one before.",
          stacklevel=2,
        )
      else:
        if i and not self._read_only:
          self._set_aside(steps[:i])
        return state
    if steps:
      raise ValueError(
        f"None of the checkpoints {steps} in {self._directory} can be read by this "
        "config and version: see the warnings. Use another --workdir to start afresh."
      )
    return None

  def _set_aside(self, steps: list[int]) -> None:
    """Moves checkpoints to a directory beside this one, under names that are free there."""
    aside = self._directory.with_name(f"{self._directory.name}-unreadable")
    aside.mkdir(exist_ok=True)
    for step in steps:
      places = (aside / f"{step}{end}" for end in ("", *(f".{n}" for n in range(1, 1000))))
      place = next(place for place in places if not place.exists())
      (self._directory / str(step)).rename(place)
      warnings.warn(f"The checkpoint that could not be read is now {place}.", stacklevel=2)
    self._manager.reload()

  def _read(self, step: int, template: State) -> State:
    metadata = self._manager.item_metadata(step)["state"].tree
    now, template = template, as_stored(template, metadata)
    # What is read stays in memory: the devices that saved it may have been others.
    arrays = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), template)
    wanted: dict[str, Any] = {"state": ocp.args.StandardRestore(arrays)}
    if (self._directory / str(step) / "checksums").exists():  # not in those of older versions
      wanted["checksums"] = ocp.args.JsonRestore()
    restored = self._manager.restore(step, args=ocp.args.Composite(**wanted))
    # The reader casts without a word where dtypes differ: look at what is stored.
    stored = checksums.signature(metadata)
    if unlike := checksums.differing(stored, checksums.signature(template)):
      raise ValueError(f"these arrays are not as they should be: {', '.join(unlike)}")
    if "checksums" in wanted:
      expected = checksums.from_json(restored["checksums"])
      if damaged := checksums.differing(expected, checksums.checksums(restored["state"])):
        raise ValueError(f"its files are damaged, these have other checksums: {', '.join(damaged)}")
    return as_now(now, restored["state"])

  def wait(self) -> None:
    """Waits until what was saved is on disk.

    Raises:
      OSError: if it could not be written.
    """
    if not self._is_active:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as error:
      raise self._failed(error) from error
    self._saving = None

  def _failed(self, error: Exception) -> OSError:
    """Clears up after a save that failed, and says what can be done."""
    step, num_bytes = self._saving or (-1, 0)
    self._saving = None
    with contextlib.suppress(Exception):  # of further files of it that could not be written
      self._manager.close()
    self._clear_up()
    self._manager = self._open()  # the old one counts on what it has not written
    free = shutil.disk_usage(self._directory).free
    # Tensorstore describes the whole array after the reason, in brackets.
    reason = str(error).rpartition(": ")[2].partition(" [")[0] or type(error).__name__
    return OSError(
      f"The checkpoint of step {step} could not be written to {self._directory} ({reason}). It "
      f"takes up to {num_bytes / 1e6:.1f} MB; {free / 1e6:.1f} MB are free there. The checkpoints "
      "from before are kept. Make room, and the same command goes on from the last one."
    )

  def _clear_up(self) -> None:
    """Removes what a failed save has left: it takes the room that is missing.

    Of the threads that wrote it only one has been waited for. Others may still put files there.
    """
    quiet, until = 0, time.monotonic() + _CLEARING_SECONDS
    while quiet < 3 and time.monotonic() < until:
      quiet = 0 if _remove_unfinished(self._directory) else quiet + 1
      time.sleep(0.1)

  def close(self) -> None:
    """Waits for saves under way and lets go of the directory.

    Raises:
      OSError: if a save could not be finished.
    """
    if not self._is_active:
      return
    try:
      self.wait()
    finally:
      self._manager.close()


def _remove_unfinished(directory: Path) -> bool:
  """Removes what saves that were cut short have left; whether there was anything."""
  left = list(directory.glob("*.orbax-checkpoint-tmp*"))
  for path in left:
    shutil.rmtree(path, ignore_errors=True)
  return bool(left)


def read_masks(workdir: Path) -> dict[str, Any]:
  """The masks of a run's last checkpoint, bool by path; empty if it is dense.

  Needs neither its data set nor its model.

  Raises:
    ValueError: if there is no checkpoint, or none can be read.
  """
  checkpoints = Checkpoints(workdir / "checkpoints", keep=1, read_only=True)
  try:
    state = checkpoints.restore_as_saved()
  finally:
    checkpoints.close()
  paths = jax.tree_util.tree_flatten_with_path(state["opt_state"])[0]
  return {keys[-1].key: leaf for keys, leaf in paths if len(keys) > 1 and keys[-2] == _MASKS}
