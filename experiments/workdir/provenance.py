"""What has trained a run: a line of `sessions.jsonl` for each time that it was started."""

import contextlib
import datetime
import hashlib
import importlib
import json
import socket
import sys
from pathlib import Path
from typing import Any

import jax

from experiments.common.environment import commit, environment, git
from experiments.common.files import Appender, read_json_lines
from experiments.workdir.patterns import SESSION


def write_session(workdir: Path, *, step: int) -> None:
  """Appends a line about this process and those that train with it.

  Args:
    workdir: of the run, whose `config.json` has the config.
    step: that the run goes on from.
  """
  line = {"step": step, "started": _now(), **describe()}
  with contextlib.closing(Appender(workdir / "sessions.jsonl", lines=True)) as lines:
    lines.write(json.dumps(line).encode() + b"\n")


def read_sessions(workdir: Path) -> list[dict[str, Any]]:
  """The sessions of a run in order; a line that is damaged is passed over, with a warning."""
  return read_json_lines(workdir / "sessions.jsonl", lambda line: SESSION)


def describe() -> dict[str, Any]:
  """Code, versions, machine and devices of this process."""
  return {
    "command": " ".join(sys.argv),
    "host": socket.gethostname(),
    "git_commit": commit(),
    # None if this is no checkout.
    "git_dirty": None if (s := git("status", "--porcelain")) is None else bool(s),
    "processes": jax.process_count(),
    "devices": jax.local_device_count() * jax.process_count(),
    "platform": jax.default_backend(),
    **environment(),
  }


def code() -> str:
  """A digest of the Python files that make a run, wherever they are."""
  digest = hashlib.sha256()
  for package in ("experiments", "srigl_jax", "srigl_kernels"):
    for folder in map(Path, importlib.import_module(package).__path__):
      for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
  return digest.hexdigest()


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
