"""The microbenchmarks: methods agree and the command leaves its files; never its numbers."""

import csv
import json
import os
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from experiments import tables
from experiments.benchmarks.comparison import results
from experiments.benchmarks.kernels import (
  fit_cost_model,
  fit_small_layers,
  layers,
  measurement,
  report,
  small_models,
  targets,
  twins,
)
from experiments.benchmarks.kernels.baselines import baselines
from srigl_kernels import cost_model
from srigl_kernels.problems import Problem, make_problem
from tests.helpers import table_cells

SMALL = layers.Shape(48, 40, 30)


@pytest.mark.parametrize("name", layers.SHAPES)
def test_the_papers_fan_ins(name):
  expected = {"vit_ffn_up": [412, 206, 103, 21], "vit_ffn_down": [614, 307, 154, 31]}[name]
  found = [layers.fan_in(layers.SHAPES[name], s) for s in (0.8, 0.9, 0.95, 0.99)]
  assert found == expected


def test_shapes_are_read():
  assert layers.parse_shape("8x16") == (8, 16, 16)
  assert layers.parse_shape("8x16x5") == (8, 16, 5)
  for text in ("8", "8x", "8x16x17", "0x4", "axb", "1x2x3x4", "-8x16"):
    with pytest.raises(ValueError, match="must be inputs x outputs"):
      layers.parse_shape(text)
  with pytest.raises(ValueError, match="cannot hold the weights"):
    layers.fan_in(layers.Shape(10, 100, 10), 0.5)


def test_layers_of_a_model_file(tmp_path):
  path = tmp_path / "model.safetensors"
  _, dense = make_problem(Problem(12, 7, 5, 3, ()), bias=False)
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 3, 2, 4)).astype(np.float32)
  conv = sx.condense(kernel, np.ones(kernel.shape, bool), np.ones(4, np.float32))
  sx.save_condensed(path, {"a": dense, "b/conv": conv})
  first, second = layers.model_layers(str(path), [])
  assert first.name == "model:a" and not first.bias.any() and first.sparsity == 0.821
  np.testing.assert_array_equal(first.kernel, sx.expand(dense)[0])
  np.testing.assert_array_equal(second.kernel, kernel.reshape(18, 4))
  assert [layer.name for layer in layers.model_layers(str(path), ["b/conv"])] == ["model:b/conv"]
  with pytest.raises(ValueError, match=r"no layer 'c'; it has a, b/conv"):
    layers.model_layers(str(path), ["c"])


AVAILABLE = [name for name, method in baselines().items() if not method.missing]


@pytest.mark.parametrize("batch", [1, 3, 70])
@pytest.mark.parametrize("name", AVAILABLE)
def test_methods_agree(name, batch):
  layer = layers.random_layer("small", SMALL, 0.8)
  method = baselines((name,))[name]
  call = method.make(layer)
  x = np.random.default_rng(1).normal(size=(batch, 48)).astype(np.float32)
  want, tolerance = measurement.expected(layer, x)
  for _ in range(2):  # no call may change what the next one sees
    measurement.check(name, call(method.convert(x)), want, tolerance)
  assert np.asarray(call(method.convert(x))).dtype == np.float32


def test_the_floor_is_a_call_of_the_bias_alone():
  layer = layers.random_layer("small", SMALL, 0.8)
  assert "floor" not in baselines()
  call = baselines(("floor",))["floor"]
  if call.missing:
    pytest.skip(call.missing)
  np.testing.assert_array_equal(call.make(layer)(jnp.ones((2, 48))), np.stack([layer.bias] * 2))


def test_unknown_methods():
  with pytest.raises(ValueError, match="There is no method 'fast': give some of dense, "):
    baselines(("fast",))


def test_a_wrong_result_is_found():
  layer = layers.random_layer("small", SMALL, 0.8)
  x = np.random.default_rng(1).normal(size=(100, 48)).astype(np.float32)
  want, tolerance = measurement.expected(layer, x)
  right = x @ layer.kernel + layer.bias
  measurement.check("right", right, want, tolerance)
  for row in (0, 64, 99):
    wrong = right.copy()
    wrong[row, 7] += 0.01
    with pytest.raises(RuntimeError, match="'wrong' computes something else"):
      measurement.check("wrong", wrong, want, tolerance)
  with pytest.raises(RuntimeError, match="another shape"):
    measurement.check("wrong", right[:, 1:], want, tolerance)


def measured(batches, effort, **changes):
  """Measurements of a small layer and of methods that are all there."""
  found = []
  methods = {k: v._replace(**changes) for k, v in baselines(("dense", "scipy_csr")).items()}
  layer = layers.random_layer("small", SMALL, 0.8)
  measurement.measure_layer(layer, batches, methods, threads=2, effort=effort, done=found.append)
  return found


def test_what_is_too_slow_or_too_large_is_left_out_and_says_so():
  (one, two) = measured([2, 1], measurement.Effort(rounds=2, limit=0))
  assert (one.batch, two.batch) == (1, 2) and not one.seconds and not two.seconds
  assert all("at batch 1, above 0 s" in why for why in two.skipped.values())
  (one,) = measured([1], measurement.Effort(rounds=2), temporary=lambda layer: 2**40)
  assert one.skipped["dense"] == "its temporary would have 1048576 MiB"
  (one,) = measured([1], measurement.Effort(rounds=2), missing="it is not here")
  assert one.skipped == {"dense": "it is not here", "scipy_csr": "it is not here"}


def test_rounds_are_fewer_where_they_take_long():
  (one,) = measured([1], measurement.Effort(rounds=6, budget=0.0, warm_up=0, spend=0))
  assert {len(times) for times in one.seconds.values()} == {3}
  (one,) = measured([1], measurement.Effort(rounds=6, budget=9, warm_up=0, spend=0))
  assert {len(times) for times in one.seconds.values()} == {6}


def measurement_of(batch=256, threads=4, **seconds):
  times = {name: [value, 2 * value] for name, value in seconds.items()}
  sizes = (768, 3072, 1145, 206, 0.9)
  return measurement.Measurement("vit_ffn_up", *sizes, batch, threads, times, {}, "cpu", "because")


def test_targets_of_the_papers_layers():
  one = measurement_of(dense=12.0, structured=6.0, cpu=2.0, cpu_avx2=4.0, scipy_csr=50.0, bcsr=30.0)
  rows = {row.name.partition(": ")[2]: row for row in targets.comparisons([one])}
  found = {name: (row.ratio, row.target, row.is_met) for name, row in rows.items()}
  assert found["dense / cpu"] == (6.0, "at least 5.5", True)
  assert found["best CSR (bcsr) / cpu"] == (15.0, "at least 20", False)
  assert found["structured / cpu"] == (3.0, "at least 2.5", True)
  assert found["cpu_avx2 / cpu"] == (2.0, "at most 2.5", True)
  rows = targets.comparisons([measurement_of(threads=1, dense=12.0, cpu=2.0)])
  assert (rows[0].target, rows[0].is_met) == ("at least 5", True)
  other = targets.comparisons([measurement_of(dense=12.0, cpu=2.0)._replace(layer="other")])
  assert other[0].ratio == 6.0 and not other[0].target
  assert not targets.comparisons([measurement_of(batch=2, dense=12.0)])


def test_autos_loss_is_its_worst_measurement():
  good, bad = measurement_of(cpu=2.0, xla=4.0), measurement_of(batch=64, cpu=3.0, xla=2.0)
  (row,) = targets.worst([good, bad], "auto", lambda one: one.choice)
  assert row.ratio == 1.5 and not row.is_met
  assert row.name == "auto, worst of 2 measurements (vit_ffn_up 90 %, batch 64, 4 threads: cpu)"
  assert targets.loss(bad) == 1.5 and targets.loss(good) == 1.0
  too_slow = measurement_of(xla=2.0)._replace(skipped={"cpu": "slow"})
  (row,) = targets.worst([too_slow], "auto", lambda one: one.choice)
  assert row.ratio == 1e6 and not row.is_met
  assert not list(targets.worst([measurement_of(xla=2.0)], "auto", lambda one: one.choice))


def test_reports(tmp_path):
  group = [
    measurement_of(cpu=1e-6, dense=5e-6),
    measurement_of(batch=1, cpu=1e-6)._replace(skipped={"xla": "why not"}),
  ]
  text = "\n\n".join(report.layer_tables(group))
  assert "vit_ffn_up 768→3072, 90 % sparse (1145 active neurons of fan-in 206), 4 threads" in text
  assert "xla is left out: why not" in text and "auto takes" in text
  lines = list(csv.DictReader(report.as_csv(group).splitlines()))
  assert [line["method"] for line in lines] == ["cpu", "dense", "cpu", "xla"]
  assert lines[1]["median_us"] == "7.500" and lines[1]["rounds"] == "2"
  rows = targets.comparisons(group)
  result = results(rows, "the command", every_round=False) | {"environment": {"machine": "this"}}
  report.publish(tmp_path / "published.json", group, rows, result)
  published = json.loads((tmp_path / "published.json").read_text())
  assert published["command"] == "the command" and published["environment"] == {"machine": "this"}
  cells = table_cells(published["table"])
  assert ["dense", "7.5", "-"] in cells and cells[0][1] == "ratio (quartiles)"
  assert table_cells(published["headline"])[1:] == [
    ["vit_ffn_up 90 %, batch 256, 4 threads", "7.5 µs", "1.5 µs", "5.0 (5.0–5.0)"]
  ]
  page = "<!-- results: published.headline -->\n<!-- /results -->"
  assert published["headline"] in tables.fill(page, tmp_path)
  with pytest.raises(ValueError, match="'footer' of the results 'published', which has none"):
    tables.fill(page.replace("headline", "footer"), tmp_path)


def test_constants_are_found_again():
  rates = cost_model.Rates(1e-5, 3e-11, 2e-12, 1e-10, 2e-10)
  measured = []
  for sizes in (
    cost_model.Sizes(768, 3072, 1145, 206),
    cost_model.Sizes(64, 640, 100, 30),
    cost_model.Sizes(9, 9, 9, 4),
  ):
    for batch in (1, 16, 256, 1024):
      terms = cost_model.terms("xla", sizes, batch)
      measured.append((sizes, batch, sum(a * b for a, b in zip(rates, terms, strict=True))))
  np.testing.assert_allclose(fit_cost_model.fit("xla", measured), rates, rtol=1e-3)


def test_small_layers_are_measured(monkeypatch):
  for name, value in {"_SHAPES": ((8, 12),), "_SPARSITIES": (0.5,), "_ROWS": (1, 2)}.items():
    monkeypatch.setattr(fit_small_layers, name, value)
  monkeypatch.setattr(fit_small_layers, "_BLOCKS", 1)
  measured = fit_small_layers.measure()
  assert all(len(calls) == 2 for calls in measured.values())
  report = fit_small_layers.report(measured)
  assert '"dense": Rates(' in report and "of 2 layers; worst" in report


def test_what_slows_all_backends_of_a_call_is_taken_out():
  measured, slow = {}, {}
  shapes = [cost_model.Sizes(768, 3072, 1145, 206), cost_model.Sizes(64, 640, 100, 30)]
  for name in ("dense", "structured", "xla"):
    calls = [
      (sizes, n, cost_model.estimate(name, sizes, n)) for sizes in shapes for n in (1, 16, 256)
    ]
    measured[name] = calls
    slow[name] = [(sizes, n, t * (3 if i == 1 else 1)) for i, (sizes, n, t) in enumerate(calls)]
  _, current = fit_cost_model.fit_all(slow)
  for name, calls in current.items():
    factors = [t / was for (*_, t), (*_, was) in zip(calls, measured[name], strict=True)]
    assert max(factors) < 1.5 * min(factors)


@pytest.mark.slow
def test_small_networks_are_compared(monkeypatch):
  monkeypatch.setattr(small_models, "NETWORKS", {"MLP": small_models.NETWORKS["digits MLP"]})
  monkeypatch.setattr(small_models, "_SPARSITIES", (0.9,))
  (row,) = small_models.rows((2,), rounds=1)
  assert row.name == "MLP, 90% sparse, batch 2: dense / condensed"


def test_twins_are_compared():
  tiny = {"a": layers.Shape(24, 20, 15), "b": layers.Shape(20, 24, 24)}
  apply = lambda x, layer: layer("b", layer("a", x, "gelu"), None)
  row = twins.linear_row("tiny", tiny, apply, (1, 7, 24), at_least=1e9, rounds=2)
  assert row.name == "tiny: dense / condensed" and len(row.ratios) == 2 and not row.is_met
  wrong = (lambda x, w: x * w, jnp.float32(1)), (lambda x, w: x * w, jnp.float32(1.1))
  with pytest.raises(RuntimeError, match="the condensed output is off"):
    twins.compare_twins("wrong", *wrong, (3,), rounds=1)


def test_gradients_and_convolutions_are_compared(monkeypatch):
  """Which checks that both sides compute the same."""
  rows = list(twins.gradient_rows({"small": SMALL}, (3,), rounds=1))
  assert [row.name.split(", ")[2] for row in rows] == [
    "product of new values: dense / condensed",
    "gradient in x: dense / condensed",
    "gradient in the values: dense / condensed",
  ]
  monkeypatch.setattr(twins, "CONVOLUTIONS", {"a": (6, 8, 10, 3, 2), "b": (6, 8, 10, 1, 1)})
  names = [row.name for row in twins.convolution_rows((2,), rounds=1)]
  assert names == [f"convolution {name}, batch 2: dense / condensed" for name in "ab"]


def run(*args):
  return subprocess.run(
    [sys.executable, "-m", "kernels.benchmark", *args],
    env=os.environ | {"XLA_FLAGS": "", "NPROC": ""},
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_the_command(command, tmp_path):
  out = tmp_path / "out"
  small = ["--shape=32x48x30", "--sparsity=0.9", "--batch=1,5", "--rounds=2", "--threads=1"]
  done = run(*small, "--method=dense,structured,cpu,scipy_csr", f"--out={out}")
  assert done.returncode == 0, done.stderr
  result = json.loads((out / "benchmark.json").read_text())
  assert [one["batch"] for one in result["measurements"]] == [1, 5]
  assert {one["threads"] for one in result["measurements"]} == {1}
  assert "scipy" in result["environment"] and "--batch=1,5" in result["command"]
  assert len((out / "benchmark.csv").read_text().splitlines()) == 1 + 2 * 4
  assert (out / "32x48x30_1_threads.png").stat().st_size > 1000
  assert "32x48x30 32→48, 90.2 % sparse (30 active neurons of fan-in 5), 1 thread" in done.stdout
  code, _, errors = command("benchmark_kernels", *small, f"--out={out}")
  assert code == 2 and "holds the results of an earlier run" in errors


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
  "args, message",
  [
    (["--layer=vit"], "There is no layer 'vit'"),
    (
      ["--publish", "--models"],
      "--publish measures everything, or with --quick what has targets: leave out --models.",
    ),
  ],
)
def test_bad_flags_are_told_before_anything_is_measured(command, args, message):
  code, _, errors = command("benchmark_kernels", *args)
  assert code == 2 and message in errors
