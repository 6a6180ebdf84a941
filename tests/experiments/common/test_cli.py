"""The commands as one gives them: messages, exit codes, signals."""

import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments.common import cli
from experiments.common.files import read_json
from experiments.sweeps import estimate
from tests.experiments.tiny import STEPS_PER_EPOCH, assert_same, checkpoint_steps, read_checkpoint

ROOT = Path(__file__).resolve().parents[3]
PATHS = [str(ROOT), str(ROOT / "kernels")]  # for processes, as pytest has them
DIGITS = "--config=configs/digits.py"


pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

# ---- messages ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "arguments, message",
  [
    (
      [DIGITS, "--config.method.sparsty=0.9"],
      r"No such field[^']*config\.method\.sparsty; did you mean 'sparsity'\?.* never_ablate,",
    ),
    (
      [DIGITS, "--config.metod.sparsity=0.9"],
      r"No such field[^']*config\.metod; did you mean 'method'\?.* of config are data,",
    ),
    (
      [DIGITS, "--config.model.kwargs.hiden=(8,)"],
      r"No such field.*config\.model\.kwargs\.hiden; did.*'hidden'",
    ),
    (
      ["--config=configs/cifar10_resnet18.py", "--config.model.kwargs.widths=(8,)"],
      r"kwargs\.widths\. config\.model\.kwargs has no fields .* arguments of model 'resnet18'",
    ),
    (
      [DIGITS, "--config.method.sparsity=0.9999"],
      r"\(1\) lower config\.method\.sparsity.*--config\.method\.dense=.*kwargs\.fan_in",
    ),
    ([DIGITS, "--config.optimizer.learning_rate=-0.1"], r"learning_rate is -0\.1; .* 0 or more"),
    (
      [DIGITS, "--config.method.gamma_sal=0.5"],
      r"gamma_sal is now config\.method\.kwargs\.gamma_sal",
    ),
    (
      ["--config=configs/digit.py"],
      r"There is no config file configs/digit\.py.*configs here are .*configs/digits\.py, ",
    ),
    (
      ["--config=configs/digits.py:srgil"],
      r"no method 'srgil' here: give one of dense, small_dense",
    ),
    ([], r"--config is missing: Config file, e\.g\. configs/digits\.py"),
    ([DIGITS, "--config.train.total_epochs=ten"], r"config\.train\.total_epochs=ten: could not"),
    ([DIGITS, "--confg.seed=1"], r"Unknown command line flag 'confg"),
    ([DIGITS, "--config.method.name=srgil"], r"config\.method\.name is 'srgil'.*'srigl'\?"),
    ([DIGITS, "--config.method.sparsity=1.0"], r"sparsity is 1\.0; it must lie in \[0, 1\)"),
    ([DIGITS, "--config.data.batch_size=60"], r"batch_size is 60; it must be a multiple.*\(8\)"),
    ([DIGITS, "--config.model.dtype=float61"], r"dtype must be one of .*, got float61"),
    ([DIGITS, "--workdir=gs://b/run"], r"--workdir is 'gs://b/run'; .* Mount the bucket"),
    ([DIGITS, "now"], r"Unexpected argument 'now': flags are written --name=value"),
    (["--config=configs/sweeps/digits.py"], r"sweep's: use python -m experiments\.sweep"),
  ],
)
def test_bad_input_to_train(command, tmp_path, arguments, message):
  code, _, errors = command("train", f"--workdir={tmp_path / 'run'}", *arguments)
  assert code == 2
  assert re.match(f"(?s)error: .*{message}", errors)
  assert not (tmp_path / "run" / "config.json").exists()


def test_a_missing_data_set(command, tmp_path):
  code, _, errors = command(
    "train",
    "--config=configs/cifar10_quick.py",
    f"--config.data.data_dir={tmp_path}",
    f"--workdir={tmp_path / 'run'}",
  )
  assert code == 2
  assert f"no CIFAR-10 in {tmp_path}" in errors and "--config.data.data_dir=DIR" in errors


@pytest.mark.parametrize(
  "name, arguments, message",
  [
    ("train", [DIGITS], r"--workdir is missing: Directory of this run\."),
    ("sweep", ["--workdir=x", DIGITS], r"single run's: use .*experiments\.train"),
    ("sweep", ["--workdir=x", "--config=configs/sweeps/digit.py"], r"configs/sweeps/digits\.py"),
    ("report", ["--workdir=nowhere"], r"nowhere holds no run that has trained"),
    ("report", [], r"Give --workdir of a run or of a sweep, or --results"),
    ("export", ["--out=x"], r"either --workdir, of a run, or --model"),
    ("export", ["--out=x", "--workdir=x", "--model=y"], r"either --workdir, of a run, or --model"),
    (
      "export",
      ["--out=x.onnx", "--workdir=x", "--format=onnx", "--arithmetic=int8"],
      r"--arithmetic is of --format=c; --format=onnx does not take it",
    ),
    ("export", ["--out=x", "--workdir=x", "--output=softmax"], r"of --format=c and onnx"),
    ("export", ["--out=x.c", "--model=x", "--format=c", "--checkpoint=best"], r"--checkpoint"),
  ],
)
def test_bad_input_to_the_others(command, name, arguments, message):
  code, _, errors = command(name, *arguments)
  assert code == 2
  assert re.match(f"(?s)error: .*{message}", errors)


def test_ctrl_c_before_the_first_step(command, tmp_path, monkeypatch):
  """There is no traceback: `command` looks."""

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  monkeypatch.setattr("experiments.training.loop.prepare", interrupt)
  code, output, errors = command("train", DIGITS, f"--workdir={tmp_path}")
  assert code == 130
  assert output.startswith("Preparing and compiling") and "without saving" in errors


def test_a_traceback_on_request(command, tmp_path, monkeypatch):
  monkeypatch.setenv("SRIGL_TRACEBACK", "1")
  arguments = [f"--workdir={tmp_path}", DIGITS, "--config.method.name=srgil"]
  with pytest.raises(ValueError, match="srgil"):
    monkeypatch.setattr(sys, "argv", ["train", *arguments])
    with flagsaver.flagsaver():
      runpy.run_module("experiments.train", run_name="__main__")


# ---- runs --------------------------------------------------------------------------------------

CONFIG = """
from tests.experiments.tiny import tiny_config

def get_config():
  return tiny_config()
"""

SWEEP = """
from ml_collections import ConfigDict
from tests.experiments.tiny import tiny_config

def get_config():
  variants = (("good", {}), ("bad", {"data": {"batch_size": 4096}}))
  return ConfigDict({"name": "Two", "base": tiny_config(), "variants": variants, "seeds": (0,)})
"""


@pytest.fixture
def config(tmp_path):
  """The flag for a file of `tiny_config()`."""
  path = tmp_path / "config.py"
  path.write_text(CONFIG)
  return f"--config={path}"


@pytest.mark.usefixtures("one_device")
def test_train_then_report(command, config, tmp_path):
  workdir = tmp_path / "run"
  code, output, _ = command("train", config, "--config.seed=7", f"--workdir={workdir}")
  assert code == 0
  results = read_json(workdir / "results.json")
  assert results["seed"] == read_json(workdir / "config.json")["seed"] == 7
  assert results["table"] in output
  assert f"test accuracy {results['test_accuracy']:.2%}" in output
  assert f"report in {workdir / 'report.md'}" in output
  text = (workdir / "report.md").read_text()
  (workdir / "report.md").unlink()
  code, output, _ = command("report", f"--workdir={workdir}")
  assert code == 0 and str(workdir / "report.md") in output
  assert (workdir / "report.md").read_text() == text


@pytest.mark.slow  # what it calls is tested in test_sweep.py and test_report.py
@pytest.mark.usefixtures("one_device")
def test_sweep_then_report(command, tmp_path, monkeypatch):
  monkeypatch.setattr(estimate, "_CALIBRATION_SECONDS", 1e-9)
  path, workdir = tmp_path / "two.py", tmp_path / "sweep"
  path.write_text(SWEEP)
  code, output, _ = command("sweep", f"--config={path}", f"--workdir={workdir}", "--dry_run")
  assert code == 0 and not (workdir / "good").exists()
  assert re.search(
    r"2 runs, 0 of them finished; left: 13 steps, [\d,]+ images\. At [\d,]+ im.*, without the st",
    output,
  )
  code, output, _ = command("sweep", f"--config={path}", f"--workdir={workdir}")
  assert code == 1
  assert "bad/seed0: FAILED: ValueError: config.data.batch_size is 4096" in output
  assert "1 runs failed: bad/seed0" in output
  table = re.search(r"(?m)^\|.*\|$(\n\|.*\|$)+", output)[0]
  assert table.splitlines()[-1].startswith("| good ")
  out = tmp_path / "results" / "two.json"
  code, output, _ = command("report", f"--workdir={workdir}", f"--out={out}")
  assert code == 0 and table in output
  assert read_json(out)["table"] == table
  assert f"--workdir={workdir}" in read_json(out)["command"]
  assert "jax" in read_json(out)["environment"]


# ---- processes ---------------------------------------------------------------------------------


@pytest.fixture
def start(tmp_path):
  """Starts `python -m experiments.train` in a process of its own, on one device."""
  started = []

  def run(*arguments):
    environment = os.environ | {
      "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
      "PYTHONPATH": os.pathsep.join(PATHS),
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }
    process = subprocess.Popen(
      [sys.executable, "-m", "experiments.train", *arguments],
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )
    started.append(process)
    return process

  yield run
  for process in started:
    if process.poll() is None:
      process.kill()
    process.wait()


def test_help_lists_the_config_and_the_processes(start):
  output, _ = start("--help").communicate(timeout=120)
  for name in ("config", "workdir", "processes", "coordinator", "num_processes"):
    assert f"\n  --{name}: " in output


@pytest.mark.slow
def test_sigterm_stops_a_run_that_then_goes_on(start, config, tmp_path):
  """Bit for bit as if nothing had come."""
  total_epochs = 60
  arguments = [
    config,
    f"--config.train.total_epochs={total_epochs}.0",
    f"--config.train.eval_every_epochs={total_epochs}.0",
    f"--config.train.checkpoint_every_epochs={total_epochs}.0",
    "--config.train.log_every_steps=1",
  ]
  workdir, whole = tmp_path / "stopped", tmp_path / "whole"
  metrics = workdir / "metrics.jsonl"
  process = start(f"--workdir={workdir}", *arguments)
  while process.poll() is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 128 + signal.SIGTERM, output
  step = int(re.search(r"Stopped and saved at step (\d+)\. The same command", output)[1])
  assert 0 < step < total_epochs * STEPS_PER_EPOCH
  assert checkpoint_steps(workdir) == [step]
  assert not (workdir / "results.json").exists()

  shutil.copytree(workdir / ".compiled", whole / ".compiled")
  for directory in (workdir, whole):
    process = start(f"--workdir={directory}", *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
  assert_same(read_checkpoint(workdir), read_checkpoint(whole))
  results = [read_json(d / "results.json") for d in (workdir, whole)]
  assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def test_nothing_imports_tensorflow(tmp_path):
  """One is put where it would be found; the commands leave it alone."""
  package = tmp_path / "tensorflow"
  package.mkdir()
  (package / "__init__.py").write_text("__version__ = '2.0.0'\n")
  code = (
    "import sys, experiments.train, experiments.sweep, experiments.report;"
    "from experiments import data; data.load('digits'); data.load('synthetic');"
    "found = [m for m in sys.modules if m.split('.')[0] == 'tensorflow'];"
    "import tensorflow;"
    "print(tensorflow.__file__, found)"
  )
  process = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *PATHS])},
    capture_output=True,
    text=True,
    check=True,
  )
  assert process.stdout.split() == [str(package / "__init__.py"), "[]"]


def test_an_error_does_not_control_the_terminal(capsys):
  with pytest.raises(SystemExit):
    cli.fail("a\x1b[2J\x9b\u202eb\nc é")
  assert capsys.readouterr().err == "error: a\\x1b[2J\\x9b\\u202eb\nc é\n"
