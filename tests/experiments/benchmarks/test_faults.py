"""The command that injects faults."""

import subprocess
import sys
from pathlib import Path

import pytest

from experiments import faults
from experiments.benchmarks import fault_injection
from experiments.common.files import read_json
from tests.helpers import table_cells

ROW = {
  "processes": 2,
  "fault": "SIGKILL of all",
  "exit_code": -9,
  "as_expected": True,
  "message": "",
  "last_checkpoint": 24,
  "resumed_from": 24,
  "steps_lost_beyond_checkpoint": 0,
  "same_final_state": True,
}


@pytest.mark.parametrize(
  "changes",
  [
    {"as_expected": False},
    {"steps_lost_beyond_checkpoint": 8},
    {"same_final_state": False},
  ],
)
def test_what_is_lost_is_noticed(changes):
  assert faults.is_sound(ROW)
  assert not faults.is_sound(ROW | changes)


def test_a_run_that_must_not_go_on_is_sound():
  nothing = {"resumed_from": None, "steps_lost_beyond_checkpoint": None, "same_final_state": None}
  assert faults.is_sound(ROW | nothing)
  assert table_cells(faults.table([ROW | nothing]))[-1][-3:] == ["–", "–", "–"]


def test_the_table():
  first, second = table_cells(
    faults.table([ROW, ROW | {"as_expected": False, "same_final_state": False}])
  )[1:]
  assert first == ["2", "SIGKILL of all", "-9", "24", "24", "0", "bit for bit"]
  assert second == ["2", "SIGKILL of all", "-9 (unexpected)", "24", "24", "0", "**no**"]


def test_damages():
  content = bytearray(range(10))
  fault_injection.flip(content)
  assert list(content) == [0, 1, 2, 3, 4, 4, 6, 7, 8, 9]
  fault_injection.truncate(content)
  assert list(content) == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_nothing_is_overwritten(command, tmp_path):
  (tmp_path / "mine").touch()
  code, _, errors = command("faults", f"--workdir={tmp_path}")
  assert code == 2 and "is not empty" in errors


@pytest.mark.slow
def test_nothing_is_lost(tmp_path):
  done = subprocess.run(
    [sys.executable, "-m", "experiments.faults", f"--workdir={tmp_path / 'runs'}"],
    cwd=Path(__file__).parents[3],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  rows = read_json(tmp_path / "runs" / "faults.json")["rows"]
  assert {row["processes"] for row in rows} == {1, 2}
  assert len(rows) == 16 and all(map(faults.is_sound, rows))
