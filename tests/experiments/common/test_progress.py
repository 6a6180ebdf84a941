"""Progress on a terminal and elsewhere."""

import io
import types

import pytest
from rich.console import Console

from experiments.common import progress as progress_module
from experiments.common.progress import progress


def test_lines_now_and_then(capsys, monkeypatch):
  """The first, one after ten seconds, and the last."""
  now = 100.0
  monkeypatch.setattr(progress_module, "time", types.SimpleNamespace(monotonic=lambda: now))
  with progress("a run", step=0, total_steps=40) as show:
    for step in range(10, 50, 10):
      show(step, loss=1.23456, neurons="50%")
      now += 6.0
  assert capsys.readouterr().err.splitlines() == [
    "a run: step 10/40  loss 1.235  neurons 50%",
    "a run: step 30/40  loss 1.235  neurons 50%",
    "a run: step 40/40  loss 1.235  neurons 50%",
  ]


@pytest.mark.parametrize("start", [0, 20])
def test_a_bar_on_a_terminal(monkeypatch, start):
  screen = io.StringIO()
  terminal = Console(file=screen, force_terminal=True, width=120)
  monkeypatch.setattr(progress_module, "Console", lambda stderr: terminal)
  with progress("a run", step=start, total_steps=40) as show:
    show(30, loss=0.5)
  assert "a run" in screen.getvalue()
  assert "30/40" in screen.getvalue()
  assert "loss 0.5" in screen.getvalue()
