"""What `experiments.gpu_bundle run` does: its parts one after the other, until the time is up.

Imports nothing but the standard library, so that it can say what is missing.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / ".gpu_bundle"
WORK = ROOT / "runs" / "gpu_bundle"
PARTS = ("kernels", "networks", "train")
STAGES = ("wrn22-99", "wrn22-99-dense", "wrn22-95", "resnet18-99")
"""Arguments of configs/sweeps/gpu.py, in order; `-dense` goes on in the same directory."""

_KERNEL_SECONDS = 230
_NETWORK_SECONDS = 100
_GRACE_SECONDS = 20  # from SIGTERM to SIGKILL
_RESERVE_SECONDS = 15  # to write the archives
_MAX_FILE = 15 * 2**20  # a little under what comes back in one file
_CACHE_FILES = 3
_RECORDS = ("sweep*.json", "*/seed*/*.json", "*/seed*/*.jsonl")


class _TimedRun:
  """The time that is left: runs commands while time is left, and collects what they wrote."""

  def __init__(self, out: Path, seconds: float):
    self.out = out
    self.log = out / "log.txt"
    self.deadline = time.monotonic() + seconds - _RESERVE_SECONDS
    self.stopped = False
    out.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):
      signal.signal(number, self._stop)

  def _stop(self, number: int, frame: object) -> None:
    del number, frame
    self.stopped = True

  def left(self) -> float:
    """Seconds left, 0 after a signal."""
    return 0.0 if self.stopped else max(0.0, self.deadline - time.monotonic())

  def run(
    self, title: str, command: Sequence[str], seconds: float, meanwhile: Callable[[], None]
  ) -> int | None:
    """Runs a Python command in its own process group, for so many seconds or what is left.

    Returns:
      Its exit code; None if there was no time to start it, or it had to be ended.
    """
    limit = time.monotonic() + min(seconds, self.left())
    if limit - time.monotonic() < 5:
      self.say(f"{title}: no time left")
      return None
    self.say(f"{title}: starts with {self.left():.0f} s left")
    start, ended = time.monotonic(), False
    with self.log.open("ab") as log:
      process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=_environment(),
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
      )
      while process.poll() is None:
        time.sleep(0.5)
        meanwhile()
        if not ended and (self.stopped or time.monotonic() > limit):
          ended, limit = True, time.monotonic() + _GRACE_SECONDS
          process.terminate()
        elif ended and time.monotonic() > limit:
          break
      _kill_group(process)
    meanwhile()
    how = "was ended" if ended else f"exit code {process.returncode}"
    self.say(f"{title}: {how} after {time.monotonic() - start:.0f} s")
    return None if ended else process.returncode

  def say(self, text: str) -> None:
    """Prints a line, and logs it."""
    print(text, flush=True)
    with self.log.open("a") as log:
      log.write(f"==== {text}\n")


def _kill_group(process: subprocess.Popen) -> None:
  """Ends what a command has started and left behind, and itself."""
  with contextlib.suppress(ProcessLookupError):
    os.killpg(process.pid, signal.SIGKILL)
  process.wait()


def run(out: Path, seconds: float, *, parts: Sequence[str], tiny: bool) -> int:
  """Checks, times and trains; the exit code is 0 if every part that was begun went well.

  Args:
    out: directory for what comes back: `gpu_kernels.json`, `gpu_networks.json`, `training.tar.gz`,
      `compiled-*.tar.gz` and `log.txt`.
    seconds: from now until it has ended.
    parts: of `PARTS`.
    tiny: small shapes and networks, on CPU.
  """
  timed = _TimedRun(out, seconds)
  _restore_compiled()
  codes: list[int | None] = []
  data = None
  if "train" in parts and not tiny:  # decodes while kernels are compiled and checked
    code = "from experiments.data import load; load('cifar10')"
    on_cpu = _environment() | {"JAX_PLATFORMS": "cpu"}
    data = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=on_cpu)
  if "kernels" in parts:
    results = out / "gpu_kernels.json"
    results.unlink(missing_ok=True)
    within = min(_KERNEL_SECONDS, timed.left())
    command = ["kernels/benchmark/gpu_check.py", f"--out={results}", f"--seconds={within:.0f}"]
    codes.append(timed.run("kernels", command + ["--tiny"] * tiny, within + 40, lambda: None))
    print(_table(results), flush=True)
  if "networks" in parts:
    within = min(_NETWORK_SECONDS, timed.left())
    command = ["-m", "experiments.benchmark_gpu", f"--out={out / 'gpu_networks.json'}"]
    command += [f"--seconds={within:.0f}"] + ["--tiny"] * tiny
    codes.append(timed.run("networks", command, within + 60, lambda: None))
  if data:
    with contextlib.suppress(subprocess.TimeoutExpired):
      data.wait(timed.left())
  finished = 0

  def collect_finished() -> None:
    nonlocal finished
    now = len(list(WORK.glob("*/*/seed*/results.json")))
    if now > finished:
      finished = now
      _collect(out)

  for stage in STAGES if "train" in parts else ():
    suffix = "-tiny" * tiny
    workdir = WORK / (stage.removesuffix("-dense") + suffix)
    config = f"--config=configs/sweeps/gpu.py:{stage}{suffix}"
    command = ["-m", "experiments.sweep", config, f"--workdir={workdir}"]
    codes.append(timed.run(stage, command, timed.left(), collect_finished))
    _collect(out)
  _save_compiled(out)
  print("".join(f"{path.name}: {path.stat().st_size} bytes\n" for path in sorted(out.iterdir())))
  return 0 if all(code in (0, None) for code in codes) else 1


def _environment() -> dict[str, str]:
  """What the commands find: packages, data, cache and commit."""
  paths = [ROOT, ROOT / "kernels", BUNDLE / "site"]
  commit, library = BUNDLE / "commit", BUNDLE / "libsrigl_cuda.so"
  return {
    **os.environ,
    "TFDS_DATA_DIR": str(BUNDLE),
    "XDG_CACHE_HOME": str(WORK / "cache"),
    "JAX_COMPILATION_CACHE_DIR": str(WORK / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "SRIGL_COMMIT": commit.read_text().strip() if commit.exists() else "unknown",
    **({"SRIGL_CUDA_LIBRARY": str(library)} if library.exists() else {}),
    "PYTHONUNBUFFERED": "1",
    "PYTHONPATH": os.pathsep.join(map(str, paths)),
  }


def _table(results: Path) -> str:
  """The tables of `gpu_check`, also of one that was ended."""
  command = [sys.executable, "kernels/benchmark/gpu_check.py", f"--report={results}"]
  done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
  return done.stdout or done.stderr[-500:]


def _collect(out: Path) -> None:
  """Archives the records of all runs, unfinished ones too."""
  folders = [path.parent for path in WORK.glob("*/sweep.json")]
  records = [path for folder in folders for each in _RECORDS for path in folder.glob(each)]
  _archive(sorted(records), out / "training.tar.gz", WORK)


def _archive(files: Sequence[Path], path: Path, root: Path) -> None:
  part = path.with_suffix(".part")
  with tarfile.open(part, "w:gz") as archive:
    for file in files:
      archive.add(file, file.relative_to(root))
  os.replace(part, path)


def _save_compiled(out: Path) -> None:
  """Archives compiled programs and choices of kernels, the small ones first, while they fit."""
  folder = WORK / "compiled"
  files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  for i, group in enumerate(_groups(files)):
    _archive(group, out / f"compiled-{i}.tar.gz", folder)


def _groups(files: Sequence[Path]) -> Iterator[list[Path]]:
  """The first files, in at most `_CACHE_FILES` groups that fit into a file each."""
  group: list[Path] = []
  size = count = 0
  for file in files:
    more = file.stat().st_size + 1024
    if more > _MAX_FILE:
      break
    if size + more > _MAX_FILE:
      yield group
      group, size, count = [], 0, count + 1
      if count == _CACHE_FILES:
        return
    group.append(file)
    size += more
  if group:
    yield group


def _restore_compiled() -> None:
  """Unpacks what an earlier run compiled."""
  for path in sorted(BUNDLE.glob("compiled-*.tar.gz")):
    with tarfile.open(path) as archive:
      archive.extractall(WORK / "compiled", filter="data")
