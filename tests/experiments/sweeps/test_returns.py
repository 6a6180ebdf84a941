"""The report of networks that act: interquartile means and curves, also from a results file."""

import json

import pytest

from experiments.sweeps.figures import sweep_figure
from experiments.sweeps.results import (
  FinishedRun,
  SweepResults,
  VariantResults,
  read_results_file,
  results_file,
)
from experiments.sweeps.returns import returns_table


@pytest.fixture
def sweep():
  kwargs = {"num_envs": 2, "num_steps": 8, "num_passes": 2}
  config = {
    "task": {"name": "ppo", "kwargs": kwargs},
    "data": {"batch_size": 8},
    "method": {"name": "srigl", "sparsity": 0.9},
  }
  score = {"name": "mean_return", "label": "return", "percent": False, "lower_is_better": False}

  def variant(name, axes, finals):
    tests = lambda final: [{"step": 4, "mean_return": 1.0}, {"step": 8, "mean_return": final}]
    results = lambda final: {"score": {**score, "last": final, "best": final}, "environment": {}}
    runs = [FinishedRun(i, results(final), tests(final)) for i, final in enumerate(finals)]
    return VariantResults(name, {"method": name} | axes, config, runs)

  variants = [
    variant("dense", {}, [9.0, 9.0, 9.0, 9.0]),
    variant("srigl_90", {"sparsity": 0.9}, [1.0, 2.0, 3.0, 100.0]),
    variant("srigl_95", {"sparsity": 0.95}, []),
  ]
  return SweepResults("Returns", "returns", "command", variants, 4, {}, {}, [])


def test_a_row_for_each_variant_with_runs(sweep):
  table = returns_table(sweep)
  cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()]
  assert cells[2] == ["dense", "4", "32", "9.0 (9.0 to 9.0)", "5.0 (5.0 to 5.0)"]
  assert cells[3][3].startswith("2.5 (1.0 to ") and len(cells) == 4


def test_a_results_file_says_the_same(sweep, tmp_path):
  path = tmp_path / "results.json"
  path.write_text(json.dumps(results_file(sweep, "table")))
  assert returns_table(read_results_file(path)) == returns_table(sweep)


def test_a_figure_is_drawn(sweep, tmp_path):
  assert sweep_figure(sweep, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
