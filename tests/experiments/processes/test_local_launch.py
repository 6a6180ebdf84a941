"""Several processes on one machine: started, stopped, and what becomes of those left over."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from experiments.processes import local_launch as launch_module
from experiments.processes.local_launch import launch, own_arguments

REPORT = """
import json, os, pathlib, sys
flags = dict(a[2:].split("=") for a in sys.argv[2:])
cores = sorted(os.sched_getaffinity(0))
about = {"flags": flags, "xla": os.environ.get("XLA_FLAGS"), "cores": cores}
pathlib.Path(sys.argv[1], flags["process_id"]).write_text(json.dumps(about))
"""


def test_each_process_is_told_which_it_is(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8")
  assert launch(["-c", REPORT, str(tmp_path)], num_processes=2, num_devices=3) == 0
  about = [json.loads((tmp_path / i).read_text()) for i in "01"]
  assert [a["flags"]["num_processes"] for a in about] == ["2", "2"]
  assert len({a["flags"]["coordinator"] for a in about}) == 1
  assert about[0]["xla"] == "--a=1 --xla_force_host_platform_device_count=3"
  mine = sorted(os.sched_getaffinity(0))
  if len(mine) > 1:
    assert about[0]["cores"] + about[1]["cores"] == mine


LAST_FAILS = """
import signal, sys, time, os
last = sys.argv[-1] == "--process_id=1"
if last: CODE
time.sleep(60)
"""


def test_the_first_failure_ends_all(monkeypatch):
  monkeypatch.setattr(launch_module, "_GRACE_SECONDS", 0.1)
  start = time.monotonic()
  for code, expected in (("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 137)):
    assert launch(["-c", LAST_FAILS.replace("CODE", code)], num_processes=2) == expected
  assert time.monotonic() - start < 30


STOPPED = """
import sys
from experiments.processes.local_launch import launch
child = '''
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda n, f: sys.exit(128 + n))
pathlib.Path(sys.argv[1], sys.argv[-1]).touch()
time.sleep(60)
'''
sys.exit(launch(["-c", child, sys.argv[1]], num_processes=2))
"""


def start_and(number, tmp_path):
  process = subprocess.Popen([sys.executable, "-c", STOPPED, str(tmp_path)], cwd=Path.cwd())
  while len(list(tmp_path.iterdir())) < 2:
    time.sleep(0.02)
    assert process.poll() is None
  process.send_signal(number)
  return process


def test_a_signal_is_passed_on(tmp_path):
  assert start_and(signal.SIGTERM, tmp_path).wait(30) == 143


def test_processes_stop_when_the_launcher_is_killed(tmp_path):
  """Or they would go on in a directory that the next one takes over."""
  process = start_and(signal.SIGKILL, tmp_path)
  assert process.wait(30) == -signal.SIGKILL
  mine = str(tmp_path)
  for _ in range(500):
    if not [p for p in Path("/proc").glob("[0-9]*/cmdline") if mine in _read(p)]:
      return
    time.sleep(0.02)
  raise AssertionError("they are still there")


def _read(path):
  try:
    return path.read_bytes().decode(errors="replace")
  except OSError:
    return ""


def test_arguments_without_those_of_the_launcher(monkeypatch):
  argv = ["x.py", "--config=a.py", "--processes=2", "-devices_per_process", "4", "--workdir", "w"]
  monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
  assert own_arguments(argv) == ["x.py", "--config=a.py", "--workdir", "w"]
  assert own_arguments(["x.py", "--processes", "2"]) == ["x.py"]
