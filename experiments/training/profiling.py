"""Looking at a run from inside: where its memory goes, and a trace of where its time goes."""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.common.files import write_json
from experiments.training.memory import Memory


class Watch(NamedTuple):
  """What to look at.

  Attributes:
    profile: first step and the step after the last one of which a trace is written to
      `profile/` in the work directory, for TensorBoard or Perfetto; None: of none.
    memory: whether to compile the step once more to learn what it takes besides its arrays.
  """

  profile: tuple[int, int] | None = None
  memory: bool = False


NO_WATCH = Watch()


def read_window(text: str | None) -> tuple[int, int] | None:
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


def report_memory(workdir: Path, memory: Memory) -> None:
  """Prints where the memory goes and writes it to `memory.json`."""
  print(memory, file=sys.stderr, flush=True)
  total = sum(memory.parts.values())
  write_json(
    workdir / "memory.json", {"arrays": memory.parts, "arrays_total": total, "step": memory.step}
  )


class Trace:
  """A trace of the calls that do some steps; of none if the run begins after them."""

  def __init__(self, window: tuple[int, int] | None, workdir: Path):
    """See `Watch.profile`; nothing is written for a window of None."""
    self._window, self._folder = window, workdir / "profile"
    self._is_on = False

  def before(self, start: int, end: int) -> None:
    """Is called before a call that does the steps from `start` to `end`."""
    if self._window and start < self._window[1] and end > self._window[0] and not self._is_on:
      jax.profiler.start_trace(str(self._folder))
      self._is_on = True

  def after(self, end: int, results: Any) -> None:
    """Is called after it; waits for its results if the trace ends with it."""
    if self._window and self._is_on and end >= self._window[1]:
      jax.block_until_ready(results)
      self.close()

  def close(self) -> None:
    """Writes the trace if one is under way."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False
