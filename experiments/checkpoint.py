"""Checkpoints of a run: asynchronous, atomic, the latest few and the best one."""

import warnings
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

State = TypeVar("State")


class Checkpoints:
  """The checkpoints of one run, in one directory."""

  def __init__(self, directory: Path, *, keep: int, read_only: bool = False):
    """Opens or creates the directory; the latest `keep` checkpoints stay, and the best one.

    With `read_only` nothing there is ever changed, not even while another process saves.
    """
    self._read_only = read_only
    accuracy = lambda metrics: metrics["test_accuracy"]
    best = BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
    self._manager = ocp.CheckpointManager(
      directory.absolute(),
      options=ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), best]),
        best_fn=accuracy,  # without it the metrics are not written, and lost when the run resumes
        cleanup_tmp_directories=not read_only,
        create=not read_only,
        read_only=read_only,
      ),
    )

  def save(self, step: int, state: State, test_accuracy: float | None) -> None:
    """Starts saving in the background; a step that is already there is left alone.

    Args:
      step: of the state.
      state: a pytree of arrays.
      test_accuracy: of this very state, by which the best checkpoint is told; None if unknown.

    Raises:
      RuntimeError: if the checkpoint manager declines to save.
    """
    if step in self._manager.all_steps():
      return
    saved = self._manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(state)),
      metrics=None if test_accuracy is None else {"test_accuracy": test_accuracy},
    )
    if not saved:
      raise RuntimeError(
        f"The checkpoint of step {step} was not saved, since a later one exists in "
        f"{self._manager.directory}: {self._manager.all_steps()}. Use another directory."
      )

  def best_step(self) -> int | None:
    """The step of the checkpoint with the best test accuracy; None if there is none."""
    return self._manager.best_step()

  def restore(self, template: State, *, step: int | None = None) -> State | None:
    """The latest checkpoint that can be read, on the default device; None if there is none.

    Later ones that cannot be read are deleted then: the run will come to their steps again, and
    could save neither there nor before.

    Args:
      template: a state of the same structure, shapes and dtypes.
      step: of the checkpoint to read, instead of the latest.

    Raises:
      ValueError: if checkpoints are there but none can be read.
    """
    steps = [step] if step is not None else sorted(self._manager.all_steps(), reverse=True)
    for i, step in enumerate(steps):
      try:
        state = self._read(step, template)
      except Exception as error:  # whatever a damaged directory makes the reader raise
        warnings.warn(
          f"The checkpoint of step {step} in {self._manager.directory} cannot be read "
          f"({type(error).__name__}: {error}); trying the one before.",
          stacklevel=2,
        )
      else:
        for unreadable in steps[:i]:
          if not self._read_only:
            self._manager.delete(unreadable)
        return state
    if steps:
      raise ValueError(
        f"None of the checkpoints {steps} in {self._manager.directory} can be read by this "
        "config and version: see the warnings. Use another --workdir to start afresh."
      )
    return None

  def _read(self, step: int, template: State) -> State:
    # A device of this process: those that saved it may have been more.
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), template
    )
    restored = self._manager.restore(
      step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
    )["state"]
    # The reader casts without a word where dtypes differ: look at what is stored.
    stored = _shapes_and_dtypes(self._manager.item_metadata(step)["state"].tree)
    expected = _shapes_and_dtypes(template)
    if stored != expected:
      differing = dict(stored.items() ^ expected.items())
      raise ValueError(f"these leaves are not as they should be: {', '.join(sorted(differing))}")
    return jax.tree.map(np.asarray, restored)

  def wait(self) -> None:
    """Waits until what was saved is on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for saves under way and lets go of the directory."""
    self._manager.close()


def _shapes_and_dtypes(tree: Any) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
  """Of each leaf by path; a field of a tuple and a key of a dict look alike."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), np.dtype(x.dtype))
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]
  }
