"""Files that are never half written, and names that are never misread."""

import os
import subprocess
import sys
import threading

import pytest

from experiments.common import files
from experiments.common.registry import choose
from tests.experiments.tiny import full_disk


def test_json_comes_back(tmp_path):
  path = tmp_path / "deep" / "er" / "value.json"
  assert files.read_json(path) is None
  files.write_json(path, {"a": [1, 2.5, "é", None]})
  assert files.read_json(path) == {"a": [1, 2.5, "é", None]}
  assert [p.name for p in path.parent.iterdir()] == ["value.json"]


@pytest.mark.parametrize("content", [b"", b'{"a": ', b"\x00\xff"])
def test_a_damaged_file_is_named(tmp_path, content):
  path = tmp_path / "config.json"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=r"config\.json is damaged \(.*\).* move it away"):
    files.read_json(path)


def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path):
  path = tmp_path / "value.json"
  files.write_json(path, 1)
  with full_disk(0), pytest.raises(OSError, match=r"File too large: '.*/value\.json'"):
    files.write_json(path, 2)
  assert files.read_json(path) == 1
  assert [p.name for p in tmp_path.iterdir()] == ["value.json"]


def test_a_file_is_on_disk_before_it_takes_its_place(tmp_path, monkeypatch):
  """Or a machine that fails would leave the new name with nothing behind it."""
  done = []
  monkeypatch.setattr(os, "fsync", lambda number: done.append("synced"))
  replace = os.replace
  monkeypatch.setattr(os, "replace", lambda *a: (done.append("renamed"), replace(*a)))
  files.write_json(tmp_path / "value.json", 1)
  assert done == ["synced", "renamed"]


def test_a_write_cut_short_leaves_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "value.json"
  files.write_json(path, 1)

  def killed(*arguments):
    raise KeyboardInterrupt

  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(KeyboardInterrupt):
    files.write_json(path, 2)
  assert files.read_json(path) == 1


def test_choose():
  table = {"sgd": 1, "adam": 2}
  assert choose(table, "adam", "optimizer") == 2
  with pytest.raises(ValueError, match=r"^optimizer is 'adm'; .* sgd, adam\. .*'adam'\?$"):
    choose(table, "adm", "optimizer")
  with pytest.raises(ValueError, match=r"^optimizer is 'x'; it must be one of sgd, adam\.$"):
    choose(table, "x", "optimizer")


HOLD = """
import sys, time
from pathlib import Path
from experiments.common.files import locked

with locked(Path(sys.argv[1])):
  print("held", flush=True)
  time.sleep(60)
"""


def test_a_directory_is_one_process_s(tmp_path, monkeypatch):
  """Until that has ended, however it ends."""
  monkeypatch.setattr(files, "PATIENCE_SECONDS", 0.0)
  other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
  try:
    assert other.stdout.readline() == b"held\n"
    said = f"in use by process {other.pid} on .*--workdir"
    with pytest.raises(files.InUseError, match=said), files.locked(tmp_path):
      raise AssertionError("two hold it")
  finally:
    other.kill()
    other.communicate()
  with files.locked(tmp_path):
    assert f"process {os.getpid()} on" in (tmp_path / ".lock").read_text()
  with files.locked(tmp_path):  # it was given back
    pass


def test_a_directory_in_use_is_waited_for(tmp_path):
  other = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
  assert other.stdout.readline() == b"held\n"
  threading.Timer(0.2, other.kill).start()
  with pytest.warns(UserWarning, match="waiting"), files.locked(tmp_path):
    other.communicate()
