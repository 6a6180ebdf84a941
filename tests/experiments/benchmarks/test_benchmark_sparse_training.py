"""The benchmark of sparse training: its engines do the same work, its tables say what they may."""

import importlib
import json
import subprocess
import sys

import pytest

from experiments.benchmarks.comparison import comparison_table
from experiments.benchmarks.sparse_training import cases, figure, measurement, report, targets
from experiments.benchmarks.sparse_training.engine import STEP, UPDATE_STEP
from experiments.benchmarks.sparse_training.measurement import Measurement

TINY = cases.Case("tiny", "mlp", (24, 16, 16), 8, 0.75)


def measured(case, seconds, update=2.0):
  times = {name: {STEP: [s, s]} for name, s in seconds.items()}
  if "condensed" in times:
    times["condensed"][UPDATE_STEP] = [update, update]
  state = {"dense": 1000, "condensed": 130}
  return Measurement(case, times, state, dict.fromkeys(seconds, 5_000_000), {})


@pytest.mark.slow
def test_masked_and_condensed_training_are_the_same():
  jax_engines = importlib.import_module("experiments.benchmarks.sparse_training.jax_engines")
  worker = importlib.import_module("experiments.benchmarks.sparse_training.worker")
  engines = {"masked": jax_engines.masked(TINY), "condensed": jax_engines.condensed(TINY)}
  losses = {name: worker.first_steps(engine) for name, engine in engines.items()}
  assert len(losses["masked"]) == 4
  measurement.check_losses(TINY, losses)
  with pytest.raises(RuntimeError, match="at step 3"):
    measurement.check_losses(TINY, losses | {"masked": [*losses["masked"][:3], 0.5]})
  state = {name: engine.state_bytes for name, engine in engines.items()}
  assert state["condensed"] < 0.5 * state["masked"]
  assert worker.time_call(engines["condensed"], UPDATE_STEP) > 0


@pytest.mark.slow
def test_heads_learn_their_batch():
  heads = importlib.import_module("experiments.benchmarks.sparse_training.heads")
  worker = importlib.import_module("experiments.benchmarks.sparse_training.worker")
  case = cases.head(300)
  engines = {"dense": heads.dense(case), "condensed": heads.condensed(case)}
  for engine in engines.values():
    losses = worker.first_steps(engine)
    assert losses[3] < losses[0]
  assert engines["condensed"].state_bytes < 0.1 * engines["dense"].state_bytes


def test_rows_are_held_against_targets():
  target = cases.TARGETS[0]
  one = measured(target.case, {"dense": 0.8, "masked": 0.9, "condensed": 0.1, "sparselab": 0.2})
  rows = {row.name.rpartition(": ")[2]: row for row in targets.comparisons([one])}
  assert rows["dense / condensed"].is_met is True
  assert rows["sparselab / condensed"].is_met is False
  assert rows["masked / condensed"].is_met is None
  [update] = [row for name, row in rows.items() if "topology update" in name]
  assert update.ratio == pytest.approx(1.9 / (100 * 0.1)) and update.is_met is False
  [state] = [row for name, row in rows.items() if "bytes" in name]
  assert state.is_met is False  # 0.13
  assert "**missed**" in comparison_table(list(rows.values()))


def test_says_where_dense_is_better():
  slow = measured(cases.mlp(512, 4), {"dense": 1.0, "condensed": 2.0})
  fast = measured(cases.mlp(2048, 4), {"dense": 3.0, "condensed": 1.0})
  assert report.dense_is_better([slow, fast]) == (
    "Dense is the better choice where dense / condensed is below 1: MLP 3 × 512, 90 %, batch 4 "
    "(0.50)."
  )
  assert "never faster" in report.dense_is_better([fast])
  assert "3.00" in report.steps_table([slow, fast])


def test_figure_is_drawn_from_the_file(tmp_path):
  grid = [measured(cases.mlp(64, 8, s), {"dense": 1, "condensed": 1 - s}) for s in (0.5, 0.9)]
  results = json.loads(json.dumps({"grids": {"sparsity": list(map(report.as_json, grid))}}))
  figure.draw(results, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 10_000
  with pytest.raises(ValueError, match="no grid over sparsity"):
    figure.draw({}, tmp_path / "figure.png")


def test_grids_vary_one_quantity():
  grids = cases.grids(cores=6)
  assert list(grids["threads"]) == [1, 2, 4, 6]
  assert all(len({case._replace(name="") for case in grid.values()}) == len(grid)
             for grid in grids.values())  # fmt: skip


@pytest.mark.slow
def test_command_measures_in_processes_of_their_own(tmp_path):
  script = f"""
from experiments.benchmarks.sparse_training import cases
tiny = cases.Case{tuple(TINY)!r}
cases.TARGETS = (cases.Target(tiny, dense=1e9),)
cases.HEAD = tiny._replace(kind="head", sizes=(24, 160))
import runpy
runpy.run_module("experiments.benchmark_sparse_training", run_name="__main__")
"""
  out = tmp_path / "results.json"
  arguments = ["--only=targets", "--rounds=2", f"--out={out}", "--check"]
  command = [sys.executable, "-c", script, *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 1, done.stderr  # the target is missed
  results = json.loads(out.read_text())
  assert set(results["targets"][0]["seconds"]) >= {"dense", "masked", "condensed"}
  assert "dvalues" in results["parts"] and "Missed targets" in done.stdout
