"""Writing files so that none is ever half written or lost, by one process at a time."""

import contextlib
import json
import os
import re
import shutil
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from experiments.common.json_pattern import Pattern, misfit

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


def open_regular(path: Path, flags: int, *, follow: bool = False) -> int:
  """Opens a file, and nothing else: a pipe would be waited for, a device read without end.

  Args:
    path: of the file; made if `flags` say so.
    flags: of `os.open`.
    follow: whether it may be a link. What is written to is better none: its target is another's.

  Returns:
    A descriptor, for the caller to close.

  Raises:
    OSError: if it cannot be opened.
    ValueError: if it is a link or no regular file, naming it.
  """
  problem = f"{path} is {{}}: move it away, and a file of its own is made there."
  if not follow and path.is_symlink():
    raise ValueError(problem.format("a symbolic link, which is not followed"))
  no_follow = 0 if follow else getattr(os, "O_NOFOLLOW", 0)
  flags |= no_follow | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
  number = os.open(path, flags, 0o666)
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise ValueError(problem.format("no regular file"))
  return number


def write_text(path: Path, text: str) -> None:
  """Writes a text file beside its place and renames it there.

  Raises:
    OSError: if it cannot be written, naming the file; what was there is left.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    beside.unlink(missing_ok=True)  # a link of this name would lead elsewhere
    with open(beside, "x", encoding="utf-8") as file:
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


def read_json(path: Path, pattern: Pattern = object) -> Any:
  """Reads a JSON file; None if there is none.

  Args:
    path: of the file.
    pattern: that its content must fit; any by default.

  Raises:
    ValueError: if it is not JSON, or does not fit, naming the file.
  """
  if not path.exists():
    return None
  try:
    with open(open_regular(path, os.O_RDONLY, follow=True), encoding="utf-8") as file:
      value = json.load(file)
    reason = misfit(value, pattern)
  except (ValueError, RecursionError) as error:  # nor text, perhaps
    reason = str(error)
  if reason:
    raise ValueError(
      f"{path} is damaged ({reason}). Copy it from a backup, or move it away to do without it."
    )
  return value


def read_sound(path: Path, pattern: Pattern) -> Any:
  """As `read_json`, but None if it is damaged too, with a warning."""
  try:
    return read_json(path, pattern)
  except ValueError as error:
    warnings.warn(str(error), stacklevel=2)
    return None


def read_json_lines(path: Path, what: Callable[[Any], Pattern]) -> list[Any]:
  """Reads a file of JSON lines; one that is damaged is passed over, with a warning.

  Args:
    path: of the file; none is the same as an empty one.
    what: from the value of a line to the pattern that it must fit.

  Raises:
    ValueError: if it is no regular file.
  """
  values, problems = [], []
  if not path.exists():
    return []
  with open(open_regular(path, os.O_RDONLY, follow=True), "rb") as file:
    for number, line in enumerate(file, start=1):
      if not line.strip():
        continue
      try:
        value = json.loads(line.decode("utf-8"))
        reason = misfit(value, what(value))
      except (ValueError, RecursionError) as error:
        reason = str(error)
      if reason:
        problems.append(f"line {number} ({reason})")
      else:
        values.append(value)
  if problems:
    more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
    warnings.warn(
      f"{path} is damaged: passed over are {', '.join(problems[:5])}{more}. Where a run was "
      "killed, that is a record cut off, which it writes again; else copy the file from a backup.",
      stacklevel=3,
    )
  return values


def set_aside(path: Path) -> Path:
  """Moves a file to a free name beside it, and returns that."""
  places = (path.with_name(f"{path.name}.damaged{n or ''}") for n in range(1000))
  place = next(place for place in places if not os.path.lexists(place))
  path.rename(place)
  return place


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
  """Keeps a directory for this process, by a lock on the file `.lock` in it.

  The system takes the lock back when the process ends, in whatever way. One in use is waited for,
  since its process may be about to save and end.

  Args:
    directory: is made if there is none.

  Raises:
    InUseError: if another process still holds it after `PATIENCE_SECONDS`.
    ValueError: if `.lock` is a link or no file.
  """
  directory.mkdir(parents=True, exist_ok=True)
  until = time.monotonic() + PATIENCE_SECONDS
  number = open_regular(directory / ".lock", os.O_RDWR | os.O_CREAT)
  with open(number, "r+", encoding="utf-8", errors="replace") as file:
    said = False
    while not _lock(file):
      file.seek(0)
      holder = file.read(1000).strip() or "another process"
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
    _sign(file.fileno())
    yield


def _sign(number: int) -> None:
  """Says in a lock file who holds it, over who did before; a file that says else is left alone."""
  held = os.pread(number, 1000, 0)
  is_ours = os.fstat(number).st_nlink == 1 and re.fullmatch(rb"(process \d+ on [^\n]*\n?)?", held)
  if is_ours:
    text = f"process {os.getpid()} on {socket.gethostname()}".encode()
    with contextlib.suppress(OSError):  # it is a courtesy
      os.pwrite(number, text.ljust(len(held) - 1) + b"\n", 0)


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
    self._path, self._waiting = path, b""
    number = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    self._file = open(number, "r+b", buffering=0)  # noqa: SIM115
    size = self._file.seek(0, os.SEEK_END)
    if lines and size and os.pread(number, 1, size - 1) != b"\n":
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
