"""Checks and times everything on a GPU: `python kernels/benchmark/gpu_check.py [--tiny]`.

Needs this checkout, jax and numpy; the package need not be installed. Every
backend against float64 on the named problems, the card's ceilings, the paper's GPU experiment and
larger layers with every method, forward and backward, and other tile configs. See
`gpu_tasks` for what, `gpu_baselines` for the methods, `gpu_timing` for how.

    python kernels/benchmark/gpu_check.py                     everything
    python kernels/benchmark/gpu_check.py --check             only whether results are right
    python kernels/benchmark/gpu_check.py --seconds=200       the most telling part
    python kernels/benchmark/gpu_check.py --only=cuda         only rows with this in their name
    python kernels/benchmark/gpu_check.py --tiny              tries the program, on CPU too
    python kernels/benchmark/gpu_check.py --report=FILE       the tables of a results file
    python kernels/benchmark/gpu_check.py --fit=FILE          constants for srigl_kernels.cost_model

Results are written after each row, so that an interruption loses one. A method that does not
compile, is wrong, or is not there is a row that says so. The work is done in a process of its own:
if it dies or hangs, the row that it was at is marked, and another one goes on after it.
"""

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]
_ATTEMPTS = 8
_STALL_SECONDS = 120  # without a new row the process is taken to hang
_POISONED_CODE = 3
_POISONED = ("CUDA_ERROR", "ILLEGAL_ADDRESS", "unspecified launch failure", "misaligned address")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; the exit code: 0 if every check is right."""
  sys.path[:0] = [path for path in (str(_ROOT), str(_ROOT / "kernels")) if path not in sys.path]
  options = _parse(argv)
  if options.report or options.fit:
    from experiments.benchmarks.kernels import gpu_report
    from experiments.common.files import read_json

    results = read_json(Path(options.report or options.fit))
    if results is None:
      raise ValueError(f"There is no results file {options.report or options.fit}.")
    print(gpu_report.constants(results) if options.fit else gpu_report.tables(results))
    return 0
  if options.worker:
    _work(options)
    return 0
  return _supervise(options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--out", help="the results file; a new one in runs/ by default")
  parser.add_argument("--seconds", type=float, default=430, help="after which no row is begun")
  parser.add_argument("--check", action="store_true", help="only checks, no timings")
  parser.add_argument("--only", metavar="PATTERN", help="only rows whose name the pattern is in")
  parser.add_argument("--tiny", action="store_true", help="small shapes; on CPU, interpreted")
  parser.add_argument("--report", metavar="FILE", help="print the tables of a results file")
  parser.add_argument("--fit", metavar="FILE", help="print constants fitted to a results file")
  parser.add_argument("--worker", type=float, help=argparse.SUPPRESS)  # its deadline
  return parser.parse_args(argv)


# ---- the process that watches ----


def _supervise(options: argparse.Namespace) -> int:
  from experiments.common.files import read_json, write_json

  stamp = time.strftime("%Y%m%d-%H%M%S")
  out = Path(options.out or f"runs/gpu-{stamp}.json")
  if out.exists():
    raise ValueError(f"{out} holds the results of an earlier run: give another --out.")
  write_json(out, {"tiny": options.tiny, "rows": {}, "running": [], "alone": [], "done": False})
  deadline = time.time() + options.seconds
  command = [sys.executable, str(Path(__file__).resolve()), f"--worker={deadline}", f"--out={out}"]
  command += [f"--{name}" for name in ("tiny", "check") if getattr(options, name)]
  command += [f"--only={options.only}"] if options.only else []
  for _ in range(_ATTEMPTS):
    code = _watch(command, out, deadline)
    results = read_json(out)
    if results["done"] or time.time() > deadline:
      break
    running = results["running"]
    if not running and code != _POISONED_CODE:
      break  # it did not come to its first task, and said why
    if len(running) == 1:  # the culprit
      results["rows"][running[0]] = {"failed": f"the process died or hung at it (exit code {code})"}
    results["alone"] += running  # next time one by one, so that the culprit is found
    write_json(out, results)
    print(f"the process ended with {code} at {', '.join(running)}; another one goes on", flush=True)
  from experiments.benchmarks.kernels import gpu_report

  results = read_json(out)
  if not results["rows"]:
    out.unlink()
    print("nothing was measured, so no results file is left")
    return 1
  results["table"] = gpu_report.tables(results)
  write_json(out, results)
  print(results["table"])
  print(f"wrote {out}")
  return 0 if gpu_report.is_right(results) else 1


def _watch(command: list[str], out: Path, deadline: float) -> int:
  """Runs the worker until it ends, or writes nothing for too long; its exit code."""
  process = subprocess.Popen(command)
  while process.poll() is None:
    time.sleep(0.2)
    idle = time.time() - out.stat().st_mtime
    if idle > _STALL_SECONDS or time.time() > deadline + 30:
      process.kill()
      process.wait()
  return process.returncode


# ---- the process that works ----


def _work(options: argparse.Namespace) -> None:
  if options.tiny:
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves room for PyTorch
  import jax

  if jax.default_backend() == "cpu":
    os.environ["SRIGL_PALLAS_INTERPRET"] = "gpu"
    if not options.tiny:
      raise SystemExit("jax finds no GPU here: --tiny tries the program without one.")
  _set("jax_bcoo_cusparse_lowering", True)
  from experiments.benchmarks.kernels import gpu_tasks
  from experiments.common.files import read_json, write_json

  out = Path(options.out)
  results = read_json(out)
  results["environment"] = _environment(jax)
  for group in gpu_tasks.groups(options.tiny, options.check):
    todo = [task for task in group if task.id not in results["rows"]]
    todo = [task for task in todo if re.search(options.only or "", task.id)]
    alone = [[task] for task in todo if task.id in results["alone"]]
    together = [task for task in todo if task.id not in results["alone"]]
    for tasks in [*([together] if together else []), *alone]:
      if time.time() > options.worker:
        for task in tasks:
          results["rows"][task.id] = {"failed": "not reached in time"}
        continue
      results["running"] = [task.id for task in tasks]
      write_json(out, results)
      with ThreadPoolExecutor(min(8, len(tasks))) as pool:
        prepared: list[Any] = list(pool.map(_attempt, [task.prepare for task in tasks]))
      for i, task in enumerate(tasks):
        results["running"] = [task.id]
        write_json(out, results)
        state, row = prepared[i]
        prepared[i] = None  # frees its arrays before the next one runs
        if row is None:
          found, row = _attempt(lambda task=task, state=state: task.finish(state))
          row = found if row is None else row
        del state
        results["rows"][task.id] = row
        results["running"] = []
        write_json(out, results)
        print(_line(task.id, row), flush=True)
        if any(word in row.get("failed", "") for word in _POISONED):
          sys.exit(_POISONED_CODE)  # nothing works any more in this process
  results["done"] = True
  write_json(out, results)


def _attempt(function: Any) -> tuple[Any, dict[str, Any] | None]:
  """What a function returns, and the row of its failure, if it failed."""
  try:
    return function(), None
  except Exception as error:  # whatever a compiler or a library raises is that row's result
    lines = [line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()]
    return None, {"failed": " ".join(lines)[:600]}


def _set(name: str, value: Any) -> None:
  """Sets an option of jax that this version may not have."""
  import jax

  try:
    jax.config.update(name, value)
  except (AttributeError, ValueError) as error:
    print(f"{name} is not set: {error}", flush=True)


def _environment(jax: Any) -> dict[str, Any]:
  from experiments.common.environment import commit, settings

  device = jax.devices()[0]
  return {
    "device": device.device_kind,
    "platform": device.platform,
    "jax": jax.__version__,
    "jaxlib": metadata.version("jaxlib"),
    "python": platform.python_version(),
    "commit": commit() or "unknown",
    "time": time.strftime("%Y-%m-%d %H:%M:%S"),
    **settings(),
  }


def _line(name: str, row: dict[str, Any]) -> str:
  if "failed" in row:
    return f"{name}: failed: {row['failed'][:160]}"
  if "seconds" in row:
    return f"{name}: {1e6 * sorted(row['seconds'])[len(row['seconds']) // 2]:.2f} us"
  return f"{name}: {row}"


if __name__ == "__main__":
  sys.exit(main())
