"""What the tests of the harness share: one device, one finished run, commands in this process."""

import runpy
import sys
from pathlib import Path

import pytest
from absl.testing import flagsaver

from experiments.common import cli
from experiments.training.loop import train
from tests.experiments.tiny import devices, tiny_config


@pytest.fixture
def one_device():
  """Seven of the eight virtual devices would only cost time."""
  with devices(1):
    yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
  """The directory and the results of `tiny_config()` trained to the end; not to be changed."""
  workdir = tmp_path_factory.mktemp("finished")
  with devices(1):
    results = train(tiny_config(), workdir)
  return workdir, results


@pytest.fixture
def command(monkeypatch, capsys):
  """Runs `python -m experiments.NAME` in this process: exit code, output, errors.

  Tests that use it ignore the warning that the module is there already.
  """
  monkeypatch.chdir(Path(__file__).resolve().parents[2])
  monkeypatch.setattr(cli, "use_compile_cache", lambda directory: None)

  def run(name, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
      runpy.run_module(f"experiments.{name}", run_name="__main__")
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    return stop.value.code or 0, output.out, output.err

  return run
