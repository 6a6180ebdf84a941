"""Proves that a killed run resumes bit for bit.

`python -m tests.prove_resume --config=configs/cifar10_quick.py [--config.key=value ...]` trains
once without interruption; trains again in another directory, kills that with SIGKILL at a random
moment about half-way, and gives the same command once more, which must start from a checkpoint and
not from the beginning; then compares every bit of the final parameters, masks (or patterns) and
optimizer state, and the recorded test accuracies.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments.common.files import read_json
from experiments.workdir.metrics import read_metrics
from experiments.workdir.provenance import read_sessions


def start(arguments: list[str], workdir: Path) -> subprocess.Popen:
  command = [sys.executable, "-m", "experiments.train", *arguments, f"--workdir={workdir}"]
  print(" ".join(command[1:]), flush=True)
  return subprocess.Popen(command)


def finish(process: subprocess.Popen) -> None:
  if process.wait() != 0:
    raise SystemExit(f"the run failed with exit code {process.returncode}")


def last_step(workdir: Path) -> int:
  records = read_metrics(workdir)["train"]
  return records[-1]["step"] if records else 0


def kill_half_way(process: subprocess.Popen, workdir: Path, total_steps: int) -> None:
  target = random.uniform(0.35, 0.65) * total_steps
  while last_step(workdir) < target:
    if process.poll() is not None:
      raise SystemExit("the run ended before it could be killed: give it more epochs")
    time.sleep(0.05)
  time.sleep(random.uniform(0.0, 2.0))  # into a step, an evaluation or a save
  process.send_signal(signal.SIGKILL)
  process.wait()
  print(f"killed after step {last_step(workdir)} of {total_steps}", flush=True)


def final_state(workdir: Path) -> dict[str, np.ndarray]:
  directory = (workdir / "checkpoints").absolute()
  manager = ocp.CheckpointManager(directory)
  restored = manager.restore(
    manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore())
  )["state"]
  leaves = jax.tree_util.tree_flatten_with_path(restored)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
  if one.keys() != other.keys():
    return sorted(one.keys() ^ other.keys())
  same = lambda a, b: a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
  return [name for name in one if not same(one[name], other[name])]


def prove(arguments: list[str], directory: Path) -> int:
  whole, killed = directory / "whole", directory / "killed"
  finish(start(arguments, whole))
  total_steps = read_json(whole / "results.json")["steps"]
  process = start(arguments, killed)
  kill_half_way(process, killed, total_steps)
  if (killed / "results.json").exists():
    raise SystemExit("the run finished before it was killed: give it more epochs")
  finish(start(arguments, killed))
  resumed_from = [session["step"] for session in read_sessions(killed)]
  if len(resumed_from) != 2 or not 0 < resumed_from[1] < total_steps:
    raise SystemExit(f"nothing was resumed: the sessions started at steps {resumed_from}")

  state, other = final_state(whole), final_state(killed)
  bad = differing(state, other)
  tests = [[(r["step"], r["accuracy"]) for r in read_metrics(d)["test"]] for d in (whole, killed)]
  masks = [array for name, array in state.items() if "masks" in name and array.dtype == bool]
  patterns = [name for name in state if name.endswith("pattern']['indices']")]
  sparse = sum(not mask.all() for mask in masks) + len(patterns)
  print(f"resumed from step {resumed_from[1]} of {total_steps}")
  print(f"{len(state)} arrays compared, {sparse} masks or patterns; {len(bad)} differ {bad[:5]}")
  print(f"test accuracies {'agree' if tests[0] == tests[1] else 'differ'}: {tests[0][-1]}")
  return int(bool(bad) or tests[0] != tests[1] or not sparse)


if __name__ == "__main__":
  with tempfile.TemporaryDirectory() as directory:
    sys.exit(prove(sys.argv[1:], Path(directory)))
