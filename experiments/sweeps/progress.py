"""How far a sweep is: all of it and each worker, live on a terminal, in lines elsewhere."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from experiments.common.progress import SECONDS_BETWEEN_LINES, format_values
from experiments.sweeps.failures import Failure
from experiments.workdir.scores import scored


class SweepProgress:
  """Is told what the workers do (`workers.Watcher`) and shows it; a context manager."""

  def __init__(self, total_runs: int, done: int, failed: int):
    """Starts with the runs that were finished or had failed before."""
    self.total, self.done, self.failed = total_runs, done, failed
    self._running: dict[int, str] = {}
    self._last_line: dict[int, float] = {}
    console = Console(stderr=True)
    self._bar = (
      Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[at]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
        TextColumn("{task.fields[values]}"),
        console=console,
      )
      if console.is_terminal
      else None
    )
    self._rows: dict[int, Any] = {}
    if self._bar:
      self._all = self._bar.add_task("all runs", total=total_runs, completed=done, at="", values="")

  def __enter__(self) -> "SweepProgress":
    if self._bar:
      self._bar.start()
      self._count()
    return self

  def __exit__(self, *exception: object) -> None:
    if self._bar:
      self._bar.stop()

  @property
  def counts(self) -> str:
    """How many runs are done, have failed and are left, in words."""
    left = self.total - self.done - self.failed
    return f"{self.done} done, {self.failed} failed, {left} left"

  def started(self, worker: int, config: ConfigDict) -> None:
    """A worker begins with a run."""
    self._running[worker] = name = config.name
    self._last_line[worker] = -SECONDS_BETWEEN_LINES
    if self._bar:
      if worker in self._rows:
        self._bar.remove_task(self._rows[worker])
      self._rows[worker] = self._bar.add_task(name, total=None, at="", values="")

  def at(self, worker: int, step: int, total_steps: int, values: Mapping[str, Any]) -> None:
    """A worker has come to a step."""
    name = self._running[worker]
    if self._bar:
      where = f"{step}/{total_steps}"
      self._bar.update(
        self._rows[worker],
        completed=step,
        total=total_steps,
        at=where,
        values=format_values(values),
      )
      return
    now = time.monotonic()
    if values and now - self._last_line[worker] >= SECONDS_BETWEEN_LINES:
      self._last_line[worker] = now
      line = f"{name}: step {step}/{total_steps}  {format_values(values)}"
      print(f"{line}  [{self.counts}]", file=sys.stderr, flush=True)

  def warned(self, text: str) -> None:
    """A worker has a warning."""
    self._print(f"warning: {text}", file=sys.stderr)

  def ended(self, worker: int, workdir: Path, outcome: dict[str, Any] | Failure) -> None:
    """A worker is done with a run."""
    name = "/".join(workdir.parts[-2:])
    if isinstance(outcome, Failure):
      self.failed += 1
      self._print(f"{name}: FAILED: {outcome.error}  [{self.counts}]")
    else:
      self.done += 1
      score, last, _ = scored(outcome)
      said = f"{name}: test {score.label} {score.text(last)}"
      self._print(f"{said}  [{self.counts}]")
    if self._bar and worker in self._rows:
      self._bar.remove_task(self._rows.pop(worker))
    self._count()

  def _count(self) -> None:
    if self._bar:
      self._bar.update(self._all, completed=self.done + self.failed, at=self.counts)

  def _print(self, text: str, file: Any = None) -> None:
    if self._bar:
      self._bar.console.print(text, markup=False, highlight=False)
    else:
      print(text, file=file or sys.stdout, flush=True)
