"""The benchmark of whole networks on a GPU, tried without one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments):
  command = [sys.executable, "-m", "experiments.benchmark_gpu", *arguments]
  return subprocess.run(command, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_leaves_nothing(tmp_path):
  done = run(f"--out={tmp_path / 'networks.json'}")
  assert done.returncode != 0 and "jax finds no GPU here: --tiny" in done.stdout + done.stderr
  assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_both_networks_are_timed_and_agree(tmp_path):
  out = tmp_path / "networks.json"
  done = run("--tiny", f"--out={out}")
  assert done.returncode == 0, done.stderr[-2000:]
  rows = json.loads(out.read_text())["rows"]
  assert [(row["dtype"], row["batch"]) for row in rows] == [
    (dtype, batch) for dtype in ("float32", "bfloat16") for batch in (1, 16)
  ]
  for row in rows:
    assert set(row["seconds"]) == {"dense", "condensed"} and not row["failed"]
    most = {"float32": 1e-4, "bfloat16": 3e-2}[row["dtype"]]
    assert all(error < most for error in row["errors"].values())
