"""The GPU bundle: rehearsed on a copy of the checkout that has nothing but what is copied."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from experiments import gpu_bundle
from experiments.benchmarks import offline_run

ROOT = Path(__file__).resolve().parents[2]
# An environment with what the offline machine has and no more.
PYTHON = os.environ.get("SRIGL_OFFLINE_PYTHON", sys.executable)
MOST_FILES, MOST_BYTES = 8, 16 * 2**20


@pytest.fixture
def places(monkeypatch, tmp_path):
  """Directories of its own for what is sent along and what is worked on."""
  for name in ("BUNDLE", "WORK"):
    for module in (gpu_bundle, offline_run):
      monkeypatch.setattr(module, name, tmp_path / name.lower())
  (tmp_path / "work").mkdir()
  return tmp_path


def run_codes(monkeypatch, tmp_path, programs, seconds=60.0):
  """What a run returns for commands that are small programs."""
  monkeypatch.setattr(offline_run, "_RESERVE_SECONDS", 0)
  monkeypatch.setattr(offline_run, "_GRACE_SECONDS", 1)
  machine = offline_run._TimedRun(tmp_path / "out", seconds)
  before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
  try:
    return [machine.run("part", ["-c", code], limit, lambda: None) for code, limit in programs]
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


@pytest.mark.slow
def test_a_part_that_fails_or_hangs_costs_the_others_nothing(monkeypatch, tmp_path, places):
  stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
  start = time.monotonic()
  programs = [("raise SystemExit(3)", 20), (stubborn, 5.5), ("print('here')", 20)]
  assert run_codes(monkeypatch, tmp_path, programs) == [3, None, 0]
  assert time.monotonic() - start < 30
  assert "here" in (tmp_path / "out" / "log.txt").read_text()


def test_nothing_is_begun_without_time(monkeypatch, tmp_path, places):
  assert run_codes(monkeypatch, tmp_path, [("print('no')", 20)], seconds=3) == [None]


def test_what_was_compiled_comes_back_in_few_files_and_is_taken_along(places, monkeypatch):
  monkeypatch.setattr(offline_run, "_MAX_FILE", 20_000)
  compiled, out, back = places / "work" / "compiled", places / "out", places / "bundle"
  (compiled / "autotune").mkdir(parents=True)
  for i in range(40):
    (compiled / "autotune" / f"{i}").write_bytes(os.urandom(1000 + i))
  (compiled / "program").write_bytes(os.urandom(30_000))  # too large for a file
  out.mkdir()
  offline_run._save_compiled(out)
  archives = sorted(out.iterdir())
  assert [path.name for path in archives] == [f"compiled-{i}.tar.gz" for i in range(3)]
  assert all(path.stat().st_size < 20_000 for path in archives)
  back.mkdir()
  for path in archives:
    shutil.move(path, back)
  shutil.rmtree(compiled)
  offline_run._restore_compiled()
  names = {int(path.name) for path in (compiled / "autotune").iterdir()}
  assert names == set(range(len(names))) and len(names) >= 24  # the smallest ones


def test_parts_have_names(capsys):
  with pytest.raises(SystemExit):
    gpu_bundle.main(["run", "--out=x", "--seconds=9", "--parts=training"])
  assert "kernels,networks,train" in capsys.readouterr().err


def checkout(folder, tmp_path):
  """What is copied: files that git tracks or does not ignore, and the packed folder if there is."""
  listed = subprocess.run(
    ["git", "-C", ROOT, "ls-files", "-co", "--exclude-standard"], stdout=subprocess.PIPE, check=True
  )
  for name in listed.stdout.decode().splitlines():
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy(ROOT / name, folder / name)
  if gpu_bundle.BUNDLE.exists():
    shutil.copytree(gpu_bundle.BUNDLE, folder / ".gpu_bundle")
  names = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
  return {k: v for k, v in os.environ.items() if k in names} | {
    "JAX_PLATFORMS": "cpu",
    "HOME": str(tmp_path),
  }


def command(out, seconds, *more):
  how = ["run", f"--out={out}", f"--seconds={seconds}", "--tiny", *more]
  return [PYTHON, "-m", "experiments.gpu_bundle", *how]


def check_files(out):
  files = list(out.rglob("*"))
  assert len(files) <= MOST_FILES and all(path.is_file() for path in files)
  assert all(path.stat().st_size <= MOST_BYTES for path in files)
  assert not [path for path in files if path.suffix == ".part"]


@pytest.mark.slow
def test_a_bundle_from_the_checkout_to_the_results_files(tmp_path):
  copy, out = tmp_path / "copy", tmp_path / "out"
  env = checkout(copy, tmp_path)
  subprocess.run(command(out, 1500), cwd=copy, env=env, check=True)
  check_files(out)
  results = json.loads((out / "gpu_kernels.json").read_text())
  assert results["done"] and "right" in results["table"]
  assert json.loads((out / "gpu_networks.json").read_text())["rows"]
  with tarfile.open(out / "training.tar.gz") as archive:
    names = archive.getnames()
  for stage in ("wrn22-99-tiny", "wrn22-95-tiny", "resnet18-99-tiny"):
    for method in ("rigl", "srigl_no_ablation", "srigl"):
      assert any(n.startswith(f"{stage}/{method}/") and n.endswith("results.json") for n in names)
  shutil.rmtree(copy / "runs")
  publish = [
    PYTHON,
    "-m",
    "experiments.gpu_bundle",
    "publish",
    str(out),
    f"--results={tmp_path / 'r'}",
  ]
  paths = os.pathsep.join(str(copy / each) for each in ("kernels", ".gpu_bundle/site"))
  subprocess.run(publish, cwd=copy, env=env | {"PYTHONPATH": paths}, check=True)
  published = json.loads((tmp_path / "r" / "gpu_wrn22_99_tiny.json").read_text())
  assert set(published["variants"]) == {"rigl", "srigl_no_ablation", "srigl", "dense"}
  assert (tmp_path / "r" / "gpu_kernels.json").exists()
  assert (tmp_path / "r" / "gpu_networks.json").exists()


@pytest.mark.slow
def test_a_run_that_is_ended_leaves_what_it_has(tmp_path):
  copy, out = tmp_path / "copy", tmp_path / "out"
  env = checkout(copy, tmp_path)
  process = subprocess.Popen(command(out, 1500, "--parts=train"), cwd=copy, env=env)
  end = time.monotonic() + 600
  archive = out / "training.tar.gz"
  while not archive.exists() and process.poll() is None and time.monotonic() < end:
    time.sleep(1)
  process.terminate()
  assert process.wait(90) == 0
  check_files(out)
  with tarfile.open(archive) as file:
    assert file.getnames()
