"""Several processes of one command on this machine, talking over loopback."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from experiments.processes.signals import stop_with_parent

_POLL_SECONDS = 0.05
_GRACE_SECONDS = 20.0  # for the others to notice that one has died
_OURS = ("--processes", "--devices_per_process")


def launch(arguments: Sequence[str], *, num_processes: int, num_devices: int = 0) -> int:
  """Runs a command in several processes and waits for all of them.

  SIGINT and SIGTERM are passed on. If one process fails, the others are given some seconds to
  notice, and are then killed.

  Args:
    arguments: of the command, this interpreter left out, such as `("-m", "experiments.train")`;
      each process gets the flags of `experiments.processes.cluster` in addition.
    num_processes: how many. Each gets its share of the processor cores.
    num_devices: virtual CPU devices of each; 0: as it would have alone.

  Returns:
    The exit code of the first process that failed, 128 + n if signal n ended it; 0 if none did.
  """
  coordinator = f"127.0.0.1:{free_port()}"
  processes: list[subprocess.Popen[bytes]] = []
  received: list[int] = []

  def forward(number: int, frame: Any) -> None:
    del frame
    received.append(number)
    for process in processes:
      process.send_signal(number)

  before = {n: signal.signal(n, forward) for n in (signal.SIGINT, signal.SIGTERM)}
  try:
    for i in range(num_processes):
      own = [f"--coordinator={coordinator}", f"--num_processes={num_processes}"]
      command = [sys.executable, *arguments, *own, f"--process_id={i}"]
      process = subprocess.Popen(
        command,
        env=_environment(num_devices),
        start_new_session=True,  # a terminal's Ctrl-C comes through `forward` alone
        preexec_fn=stop_with_parent,
      )
      processes.append(process)
      _give_share(process.pid, i, num_processes)
    return _wait(processes, received)
  finally:
    for process in processes:
      if process.poll() is None:
        process.kill()
        process.wait()
    for number, handler in before.items():
      signal.signal(number, handler)


def own_arguments(argv: Sequence[str]) -> list[str]:
  """How this command was started, without the interpreter and the flags of `launch`."""
  spec = getattr(sys.modules["__main__"], "__spec__", None)
  rest, skip = [], False
  for argument in argv[1:]:
    name = "--" + argument.lstrip("-").partition("=")[0]
    if not skip and not (argument.startswith("-") and name in _OURS):
      rest.append(argument)
    skip = not skip and argument.startswith("-") and name in _OURS and "=" not in argument
  return [*(["-m", spec.name] if spec else [argv[0]]), *rest]


def _wait(processes: Sequence[subprocess.Popen[bytes]], received: Sequence[int]) -> int:
  """Waits for all, or until one has failed and the others have had their time."""
  failed, deadline = 0, float("inf")
  while None in (states := [process.poll() for process in processes]):
    codes = [code for code in states if code]
    # Processes that stop because they were asked to take the time that they need to save.
    if codes and not failed and not (received and codes[0] == 128 + received[-1]):
      # One that was killed is the cause; what others say then is of its consequences.
      failed = next((code for code in codes if code < 0), codes[0])
      deadline = time.monotonic() + _GRACE_SECONDS
    if time.monotonic() > deadline:
      for i, process in enumerate(processes):
        if process.poll() is None:
          print(f"Process {i} is ended, since another one has failed.", file=sys.stderr)
          process.kill()
      deadline = float("inf")
    time.sleep(_POLL_SECONDS)
  code = failed or next((p.returncode for p in processes if p.returncode), 0)
  return code if code >= 0 else 128 - code


def _environment(num_devices: int) -> dict[str, str]:
  """What the processes inherit, with their number of virtual devices."""
  environ = dict(os.environ)
  if num_devices:
    flag = "--xla_force_host_platform_device_count"
    kept = [f for f in environ.get("XLA_FLAGS", "").split() if not f.startswith(flag)]
    environ["XLA_FLAGS"] = " ".join([*kept, f"{flag}={num_devices}"])
    # Devices that wait for each other starve XLA's pool of threads if it has one for each core.
    environ.setdefault("NPROC", "64")
  return environ


def _give_share(pid: int, index: int, count: int) -> None:
  """Divides the cores among the processes, if there are enough and the system can."""
  if hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= count:
      os.sched_setaffinity(
        pid, cores[index * len(cores) // count : (index + 1) * len(cores) // count]
      )


def free_port() -> int:
  """A port of loopback that nothing listens on."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return int(s.getsockname()[1])
