"""The benchmark of serving: engines compute the same, its tables and targets say what they may."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.benchmarks.comparison import comparison_table
from experiments.benchmarks.serving import cases, measurement, models, preparation, report, twins
from experiments.benchmarks.serving.engine import Task
from experiments.benchmarks.serving.measurement import Measurement
from experiments.benchmarks.serving.worker import Service


class Tiny(nnx.Module):
  def __init__(self, rngs):
    self.up, self.down = nnx.Linear(24, 32, rngs=rngs), nnx.Linear(32, 24, rngs=rngs)

  __call__ = models.FeedForward.__call__


TINY = cases.Network(Tiny, cases._floats(24), twins.feed_forward, (1,), (1,), "uniform", (0.9,))


def measured(network, seconds, callers=None):
  seconds = {batch: {k: [s, s] for k, s in times.items()} for batch, times in seconds.items()}
  return Measurement(network, seconds, {"ort-int8": 0.02}, callers or {}, {"torch": "missing"})


def test_a_network_is_served_as_it_was(tmp_path, monkeypatch):
  monkeypatch.setitem(cases.NETWORKS, "tiny", TINY)
  preparation.prepare("tiny", tmp_path, [0.9], ["condensed"])
  service = Service(Task("tiny", "condensed", 0.9, tmp_path, 1))
  assert service.error() < 1e-5
  assert service.seconds(1) > 0
  served = service.serve(batch=1, callers=2, spend=0.01)
  assert 0 < served["p50"] <= served["p99"] and served["rate"] > 0
  path = preparation.expected_path(tmp_path, 0.9)
  np.savez(path, arr_0=1.01 * np.load(path)["arr_0"])
  with pytest.raises(RuntimeError, match="condensed is off by"):
    service.error()


def test_masks_have_constant_fan_in_and_are_the_same_in_every_process():
  (model, masks), (other, _) = (models.build(Tiny, 0.9, "uniform") for _ in range(2))
  assert {path: set(np.asarray(m.sum(0)).tolist()) for path, m in masks.items()} == {
    "up/kernel": {2}, "down/kernel": {3},
  }  # fmt: skip
  assert not np.asarray(model.up.kernel[...])[~masks["up/kernel"]].any()
  same = jax.tree.map(np.array_equal, *(nnx.state(x) for x in (model, other)))
  assert all(jax.tree.leaves(same))


def test_rows_are_the_best_of_each_side():
  times = {"ort": 4.0, "jax": 9.0, "openvino-int8": 1.0, "condensed@0.9": 2.0}
  times |= {"condensed@0.95": 0.1, "condensed-int8@0.9": 0.5}
  one = measured("ResNet-50", {1: times, 2: times})
  rows = {row.name: row for row in report.comparisons([one])}
  assert {name: (row.ratio, row.is_met) for name, row in rows.items()} == {
    "ResNet-50, batch 1: best rival / condensed": (2.0, True),
    "ResNet-50, batch 1: best rival in float32 / condensed": (2.0, False),
  }
  assert "**missed**" in comparison_table(list(rows.values()))
  table = report.times_table([one])
  assert "condensed 95 %" in table and "condensed int8 90 %" in table
  assert table.splitlines()[2].split("|")[-3:-1] == ["                      2.00 ", "        2.00 "]
  assert "2.0e-02" in report.errors_table([one])
  assert report.skipped([one]) == "torch.compile left out, missing: ResNet-50."


def test_contention_is_held_against_one_caller():
  rate = lambda n: {"p50": [0.1], "p99": [0.2], "rate": [n]}
  callers = {"condensed@0.9": {1: rate(10.0), 2: rate(9.6), 8: rate(9.0)}}
  one = measured("feed-forward pair", {}, callers)
  met = [(row.ratio, row.is_met) for row in report.comparisons([one])]
  assert met == [(0.96, True), (0.9, False)]
  assert "100 ms, 200 ms, 9.6" in report.callers_table([one])
  assert measurement.from_json(json.loads(json.dumps(measurement.as_json(one)))) == one


def test_engines_that_are_missing_are_named(monkeypatch):
  rival = cases.Rival("Other", "none", 32, ("no_such_package",))
  monkeypatch.setitem(cases.ENGINES, "other", rival)
  assert measurement.why_missing("other") == "no_such_package is not installed"
  assert measurement.why_missing("condensed") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gpt", "step", "vit"])
def test_dense_twins_compute_the_same(name, tmp_path):
  reference = pytest.importorskip("onnx.reference")
  from experiments.benchmarks.serving.onnx_ops import write_onnx
  from experiments.models.functional import flatten
  from experiments.models.vit import VisionTransformer

  small = {"depth": 2, "width": 128}
  vit = lambda rngs: VisionTransformer(
    8, num_heads=2, mlp_width=64, num_classes=5, image_shape=(16, 24, 3), rngs=rngs, **small
  )
  past = np.random.default_rng(0).normal(size=(2, 2, 3, models.GPT_LENGTH - 1, 2, 64))
  make, inputs, twin = {
    "gpt": (lambda rngs: models.GPT(rngs, num_heads=2, **small), cases._tokens(3), twins.gpt),
    "step": (
      lambda rngs: models.GPTStep(rngs, num_heads=2, **small),
      (*cases._tokens(3, 1), *past.astype(np.float32)),
      twins.gpt,
    ),
    "vit": (vit, cases._floats(16, 24, 3)(3), twins.vit),
  }[name]
  model, _ = models.build(make, 0.5, "uniform")
  weights = {path: np.asarray(x) for path, x in flatten(nnx.state(model)).items()}
  given = preparation.for_rivals(TINY, 3, inputs) if name == "vit" else inputs
  path = tmp_path / "twin.onnx"
  shapes, dtypes = [x.shape for x in given], [x.dtype for x in given]
  write_onnx(lambda ops, *x: twin(ops, weights, *x), shapes, dtypes, path)
  feeds = {f"input{i}": x for i, x in enumerate(given)}
  got = reference.ReferenceEvaluator(str(path)).run(None, feeds)
  for want, y in zip(jax.tree.leaves(model(*inputs)), got, strict=True):
    np.testing.assert_allclose(y, want, atol=1e-4 * np.abs(want).max())


@pytest.mark.slow
def test_command_measures_in_processes_of_their_own(tmp_path):
  arguments = ["--only=feed-forward pair", "--batch=1", "--rounds=2", "--engine=jax"]
  arguments += ["--engine=condensed", "--callers", f"--out={tmp_path / 'results.json'}"]
  command = [sys.executable, "-m", "experiments.benchmark_serving", *arguments]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  results = json.loads((tmp_path / "results.json").read_text())
  assert set(results["measured"][0]["seconds"]["1"]) == {"jax", "condensed@0.9"}
  assert "8 callers" in results["callers"] and "feed-forward pair" in done.stdout
