"""The GPU benchmark on tiny shapes, interpreted: it works where there is no GPU, or would not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.kernels import gpu_cases, gpu_check, gpu_report, gpu_tasks
from experiments.benchmarks.kernels.gpu_baselines import METHODS, TRAINING
from srigl_kernels import cost_model
from srigl_kernels.backends.grouped import group_size
from tests.kernels.lowering import interpreting

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def interpreted(monkeypatch):
  with interpreting(monkeypatch, "gpu"):
    yield


def run(task):
  """The row of a task, as the worker makes it."""
  state, row = gpu_check._attempt(task.prepare)
  return row or task.finish(state)


def tasks_by_id(tiny=True):
  return {task.id: task for group in gpu_tasks.groups(tiny) for task in group}


def test_every_task_has_a_name_of_its_own():
  for tiny in (True, False):
    names = [task.id for group in gpu_tasks.groups(tiny) for task in group]
    assert len(names) == len(set(names)) > 50
  assert all(t.id.startswith("check") for g in gpu_tasks.groups(True, True) for t in g)


@pytest.mark.parametrize("case", gpu_cases.cases(tiny=True), ids=lambda case: case.name)
def test_expected_rows_are_those_of_the_dense_matrix(case):
  condensed = gpu_cases.make_layer(case, 16)
  assert group_size(condensed) in (16, 32)
  assert condensed.fan_in == case.fan_in and condensed.num_active == case.num_active
  x = np.random.default_rng(0).normal(size=(2, case.in_features))
  matrix = np.zeros((case.in_features, case.out_features))
  matrix[np.asarray(condensed.indices), np.asarray(condensed.active)[:, None]] = condensed.values
  want = x @ matrix + np.asarray(condensed.bias, float)
  assert gpu_cases.error(gpu_cases.expected_rows(x, condensed), want) < 1e-12
  assert gpu_cases.error(want + 1, want) > 0.01 and np.isnan(gpu_cases.error(want * np.nan, want))


@pytest.mark.parametrize("method", ["dense", "pallas", "grouped16_bf16", "csr", "pallas_gradients"])
def test_methods_are_checked_and_timed(interpreted, method):
  batch = 1 if method in TRAINING else 18
  row = run(tasks_by_id()[f"vit_ffn_up batch {batch} {method}"])
  assert min(row["seconds"]) > 0 and row["bytes"] > 0 and row["products"] > 0
  known = METHODS | TRAINING
  assert row["key"] in {None, *cost_model.SECONDS} and row["rate"] == known[method].rate
  assert method in TRAINING or row["error"] < known[method].tolerance


def test_a_wrong_or_broken_method_is_a_row(interpreted, monkeypatch):
  right = METHODS["dense"].apply
  wrong = METHODS["dense"]._replace(apply=lambda x, w: 1.01 * right(x, w))
  monkeypatch.setitem(METHODS, "dense", wrong)
  row = run(tasks_by_id()["vit_ffn_up batch 18 dense"])
  assert row["failed"].startswith("errs by 0.0") and "seconds" not in row

  def broken(x, w):
    raise NotImplementedError("not here")

  monkeypatch.setitem(METHODS, "dense", wrong._replace(apply=broken))
  row = run(tasks_by_id()["vit_ffn_up batch 18 dense"])
  assert row == {"failed": "NotImplementedError: not here"}


def test_checks_compare_with_float64(interpreted):
  row = run(tasks_by_id()["check grouped none_active float32"])
  assert row["ok"] and row["errors"].keys() == {"y", "dx", "dvalues"}


def results(**rows):
  case = gpu_cases.cases()[0]
  about = case._replace(targets=())._asdict() | {"case": case.name, "copies": 2, "group": 1}
  numbers = {"bytes": 3e6, "products": 1e8, "rate": "float32", "gradients": False,
             "rotation_bytes": 1e8, "dtype": "float32"}  # fmt: skip
  made = {
    f"{case.name} {name}": about | numbers | {"method": name, "key": key, "seconds": [t] * 3}
    for name, (key, t) in rows.items()
  }
  ceilings = {"bytes": 3e12, "float32": 2.5e13, "tf32": 2e14, "bfloat16": 4e14}
  return {"environment": {"device": "X"}, "rows": {"ceilings": ceilings, **made}}


def test_tables_hold_rows_to_floors_and_targets():
  found = results(
    dense=("dense gpu float32 highest", 3e-5),
    dense_tf32=("dense gpu float32", 1e-5),
    cuda=("pallas gpu float32", 8e-6),
    csr=(None, 1e-4),
  )
  found["rows"]["check pallas a"] = {"ok": True, "errors": {}}
  found["rows"]["vit_ffn_up batch 256 xla"] = {"failed": "it broke"}
  text = gpu_report.tables(found)
  assert "checks: 1 of 1 right" in text and gpu_report.is_right(found)
  assert "dense / cuda, at least 2: 3.75 met" in text
  assert "csr / cuda, at least 15: 12.50 MISSED" in text
  assert "50.0 %" in text  # the 8 us of cuda: 1e8 products at 2.5e13 a second are 4 us
  assert "best pallas gpu float32" in text and "failed: vit_ffn_up batch 256 xla: it broke" in text
  found["rows"]["check pallas b"] = {"failed": "wrong"}
  assert not gpu_report.is_right(found) and "checks: 1 of 2 right" in gpu_report.tables(found)


def test_ratios_are_those_of_the_fastest():
  found = results(
    dense_bf16=("dense gpu bfloat16", 3e-5),
    torch_bf16=(None, 2e-5),
    cuda_bf16=("cuda gpu bfloat16", 9e-6),
    cuda_gather_bf16=("cuda_gather gpu bfloat16", 8e-6),
    dense_tf32=("dense gpu float32", 1e-5),
    pallas=("pallas gpu float32", 2e-5),
  )
  text = gpu_report.ratios(found)
  assert "2.50 (torch_bf16)" in text and "0.50 (pallas)" in text and "| float32" not in text


def test_constants_are_fitted():
  auto = ("cuda gpu float32", 7e-6)  # the fastest of two kernels, each of which has constants
  found = results(pallas=("pallas gpu float32", 8e-6), csr=(None, 1e-4), cuda=auto)
  line = gpu_report.constants(found)
  assert (
    line.startswith('  "pallas gpu float32": Rates(') and "csr" not in line and "cuda" not in line
  )


WORKER = """
import json, os, pathlib, sys, time
out = pathlib.Path([a for a in sys.argv if a.startswith("--out=")][0][6:])
results = json.loads(out.read_text())
for name in "abc":
  if name in results["rows"]:
    continue
  results["running"] = [name]
  out.write_text(json.dumps(results))
  if name == "b":
    os.abort()
  results["rows"][name] = {"done": name}
  results["running"] = []
  out.write_text(json.dumps(results))
  if name == "a":
    sys.exit(3)
results["done"] = True
out.write_text(json.dumps(results))
"""


def test_a_process_that_dies_loses_one_row(tmp_path, monkeypatch):
  script = tmp_path / "worker.py"
  script.write_text(WORKER)
  monkeypatch.setattr(gpu_check, "__file__", str(script))
  out = tmp_path / "out.json"
  gpu_check.main([f"--out={out}", "--tiny"])
  rows = json.loads(out.read_text())["rows"]
  assert rows["a"] == {"done": "a"} and rows["c"] == {"done": "c"}
  assert rows["b"]["failed"].startswith("the process died or hung at it")
  with pytest.raises(ValueError, match="holds the results of an earlier run"):
    gpu_check.main([f"--out={out}", "--tiny"])


def test_without_a_gpu_no_results_file_is_left(tmp_path, monkeypatch, capfd):
  monkeypatch.setenv("JAX_PLATFORMS", "cpu")
  out = tmp_path / "out.json"
  assert gpu_check.main([f"--out={out}"]) == 1
  said = capfd.readouterr()
  assert "jax finds no GPU here" in said.err and "nothing was measured" in said.out
  assert list(tmp_path.iterdir()) == []


def test_a_process_that_hangs_is_ended(tmp_path, monkeypatch):
  out = tmp_path / "out.json"
  out.write_text("{}")
  monkeypatch.setattr(gpu_check, "_STALL_SECONDS", 0.5)
  code = gpu_check._watch([sys.executable, "-c", "import time; time.sleep(60)"], out, 1e12)
  assert code < 0


@pytest.mark.slow
def test_the_script_from_a_checkout(tmp_path):
  """Not installed, from another folder: what a machine with a GPU would be given."""
  out = tmp_path / "gpu.json"
  script = ROOT / "kernels" / "benchmark" / "gpu_check.py"
  env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
  command = [sys.executable, str(script), "--tiny", f"--out={out}"]
  done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
  found = json.loads(out.read_text())
  assert done.returncode == 0, done.stdout + done.stderr
  assert found["done"] and "checks: 4 of 4 right" in found["table"]
  failed = {name: row for name, row in found["rows"].items() if "failed" in row}
  assert all("torch" in name for name in failed)
