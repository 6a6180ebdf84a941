"""Writing files so that none is ever half written or lost, by one process at a time."""

import contextlib
import json
import os
import shutil
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
  import fcntl
except ImportError:  # not a POSIX system: directories are not guarded there
  fcntl = None  # type: ignore[assignment]

RESULTS = Path(__file__).resolve().parents[1] / "results"
"""Of the results that README and docs show."""

PATIENCE_SECONDS = 120.0
"""How long a directory in use is waited for: as long as a network file system may take to notice
that a machine is gone."""


class InUseError(ValueError):
  """A directory is another process's."""


def write_text(path: Path, text: str) -> None:
  """Writes a text file beside its place and renames it there.

  Raises:
    OSError: if it cannot be written, naming the file; what was there is left.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    with open(beside, "w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())  # a machine that fails after the renaming could leave an empty file
    os.replace(beside, path)
  except OSError as error:
    beside.unlink(missing_ok=True)
    raise OSError(error.errno, error.strerror, str(path)) from error


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file, see `write_text`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
  """Reads a JSON file; None if there is none.

  Raises:
    ValueError: if it is not JSON, naming the file.
  """
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:  # nor text, perhaps
    raise ValueError(
      f"{path} is damaged ({error}). Copy it from a backup, or move it away to do without it."
    ) from error


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
  """Keeps a directory for this process, by a lock on the file `.lock` in it.

  The system takes the lock back when the process ends, in whatever way. One in use is waited for,
  since its process may be about to save and end.

  Args:
    directory: is made if there is none.

  Raises:
    InUseError: if another process still holds it after `PATIENCE_SECONDS`.
  """
  directory.mkdir(parents=True, exist_ok=True)
  until = time.monotonic() + PATIENCE_SECONDS
  with (directory / ".lock").open("a+") as file:
    said = False
    while not _lock(file):
      file.seek(0)
      holder = file.read().strip() or "another process"
      if time.monotonic() >= until:
        raise InUseError(
          f"{directory} is in use by {holder}, and two would spoil each other's files. Wait for it "
          "to end or stop it; or give another --workdir."
        )
      if not said:
        said = True
        warnings.warn(
          f"{directory} is in use by {holder}: waiting for up to {PATIENCE_SECONDS:g} s.",
          stacklevel=4,
        )
      time.sleep(min(0.5, PATIENCE_SECONDS))
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    yield


def _lock(file: Any) -> bool:
  """Whether the file is now locked for this process, or cannot be on this file system."""
  if fcntl is None:
    return True
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError:
    return False
  except OSError:
    return True


def as_json(value: Any) -> Any:
  """The value as it comes back from a JSON file."""
  if isinstance(value, dict):
    return {k: as_json(v) for k, v in value.items()}
  return [as_json(v) for v in value] if isinstance(value, list | tuple) else value


class Appender:
  """A file that grows. What cannot be written waits in memory, in order, until it can."""

  def __init__(self, path: Path, *, lines: bool = False):
    """Opens the file, at its end if it is there.

    Args:
      path: of the file.
      lines: whether it is one of lines, of which a kill may have cut off the last; that one is not
        to swallow the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cut_off = lines and path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")
    self._path, self._waiting = path, b""
    self._file = open(path, "ab", buffering=0)  # noqa: SIM115
    if cut_off:
      self.write(b"\n")

  def write(self, data: bytes) -> None:
    """Appends; if that fails, a warning says so, and the next call tries again."""
    is_well = not self._waiting
    self._waiting += data
    try:
      self._write()
    except OSError as error:
      if is_well:
        problem = f"{self._problem(error)} What is to be written waits in memory."
        warnings.warn(problem, stacklevel=2)

  def settle(self) -> None:
    """Returns once all that was appended is on disk.

    Raises:
      OSError: if it cannot be written.
    """
    try:
      self._write()
      os.fsync(self._file.fileno())
    except OSError as error:
      raise OSError(f"{self._problem(error)} Make room there, and start again.") from error

  def close(self) -> None:
    """Closes the file; a warning says how much of it could not be written."""
    try:
      self._write()
    except OSError as error:
      lost = f"Its last {len(self._waiting)} bytes are lost."
      warnings.warn(f"{self._problem(error)} {lost}", stacklevel=2)
    self._file.close()

  def _write(self) -> None:
    while self._waiting:  # a file system that is nearly full takes a part
      self._waiting = self._waiting[self._file.write(self._waiting) :]

  def _problem(self, error: OSError) -> str:
    free = shutil.disk_usage(self._path.parent).free
    return f"{self._path} cannot be written ({error.strerror}); {free / 1e6:.1f} MB are free there."
