"""Processes that take turns: one for each engine, so that no threads and no memory are shared.

They are asked in lines of JSON and answer in such lines. Between its turns a process is stopped:
threads of several libraries go on waiting for work for up to a fifth of a second without giving up
their core, which whoever comes next would pay for.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any


class Process:
  """A module that answers requests, in a process of its own on some cores."""

  def __init__(
    self,
    name: str,
    module: str,
    arguments: list[str],
    *,
    cores: list[int],
    env: Mapping[str, str] | None = None,
  ):
    """Starts it.

    Args:
      name: for messages.
      module: is run as `python -m`; see `requests`.
      arguments: of the command.
      cores: that it may use, as many threads it is told to take.
      env: environment variables beside those of this process.
    """
    self.name = name
    names = ",".join(map(str, cores))
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, *arguments, names],
      env=os.environ | {"OMP_NUM_THREADS": str(len(cores))} | dict(env or {}),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )

  def ask(self, request: Any) -> dict[str, Any]:
    """The answer to a request.

    Raises:
      ChildProcessError: if the process has ended, for lack of memory most likely.
    """
    assert self._process.stdin is not None
    self._process.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):  # `answer` says how it ended
      print(json.dumps(request), file=self._process.stdin, flush=True)
    return self.answer()

  def answer(self) -> dict[str, Any]:
    """The next answer, the first of which comes unasked; see `ask`."""
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      status = self._process.wait()
      raise ChildProcessError(f"the process of {self.name} ended with status {status}")
    self._process.send_signal(signal.SIGSTOP)
    return json.loads(line)

  def close(self) -> None:
    """Ends the process."""
    self._process.kill()
    self._process.communicate()


def requests() -> tuple[list[str], int, Iterator[Any], Callable[[Any], None]]:
  """What such a process calls first, before libraries size their pools of threads.

  Returns:
    The command's arguments, the number of threads to take, the requests as they come, and the
    function that answers. All else that is printed goes to standard error.
  """
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)  # whatever libraries print
  *arguments, names = sys.argv[1:]
  cores = [int(name) for name in names.split(",")]
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, cores)
  answer = lambda value: print(json.dumps(value), file=answers, flush=True)
  return arguments, len(cores), map(json.loads, sys.stdin), answer
