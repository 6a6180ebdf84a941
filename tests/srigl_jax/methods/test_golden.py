"""Agreement with the authors' code, on vectors made by running it."""

import pathlib
import warnings

import numpy as np
import pytest

from srigl_jax.layers import Axes
from srigl_jax.methods.srigl import srigl_update
from tests import golden_adapter as adapter


def vectors(oracle, name):
  if not (pathlib.Path(oracle.HERE) / f"{name}.npz").is_file():
    pytest.skip(f"no {name}.npz among the golden vectors")
  return oracle.load(name)


def test_srigl(oracle):
  report = oracle.check_srigl(adapter.update)
  assert report.ok, str(report)


def test_rigl(oracle):
  report = oracle.check_rigl(adapter.rigl_update)
  assert report.ok, str(report)


def test_allocations(oracle):
  with warnings.catch_warnings(action="ignore"):  # of dense layers beyond the target
    report = oracle.check_allocations(adapter.allocate, adapter.fan_in, rtol=0)
  assert report.ok, str(report)


def test_schedule(oracle):
  report = oracle.check_schedule(adapter.drop_fraction, adapter.fires, adapter.accumulates, rtol=0)
  assert report.ok, str(report)


def test_trajectories(oracle):
  vectors(oracle, "trajectory")
  report = oracle.check_trajectory(adapter.update, adapter.rigl_update)
  assert report.ok, str(report)


def test_what_the_authors_code_refuses_is_refused(oracle):
  index, _ = vectors(oracle, "cases")
  assert index["error_cases"]
  for case in index["error_cases"]:
    zeros = np.zeros(case["shape"], np.float32)
    with pytest.raises(ValueError, match="at least one connection for each neuron"):
      adapter.update(zeros, zeros, zeros != 0, case["sparsity"], 0.3, 0.3, "sparse")


def test_torch_layout_by_axes(oracle):
  """The same masks without transposing anything: the axes say that neurons come first."""
  index, arrays = vectors(oracle, "cases")
  cases = [case for case in index["cases"] if case["exact"] and case["min_salient"]]
  linear = next(case for case in cases if len(case["shape"]) == 2)
  conv = next(case for case in cases if len(case["shape"]) == 4)
  for case in (linear, conv):
    get = lambda name, case=case: arrays[f"{case['id']}/{name}"]
    axes = Axes(neurons=(0,), spatial=tuple(range(2, len(case["shape"]))))
    new_mask = srigl_update(
      get("weight"),
      get("grad"),
      get("mask"),
      budget=int(np.prod(case["shape"]) * (1 - case["sparsity"])),
      drop_fraction=case["drop_fraction"],
      gamma_sal=case["min_salient"],
      salient_base={"sparse": "constant_fan_in", "dense": "dense_fan_in"}[case["threshold_base"]],
      axes=lambda *_, axes=axes: axes,
    )
    np.testing.assert_array_equal(new_mask, get("new_mask"))


def test_adapter_is_usable_as_the_checker_wants(oracle, monkeypatch):
  """`python oracle_check.py tests.golden_adapter:update` from the repository's root."""
  monkeypatch.chdir(pathlib.Path(__file__).parents[3])
  assert oracle._resolve("tests.golden_adapter:update") is adapter.update
