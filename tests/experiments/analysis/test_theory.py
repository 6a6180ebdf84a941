"""The simulation of output norms against its closed form."""

import json

import numpy as np
import pytest

from experiments import tables
from experiments.common.files import read_json
from experiments.theory import (
  Case,
  Study,
  simulate,
  squared_norms,
  write_results,
)
from srigl_jax.analysis.norm_variance import MASKS, output_norm_variance
from tests.helpers import mostly_slow, table_cells

TINY = Study(
  width=(3,),
  fan_in=(1, 6),
  depth=2,
  n=6,
  k=2,
  n_deep=6,
  k_deep=4,
  num_samples=400,
  num_deep=400,
)


CASES = [(mask, "bernoulli") for mask in MASKS] + [("constant_fan_in", "relu")]
CASES = mostly_slow(CASES, {("constant_fan_in", "relu")})


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_simulation_agrees_with_the_closed_form(case):
  mask, gates = case
  points = simulate(Case(mask, 8, 2, 2, gates), 2**15, seed=3)
  assert [p.depth for p in points] == [1, 2]
  for p in points:
    assert p.form == output_norm_variance(mask, 8, 2, depth=p.depth)
    assert 0 < p.standard_error < 0.1 * p.form
    assert abs(p.z_score) < 4.5


def test_simulation_tells_the_masks_apart():
  """The forms of the other masks are outside of what the simulation leaves open."""
  (point,) = simulate(Case("constant_fan_in", 8, 1), 2**15)
  other = output_norm_variance("bernoulli", 8, 1)
  assert abs(point.simulated - other) > 4.5 * point.standard_error


def test_norms_are_1_on_average_and_draws_repeat():
  norms = squared_norms(Case("constant_fan_in", 4, 2, 3), 4096)
  assert norms.shape == (4096, 3) and norms.dtype == np.float32
  error = norms.std(0) / np.sqrt(len(norms))
  assert (np.abs(norms.mean(0) - 1) < 4.5 * error).all()
  again = squared_norms(Case("constant_fan_in", 4, 2, 3), 4096)
  np.testing.assert_array_equal(norms, again)
  assert (squared_norms(Case("constant_fan_in", 4, 2, 3), 4096, seed=1) != norms).any()


def test_results_file_and_figure(tmp_path, monkeypatch):
  """Of norms out of thin air: compiling every case's simulation would take most of a minute."""

  def norms(case, num_samples, *, seed):
    return np.random.default_rng(seed).gamma(9, 1 / 9, (num_samples, case.depth))

  monkeypatch.setattr("experiments.theory.squared_norms", norms)
  results = write_results(TINY, tmp_path / "theory.json", tmp_path / "theory.png", command="this")
  assert (tmp_path / "theory.png").read_bytes().startswith(b"\x89PNG")
  assert read_json(tmp_path / "theory.json") == json.loads(json.dumps(results))
  assert {name: len(points) for name, points in results["points"].items()} == {
    "width": 3,
    "fan_in": 3 * 2,
    "depth": 3 * 2 * 2,
  }
  assert results["agreement"]["num_points"] == 21
  page = tables.fill("<!-- results: theory -->\n<!-- /results -->", tmp_path)
  assert results["table"] in page and "Printed by `this`" in page
  # Every setting has a row and every mask a column.
  rows = table_cells(results["table"])
  assert len(rows) == 1 + 1 + 2 + 2 * 2
  assert all(len(row) == 7 for row in rows)
  assert rows[-1][:4] == ["6", "4", "2", "ReLU"]
  assert f"{output_norm_variance('constant_fan_in', 6, 4, depth=2):.1f}" in "".join(rows[-1])
