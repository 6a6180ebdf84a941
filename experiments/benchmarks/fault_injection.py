"""Faults that are injected into running commands, for real: signals, full disks, damaged files.

Writes are made to fail through the limit on the size of files, which needs no rights and no small
disk: what the file system reports is then EFBIG in place of ENOSPC.
"""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

TIMEOUT = 300.0
"""Seconds after which something that should have happened has not."""

_FULL_BYTES = 50_000  # what fits on the full disk: records, but no checkpoint


def checkpoints(workdir: Path) -> list[int]:
  """Steps of the checkpoints that are complete."""
  paths = (workdir / "checkpoints").glob("*")
  return sorted(int(path.name) for path in paths if path.name.isdecimal())


class Running(NamedTuple):
  """A run that has been started.

  Attributes:
    process: the command; with several processes, what has started them.
    workdir: its directory.
    log: file of its standard error.
  """

  process: subprocess.Popen[bytes]
  workdir: Path
  log: Path

  def members(self) -> list[int]:
    """The processes that train, process 0 first."""
    pid = self.process.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sorted(map(int, children)) or [pid]

  def wait_for_checkpoints(self, count: int) -> None:
    """Returns when there are so many."""
    until = time.monotonic() + TIMEOUT
    while len(checkpoints(self.workdir)) < count and self.process.poll() is None:
      if time.monotonic() > until:
        raise TimeoutError(f"{self.workdir} has no {count} checkpoints after {TIMEOUT:g} s.")
      time.sleep(0.002)
    if self.process.poll() is not None:
      raise RuntimeError(f"The run has ended before the fault could be injected: see {self.log}.")


def send(number: signal.Signals, which: Callable[[Running], list[int]]) -> Callable[..., None]:
  """A fault: a signal to some processes."""

  def inject(running: Running) -> None:
    running.wait_for_checkpoints(2)
    for pid in which(running):
      os.kill(pid, number)

  return inject


def fill_disk(running: Running) -> None:
  """A fault: from now on, no file of process 0 can grow past a size."""
  running.wait_for_checkpoints(2)
  hard = resource.prlimit(running.members()[0], resource.RLIMIT_FSIZE)[1]
  resource.prlimit(running.members()[0], resource.RLIMIT_FSIZE, (_FULL_BYTES, hard))


def damage(change: Callable[[bytearray], None]) -> Callable[[Running], None]:
  """A fault: the run is stopped, and the largest file of its last checkpoint is changed."""

  def inject(running: Running) -> None:
    send(signal.SIGTERM, lambda r: [r.process.pid])(running)
    running.process.wait(TIMEOUT)
    last = running.workdir / "checkpoints" / str(checkpoints(running.workdir)[-1]) / "state"
    path = max((p for p in last.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)

  return inject


def truncate(content: bytearray) -> None:
  """Cuts off the second half."""
  del content[len(content) // 2 :]


def flip(content: bytearray) -> None:
  """Flips one bit in the middle."""
  content[len(content) // 2] ^= 1


def nothing(running: Running) -> None:
  """No fault but what the flags of the run bring with them."""
  del running
