"""What is lost when things break: `python -m experiments.faults --workdir=DIR`.

Small runs on the built-in digits, alone and in two processes, are hit by one fault each, for real:
signals are sent, files are damaged, writes are made to fail. Then the same command goes on to the
end. The table says how the run ended, from which checkpoint it went on, and whether its last state
equals that of a run that nothing has happened to, bit for bit.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags

from experiments.benchmarks.fault_injection import (
  TIMEOUT,
  Running,
  checkpoints,
  damage,
  fill_disk,
  flip,
  nothing,
  send,
  truncate,
)
from experiments.common import cli
from experiments.common.environment import environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from experiments.processes.local_launch import free_port
from experiments.workdir.provenance import read_sessions

_PUBLISHED = Path("experiments/results/faults.json")
_ROOT = Path(__file__).resolve().parent.parent
_EVERY = 15  # steps from checkpoint to checkpoint
_EPOCH = 21  # steps
_FLAGS = (
  "--config=configs/digits.py",
  "--config.model.kwargs.hidden=(512,512)",
  "--config.train.total_epochs=8",
  f"--config.train.checkpoint_every_epochs={_EVERY / _EPOCH}",
  "--config.train.keep_checkpoints=3",
  "--config.train.eval_every_epochs=8",
  "--config.train.log_every_steps=4",
  "--config.train.steps_per_dispatch=1",
  "--config.method.update_every_steps=5",
)
_DIVERGING = (  # from the third epoch on the learning rate is 1e29
  "--config.optimizer.schedule=step",
  "--config.optimizer.decay_epochs=2",
  "--config.optimizer.decay_factor=1e30",
)

Row = dict[str, Any]


class Fault(NamedTuple):
  """Something that goes wrong.

  Attributes:
    name: for the table.
    inject: does it to a run that has a few checkpoints.
    code: the exit code that says so; None: that of a run that goes well.
    flags: of the run, in addition.
    resumes: whether the same command then goes on to the end.
  """

  name: str
  inject: Callable[[Running], None]
  code: int
  flags: tuple[str, ...] = ()
  resumes: bool = True


def faults(num_processes: int) -> list[Fault]:
  """The faults of a run in one or several processes."""
  stopped = 128 + signal.SIGTERM
  whole = lambda running: [running.process.pid]
  shared = [
    Fault("SIGTERM", send(signal.SIGTERM, whole), stopped),
    Fault("full disk while saving", fill_disk, os.EX_IOERR),
    Fault("truncated checkpoint", damage(truncate), stopped),
    Fault("flipped bit in a checkpoint", damage(flip), stopped),
    Fault("non-finite loss", nothing, 2, _DIVERGING, resumes=False),
  ]
  if num_processes == 1:
    return [*shared, Fault("SIGKILL", send(signal.SIGKILL, whole), -signal.SIGKILL)]
  one = lambda i: lambda running: [running.members()[i]]
  every = lambda running: [running.process.pid, *running.members()]
  absent = ("--num_processes=2", "--process_id=0", "--start_timeout_s=3")
  return [
    *shared,
    Fault("SIGTERM to one process", send(signal.SIGTERM, one(1)), stopped),
    Fault("SIGKILL of process 1", send(signal.SIGKILL, one(1)), 128 + signal.SIGKILL),
    Fault("SIGKILL of process 0", send(signal.SIGKILL, one(0)), 128 + signal.SIGKILL),
    Fault("SIGKILL of all", send(signal.SIGKILL, every), -signal.SIGKILL),
    Fault("missing host at start", nothing, os.EX_TEMPFAIL, absent),
  ]


def start(workdir: Path, num_processes: int, extra: tuple[str, ...], name: str) -> Running:
  """Starts a run in the background."""
  several = [f"--processes={num_processes}"] if num_processes > 1 else []
  if any(flag.startswith("--process_id") for flag in extra):
    several = [f"--coordinator=127.0.0.1:{free_port()}"]
  command = [sys.executable, "-m", "experiments.train", *_FLAGS, f"--workdir={workdir}"]
  log = workdir.parent / f"{workdir.name}.{name}.log"
  environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  with open(log, "wb") as out:
    process = subprocess.Popen(
      [*command, *several, *extra], cwd=_ROOT, env=environ, stdout=out, stderr=out
    )
  return Running(process, workdir, log)


def last_state(workdir: Path) -> dict[str, bytes]:
  """The bytes of every array of the last checkpoint, read without the harness."""
  path = (workdir / "checkpoints" / str(checkpoints(workdir)[-1]) / "state").absolute()
  with ocp.StandardCheckpointer() as checkpointer:
    leaves = jax.tree_util.tree_flatten_with_path(checkpointer.restore(path))[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}


def run_fault(fault: Fault, num_processes: int, workdir: Path, undisturbed: Path) -> Row:
  """Lets one fault happen and the run go on; a row of the table."""
  workdir.mkdir(parents=True)
  with contextlib.suppress(FileNotFoundError):  # spares compiling it all again
    shutil.copytree(undisturbed / ".compiled", workdir / ".compiled")
  running = start(workdir, num_processes, fault.flags, "fault")
  fault.inject(running)
  code = running.process.wait(TIMEOUT)
  _wait_until_gone(workdir)
  there = checkpoints(workdir)
  damaged = fault.name.startswith(("truncated", "flipped"))
  last = (there[-2] if damaged else there[-1]) if there else 0
  row: Row = {
    "processes": num_processes,
    "fault": fault.name,
    "exit_code": code,
    "as_expected": code == fault.code,
    "message": _message(running.log),
    "last_checkpoint": last,
    "resumed_from": None,
    "steps_lost_beyond_checkpoint": None,
    "same_final_state": None,
  }
  if fault.resumes:
    again = start(workdir, num_processes, (), "resumed")
    row["as_expected"] &= again.process.wait(TIMEOUT) == 0
    row["resumed_from"] = read_sessions(workdir)[-1]["step"]
    row["steps_lost_beyond_checkpoint"] = last - row["resumed_from"]
    row["same_final_state"] = last_state(workdir) == last_state(undisturbed)
    if damaged:
      row["message"] = _message(again.log)
  return row


def is_sound(row: Row) -> bool:
  """Whether nothing was lost that should not be."""
  return (
    row["as_expected"]
    and not row["steps_lost_beyond_checkpoint"]
    and row["same_final_state"] is not False
  )


def _message(log: Path) -> str:
  """The line of a log that says what happened."""
  lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
  for wanted in ("error: ", "UserWarning: ", "Stopped and saved"):
    for line in lines:
      if wanted in line:
        text = line.partition(wanted)[2] if wanted.endswith(" ") else line
        return text.strip()
  return ""


def _wait_until_gone(workdir: Path) -> None:
  """Waits for processes of the run that have outlived what started them."""
  until = time.monotonic() + TIMEOUT
  while time.monotonic() < until:
    if not any(str(workdir).encode() in _arguments(p) for p in Path("/proc").glob("[0-9]*")):
      return
    time.sleep(0.05)
  raise TimeoutError(f"Processes of {workdir} are still there after {TIMEOUT:g} s.")


def _arguments(process: Path) -> bytes:
  try:
    return b"" if process.name == str(os.getpid()) else (process / "cmdline").read_bytes()
  except OSError:
    return b""


def table(rows: list[Row]) -> str:
  """The rows for people, as Markdown."""
  header = (
    "processes", "fault", "exit code", "last sound checkpoint", "resumed from",
    "steps lost beyond it", "same last state",
  )  # fmt: skip
  lines = []
  for row in rows:
    code = str(row["exit_code"]) + ("" if row["as_expected"] else " (unexpected)")
    same = {True: "bit for bit", False: "**no**", None: None}[row["same_final_state"]]
    lost = row["steps_lost_beyond_checkpoint"]
    cells = row["processes"], row["fault"], code, row["last_checkpoint"], row["resumed_from"]
    lines.append(["–" if cell is None else cell for cell in (*cells, lost, same)])
  return markdown_table(header, lines, align="rlrrrrl")


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir).absolute()
  if workdir.exists() and any(workdir.iterdir()):
    raise ValueError(f"{workdir} is not empty: give a --workdir that is new.")
  rows = []
  for num_processes in (1, 2):
    undisturbed = workdir / f"undisturbed{num_processes}"
    undisturbed.mkdir(parents=True)
    if code := start(undisturbed, num_processes, (), "run").process.wait(TIMEOUT):
      raise OSError(f"The run without a fault has ended with {code}: see {undisturbed}.run.log.")
    for i, fault in enumerate(faults(num_processes)):
      row = run_fault(fault, num_processes, workdir / f"{num_processes}-{i}", undisturbed)
      print(f"{num_processes} × {fault.name}: exit code {row['exit_code']}. {row['message']}")
      rows.append(row)
  shown = table(rows)
  for row in rows:
    row["message"] = row["message"].replace(str(workdir), "DIR")
  command = "python -m experiments.faults --workdir=DIR"
  result = {"command": command, "environment": environment(), "table": shown, "rows": rows}
  outs = [workdir / "faults.json", *([_PUBLISHED] if flags.FLAGS.publish else [])]
  for out in outs:
    write_json(out, result)
  print(f"\n{shown}\n\n{', '.join(map(str, outs))}")
  return 0 if all(map(is_sound, rows)) else 1


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "A directory for the runs; must be new.", required=True)
  flags.DEFINE_bool("publish", False, f"Also write {_PUBLISHED}, whose table is in docs.")
  cli.run(main)
