"""Files that are never half written, and names that are never misread."""

import os

import pytest

from experiments import files
from experiments.registry import choose


def test_json_comes_back(tmp_path):
  path = tmp_path / "deep" / "er" / "value.json"
  assert files.read_json(path) is None
  files.write_json(path, {"a": [1, 2.5, "é", None]})
  assert files.read_json(path) == {"a": [1, 2.5, "é", None]}
  assert [p.name for p in path.parent.iterdir()] == ["value.json"]


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
