"""Reports of runs and sweeps: the numbers, the tables, the figures."""

import json
import math
import re
import shutil

import numpy as np
import pytest

from configs.sweeps.sparsity import get_config as sparsity_sweep
from experiments.common.files import read_json, write_json
from experiments.common.old_configs import converted
from experiments.reports import figures
from experiments.reports.run_report import write_run_report
from experiments.sweeps import plots
from experiments.sweeps.report import write_sweep_report
from experiments.sweeps.results import mean_and_interval, read_sweep_results, results_file
from experiments.sweeps.spec import write_record
from experiments.workdir.metrics import read_metrics

PNG = b"\x89PNG\r\n"


def images_of(path):
  """The images that a Markdown page shows; fails if one is not there."""
  names = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text())
  for name in names:
    content = (path.parent / name).read_bytes()
    assert content.startswith(PNG) and len(content) > 5000
  return names


# ---- intervals ---------------------------------------------------------------------------------


def test_interval_of_two_values():
  """Mean 3, standard error 1, and t = 12.706 with one degree of freedom."""
  mean, half_width = mean_and_interval([2.0, 4.0])
  assert mean == 3.0
  assert half_width == pytest.approx(12.7062, abs=1e-4)


def test_interval_of_five_values():
  """Mean 3, variance 10 / 4, standard error sqrt(2.5 / 5), t = 2.77645 with four degrees."""
  mean, half_width = mean_and_interval([1.0, 2.0, 3.0, 4.0, 5.0])
  assert mean == 3.0
  assert half_width == pytest.approx(2.77645 * math.sqrt(0.5), abs=1e-5)


def test_interval_of_equal_values_and_of_one():
  assert mean_and_interval([0.5, 0.5, 0.5]) == (0.5, 0.0)
  mean, half_width = mean_and_interval([0.5])
  assert mean == 0.5 and math.isnan(half_width)


# ---- runs --------------------------------------------------------------------------------------


def test_report_of_a_run(finished_run):
  workdir, results = finished_run
  text = (workdir / "report.md").read_text()
  assert text.startswith("# tiny\n")
  assert f"test accuracy {results['test_accuracy']:.2%}" in text
  assert f"sparsity {results['sparsity']:.2%}" in text
  assert results["table"] in text and "hidden/0/kernel" in results["table"]
  assert images_of(workdir / "report.md") == ["figures/training.png", "figures/topology.png"]
  assert "The ITOP rate\n(in-time overparameterization" in text and "Density is the share" in text


def copy_of(finished_run, tmp_path, *names):
  workdir = tmp_path / "copy"
  workdir.mkdir()
  for name in names:
    shutil.copy(finished_run[0] / name, workdir / name)
  return workdir


def test_a_report_can_be_made_again_from_the_records(finished_run, tmp_path):
  workdir = copy_of(finished_run, tmp_path, "config.json", "metrics.jsonl", "results.json")
  path = write_run_report(workdir)
  assert path.read_text() == (finished_run[0] / "report.md").read_text()
  assert len(images_of(path)) == 2


def test_report_of_an_unfinished_run(finished_run, tmp_path):
  workdir = copy_of(finished_run, tmp_path, "config.json", "metrics.jsonl")
  lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
  (workdir / "metrics.jsonl").write_text("".join(lines[:3]))
  text = write_run_report(workdir).read_text()
  assert re.search(r"Not finished: step 3, loss \d", text)
  assert len(images_of(workdir / "report.md")) == 2


def test_report_of_a_dense_run_has_no_figure_of_the_topology(finished_run, tmp_path):
  workdir = copy_of(finished_run, tmp_path, "config.json", "metrics.jsonl")
  lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  for line in lines:
    for layer in line.get("layers", {}).values():
      layer["density"] = 1.0
  (workdir / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
  write_run_report(workdir)
  assert images_of(workdir / "report.md") == ["figures/training.png"]


@pytest.mark.parametrize("names", [(), ("config.json",)])
def test_no_run_to_report(finished_run, tmp_path, names):
  with pytest.raises(ValueError, match="holds no run that has trained"):
    write_run_report(copy_of(finished_run, tmp_path, *names))


def test_figures_draw_the_records(finished_run, tmp_path, monkeypatch):
  """The lines of the figures are the records: steps, percent, losses, fan-ins."""
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  metrics = read_metrics(finished_run[0])
  figures.training(metrics, tmp_path / "a.png")
  figures.topology(metrics, tmp_path / "b.png")
  above, below = drawn[0].axes
  lines = {line.get_label(): line.get_xydata() for line in above.lines}
  expected = [(r["step"], 100 * r["accuracy"]) for r in metrics["test"]]
  np.testing.assert_allclose(lines["test"], expected)
  losses = {line.get_label(): line.get_xydata() for line in below.lines}
  np.testing.assert_allclose(losses["train"], [(r["step"], r["loss"]) for r in metrics["train"]])
  fan_in, active, itop = drawn[1].axes
  (legend,) = drawn[1].legends
  named = [text.get_text() for text in legend.get_texts()]
  assert named == [*metrics["topology"][0]["layers"], "T_end"]
  assert all(panel.get_title() for panel in drawn[1].axes)
  for panel in drawn[1].axes:  # T_end, where the last update was
    assert panel.collections[0].get_segments()[0][0][0] == metrics["topology"][-1]["last_update"]
  records = metrics["topology"]
  for line, path in zip(fan_in.lines, records[0]["layers"], strict=True):
    assert line.get_label() == path
    expected = [(r["step"], r["layers"][path]["fan_in"]) for r in records]
    np.testing.assert_allclose(line.get_xydata(), expected)
  expected = [100 * r["layers"]["hidden/0/kernel"]["active_neurons"] for r in records]
  assert any(np.array_equal(line.get_ydata(), expected) for line in active.lines)
  np.testing.assert_allclose(itop.lines[0].get_ydata(), [100 * r["itop_rate"] for r in records])


# ---- sweeps ------------------------------------------------------------------------------------


CONFIG = {"method": {"name": "dense", "sparsity": 0.9}}


def write_run(directory, *, accuracy, **changes):
  """What a sweep's report reads of a finished run."""
  results = {
    "test_accuracy": accuracy,
    "best_test_accuracy": 1.0,
    "sparsity": 0.9,
    "active_neurons": 0.5,
    "itop_rate": 0.25,
    "inference_flops": 0.125,
    "training_flops": 0.375,
    "steps": 1000,
    "environment": {"python": "3.11"},
    "layers": [{"path": "x/kernel", "density": 0.5, "active_neurons": 2, "num_neurons": 4}],
  }
  write_json(directory / "results.json", results | changes)
  write_json(directory / "config.json", CONFIG)
  test = {"kind": "test", "step": 8, "accuracy": accuracy, "loss": 0.5}
  (directory / "metrics.jsonl").write_text(json.dumps(test) + "\n")


def write_sweep(directory, variants, seeds, study="methods", axes=None):
  axes = axes or {}
  entry = lambda v: {"seeds": seeds, "config": CONFIG, "axes": {"method": v} | axes.get(v, {})}
  write_json(
    directory / "sweep.json",
    {
      "name": "A comparison",
      "study": study,
      "variants": {v: entry(v) for v in variants},
      "command": "python -m x",
    },
  )


def rows_of(table):
  """The cells of a Markdown table by its first column; every line is equally wide."""
  lines = table.splitlines()
  assert len({len(line) for line in lines}) == 1
  header, rule, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
  assert all(re.fullmatch(r"-+:?", cell) for cell in rule)
  return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def test_table_of_a_sweep(tmp_path):
  write_sweep(tmp_path, ["dense", "srigl"], [0, 1])
  write_run(tmp_path / "dense" / "seed0", accuracy=0.90, sparsity=0.0, active_neurons=1.0)
  write_run(tmp_path / "dense" / "seed1", accuracy=0.92, sparsity=0.0, active_neurons=1.0)
  write_run(tmp_path / "srigl" / "seed0", accuracy=0.75)
  path, table = write_sweep_report(tmp_path)
  rows = rows_of(table)
  assert list(rows) == ["dense", "srigl"]
  assert rows["dense"]["seeds"] == "2"
  assert rows["dense"]["test accuracy (%)"] == "91.00 ± 12.71"  # standard error 1, t = 12.706
  assert rows["dense"]["sparsity (%)"] == "0.0"
  assert rows["srigl"] == {
    "seeds": "1",
    "test accuracy (%)": "75.00",
    "best (%)": "100.00",
    "sparsity (%)": "90.0",
    "active neurons (%)": "50.0",
    "ITOP rate": "0.250",
    "inference FLOPs": "0.125",
    "FLOPs of a step": "0.375",
    "steps": "1000",
  }
  text = path.read_text()
  assert text.startswith("# A comparison\n") and table in text
  assert "1 runs are not finished." in text
  assert images_of(path) == ["figures/comparison.png"]


def test_a_sweeps_report_has_its_own_runs_only(tmp_path):
  """Not those of variants and seeds that were in it once."""
  write_sweep(tmp_path, ["a"], [0, 1])
  for variant, seed in (("a", 0), ("a", 1), ("a", 2), ("b", 0)):
    write_run(tmp_path / variant / f"seed{seed}", accuracy=0.5)
  path, table = write_sweep_report(tmp_path)
  assert rows_of(table).keys() == {"a"}
  assert rows_of(table)["a"]["seeds"] == "2"
  assert "not finished" not in path.read_text()


def test_methods_against_sparsity(tmp_path):
  """What has no sparsity comes first; a place without a run stays empty."""
  axes = {
    "dense": {},
    "rigl90": {"method": "RigL", "sparsity": 0.9},
    "rigl95": {"method": "RigL", "sparsity": 0.95},
    "srigl95": {"method": "SRigL", "sparsity": 0.95},
  }
  write_sweep(tmp_path, list(axes), [0, 1], study="sparsity", axes=axes)
  for i, variant in enumerate(axes):
    write_run(tmp_path / variant / "seed0", accuracy=0.1 * i)
  write_run(tmp_path / "rigl90" / "seed1", accuracy=0.12)
  path, printed = write_sweep_report(tmp_path)
  table = printed.split("\n\n")[1]
  assert table in path.read_text()
  assert rows_of(table) == {
    "dense": {"none": "0.00", "0.9": "", "0.95": ""},
    "RigL": {"none": "", "0.9": "11.00 ± 12.71", "0.95": "20.00"},
    "SRigL": {"none": "", "0.9": "", "0.95": "30.00"},
  }


def test_variants_that_differ_in_another_axis_are_kept_apart(tmp_path):
  place = lambda sparsity: {"method": "SRigL", "gamma_sal": 0.3, "sparsity": sparsity}
  axes = {"a": place(0.9), "b": place(0.95)}
  write_sweep(tmp_path, list(axes), [0], study="gamma", axes=axes)
  write_run(tmp_path / "a" / "seed0", accuracy=0.5)
  write_run(tmp_path / "b" / "seed0", accuracy=0.25)
  _, printed = write_sweep_report(tmp_path)
  assert rows_of(printed.split("\n\n")[1]) == {
    "SRigL, sparsity 0.9": {"0.3": "50.00"},
    "SRigL, sparsity 0.95": {"0.3": "25.00"},
  }
  write_sweep(tmp_path, list(axes), [0], study="gamma", axes={"a": place(0.9), "b": place(0.9)})
  with pytest.raises(ValueError, match=r"'a' and 'b' of 'A comparison' are in one place"):
    write_sweep_report(tmp_path)


@pytest.mark.parametrize("study, axis", [("gamma", "gamma_sal"), ("length", "length")])
def test_figure_of_a_study(tmp_path, study, axis):
  axes = {"a": {"method": "SRigL", axis: 0.5}, "b": {"method": "SRigL", axis: 1.0}}
  write_sweep(tmp_path, list(axes), [0, 1], study=study, axes=axes)
  for variant in axes:
    for seed in (0, 1):
      write_run(tmp_path / variant / f"seed{seed}", accuracy=0.5 + seed / 10)
  path, _ = write_sweep_report(tmp_path)
  assert images_of(path) == ["figures/study.png", "figures/comparison.png"]


def test_published_figures_are_drawn_beside(tmp_path, monkeypatch):
  """From the sweep's config, through its record, to the figure."""
  drawn = {}
  monkeypatch.setattr(plots, "accuracy", lambda *a, **kwargs: drawn.update(kwargs))
  sweep = sparsity_sweep("wrn22")
  write_record(sweep, tmp_path, "python -m x")
  record = read_json(tmp_path / "sweep.json")
  variant = tmp_path / "rigl_99"
  write_run(variant / "seed42", accuracy=0.5)
  write_json(variant / "seed42" / "config.json", record["variants"]["rigl_99"]["config"])
  write_sweep_report(tmp_path)
  assert drawn["published"]["srigl"][0.99] == pytest.approx((0.8266, 0.0089))
  assert {len(points) for points in drawn["published"].values()} == {6}
  assert sparsity_sweep("quick").published == ()


def test_figure_of_neurons(tmp_path, monkeypatch):
  drawn = {}
  draw = lambda methods, path, title: drawn.update(methods)
  monkeypatch.setattr(plots, "active_neurons", draw)
  monkeypatch.setattr(figures, "comparison", lambda *_: None)
  axes = {"a": {"method": "RigL", "sparsity": 0.9}, "b": {"method": "RigL", "sparsity": 0.95}}
  write_sweep(tmp_path, list(axes), [0], study="neurons", axes=axes)
  for variant, active in (("a", 3), ("b", 1)):
    layer = {"path": "x/kernel", "density": 0.5, "active_neurons": active, "num_neurons": 4}
    write_run(tmp_path / variant / "seed0", accuracy=0.5, layers=[layer])
  write_sweep_report(tmp_path)
  assert drawn == {"RigL": {0.9: {"x/kernel": 0.75}, 0.95: {"x/kernel": 0.25}}}


def test_results_file_of_a_study(tmp_path):
  write_sweep(tmp_path, ["a", "b"], [0, 1])
  layers = [{"path": "x/kernel", "density": 0.5, "active_neurons": 3, "num_neurons": 4}]
  write_run(tmp_path / "a" / "seed0", accuracy=0.5, layers=layers, train_seconds=7.0)
  elsewhere = {"python": "3.12"}
  write_run(tmp_path / "a" / "seed1", accuracy=0.6, environment=elsewhere)
  values = results_file(read_sweep_results(tmp_path), "the table")
  assert json.loads(json.dumps(values)) == values
  assert (values["command"], values["table"]) == ("python -m x", "the table")
  assert values["environment"] == {"python": "3.11"} and values["missing_runs"] == 2
  assert values["variants"].keys() == {"a"}
  first, second = values["variants"]["a"]["runs"]
  assert values["variants"]["a"]["config"] == converted(CONFIG)
  assert (first["seed"], first["test_accuracy"], first["train_seconds"]) == (0, 0.5, 7.0)
  assert first["layers"] == {"x/kernel": {"density": 0.5, "active_neurons": 0.75}}
  assert "environment" not in first and second["environment"] == elsewhere


def test_a_record_of_an_older_version(tmp_path):
  write_json(tmp_path / "sweep.json", {"name": "old", "variants": ["a"], "seeds": [0]})
  with pytest.raises(ValueError, match=r"of an older version: run the sweep's command again"):
    write_sweep_report(tmp_path)


def test_no_finished_run_to_compare(tmp_path):
  write_sweep(tmp_path, ["a"], [0])
  with pytest.raises(ValueError, match=r"No run in .* is finished: run the sweep again"):
    write_sweep_report(tmp_path)


def test_comparison_draws_curves_and_intervals(tmp_path, monkeypatch):
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  curve = lambda *values: [{"step": 4 * i, "accuracy": v} for i, v in enumerate(values, start=1)]
  figures.comparison(
    {"a": [curve(0.5, 0.75), curve(0.25, 0.5)], "b": [curve(1.0)]},
    {"a": (0.625, 0.1), "b": (1.0, math.nan)},
    tmp_path / "c.png",
  )
  left, right = drawn[0].axes
  assert [line.get_ydata().tolist() for line in left.lines] == [[50, 75], [25, 50], [100]]
  assert left.lines[0].get_color() == left.lines[1].get_color() != left.lines[2].get_color()
  assert [label.get_text() for label in right.get_xticklabels()] == ["a", "b"]
  assert right.containers[0].lines[0].get_ydata().tolist() == [62.5]
  (segment,) = right.containers[0].lines[2][0].get_segments()
  np.testing.assert_allclose(segment[:, 1], [52.5, 72.5])
