"""Looking at a run from inside: where its memory goes, and a trace of where its time goes."""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.common.files import write_json
from experiments.models import patterns_of
from experiments.training.engines import TrainState
from srigl_jax import CondensedTrainingState, get_state


class Profiling(NamedTuple):
  """What to look at.

  Attributes:
    trace_steps: first step and the step after the last one of which a trace is written to
      `profile/` in the work directory, for TensorBoard or Perfetto; None: of none.
  """

  trace_steps: tuple[int, int] | None = None


NO_PROFILING = Profiling()


def parse_steps(text: str | None) -> tuple[int, int] | None:
  """The steps of `--profile=START:STOP`.

  Raises:
    ValueError: if it is not of this form.
  """
  if not text:
    return None
  match = re.fullmatch(r"(\d+):(\d+)", text)
  if not match or int(match[1]) >= int(match[2]):
    raise ValueError(f"--profile is {text!r}; it must be START:STOP in steps, such as 100:110.")
  return int(match[1]), int(match[2])


def memory_by_part(state: TrainState, device_data: Any, *, is_sparse: bool) -> dict[str, int]:
  """Bytes that the arrays of a run take on each device, masks and moments by themselves.

  Args:
    state: on the devices, a copy on each.
    device_data: the data there.
    is_sparse: whether it has masks or patterns.
  """
  patterns = patterns_of(state.model_state)
  own: dict[str, Any] = {}
  if isinstance(state.opt_state, CondensedTrainingState):
    condensed = state.opt_state
    own = {
      "explored": condensed.explored,
      "gradients of several batches": (condensed.batches, condensed.window),
    }
  elif is_sparse:
    sparse = get_state(state.opt_state)
    own = {
      "masks": sparse.masks,
      "explored": sparse.explored,
      "mean gradients": sparse.grad_mean,
      "method": sparse.extra,
    }
  parts = {
    "parameters": _bytes(state.params),
    "patterns": _bytes(patterns),
    "statistics": _bytes(state.model_state) - _bytes(patterns),
    **{name: _bytes(tree) for name, tree in own.items()},
    "optimizer": _bytes(state.opt_state) - sum(_bytes(tree) for tree in own.values()),
    "experience": _bytes(state.experience),
    "data": _bytes(device_data),
  }
  return {name: size for name, size in parts.items() if size}


def _bytes(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def report_memory(workdir: Path, parts: dict[str, int], step: int | None) -> None:
  """Prints where the memory of a device goes and writes it to `memory.json`.

  Args:
    workdir: of the run.
    parts: see `memory_by_part`.
    step: bytes that one call of the training function takes besides: activations, gradients and
      other temporaries, as the compiler has planned them; None if not known.
  """
  known = parts if step is None else parts | {"step": step}
  listed = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in known.items())
  total = f"{sum(known.values()) / 1e6:.1f} MB in all"
  print(f"memory of a device: {listed}; {total}", file=sys.stderr, flush=True)
  found = {"arrays": parts, "arrays_total": sum(parts.values()), "step": step}
  write_json(workdir / "memory.json", found)


class Trace:
  """A trace of the calls that do some steps; of none if the run begins after them."""

  def __init__(self, steps: tuple[int, int] | None, workdir: Path):
    """See `Profiling.trace_steps`."""
    self._steps, self._folder = steps, workdir / "profile"
    self._is_on = False

  def before(self, start: int, end: int) -> None:
    """Is called before a call that does the steps from `start` to `end`."""
    if self._steps and start < self._steps[1] and end > self._steps[0] and not self._is_on:
      jax.profiler.start_trace(str(self._folder))
      self._is_on = True

  def after(self, end: int, results: Any) -> None:
    """Is called after it; waits for its results if the trace ends with it."""
    if self._steps and self._is_on and end >= self._steps[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Writes the trace if one is under way."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False
