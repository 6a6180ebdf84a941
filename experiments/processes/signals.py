"""Ctrl-C and SIGTERM as a request to save and stop."""

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any


class Interrupted(Exception):
  """A run was asked to stop and has saved its state; `args[0]` is the signal's number."""


_PR_SET_PDEATHSIG = 1
_watching: Callable[[], int] | None = None


@contextlib.contextmanager
def watch_signals() -> Iterator[Callable[[], int]]:
  """Catches SIGINT and SIGTERM while the context lasts; a second one acts as usual.

  Within another such context it is that one, whose signals count for both.

  Yields:
    A function that returns the number of the signal that came, 0 if none did.
  """
  global _watching
  if threading.current_thread() is not threading.main_thread():
    yield lambda: 0
    return
  if _watching:
    yield _watching
    return
  received = 0
  before: dict[int, Any] = {}

  def handle(number, frame):
    nonlocal received
    del frame
    received = number
    for each, handler in before.items():
      signal.signal(each, handler)

  for number in (signal.SIGINT, signal.SIGTERM):
    before[number] = signal.signal(number, handle)
  _watching = lambda: received
  try:
    yield _watching
  finally:
    _watching = None
    for each, handler in before.items():
      signal.signal(each, handler)


def stop_with_parent() -> None:
  """Lets this process be sent SIGTERM when its parent ends; known to Linux only."""
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))
