"""The live progress of a run: a bar on a terminal, a line now and then elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10.0


class Show(Protocol):
  """Shows how far a run is."""

  def __call__(self, step: int, **values: float | str) -> None:
    """Shows the step and values by name; floats with four digits."""


@contextlib.contextmanager
def progress(name: str, *, step: int, total_steps: int) -> Iterator[Show]:
  """Shows a run's progress on standard error while the context lasts."""
  console = Console(stderr=True)
  if not console.is_terminal:
    yield _lines(name, total_steps)
    return
  columns = (
    TextColumn("[bold]{task.description}"),
    BarColumn(bar_width=24),
    MofNCompleteColumn(),
    TimeRemainingColumn(compact=True),
    TextColumn("{task.fields[values]}"),
  )
  with Progress(*columns, console=console) as bar:
    task = bar.add_task(name, total=total_steps, completed=step, values="")
    yield lambda step, **values: bar.update(task, completed=step, values=format_values(values))


def _lines(name: str, total_steps: int) -> Show:
  last = -SECONDS_BETWEEN_LINES

  def show(step: int, **values: float | str) -> None:
    nonlocal last
    if step < total_steps and time.monotonic() - last < SECONDS_BETWEEN_LINES:
      return
    last = time.monotonic()
    print(
      f"{name}: step {step}/{total_steps}  {format_values(values)}", file=sys.stderr, flush=True
    )

  return show


def format_values(values: Mapping[str, float | str]) -> str:
  """Values by name in a line; floats with four digits."""
  return "  ".join(
    f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
  )
