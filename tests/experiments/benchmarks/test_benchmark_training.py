"""The benchmark of training: its peers do the same work and the command runs; never its numbers."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from experiments import benchmark_training as benchmark
from experiments.benchmarks import timing


def test_resnet50_is_resnet50():
  shapes = benchmark.resnet50_shapes(quick=False)
  assert len(shapes) == 54
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == 25_502_912
  assert shapes["layer1/0/conv3/kernel"] == (1, 1, 64, 256)
  assert shapes["layer4/0/shortcut/kernel"] == (1, 1, 1024, 2048)
  assert shapes["head/kernel"] == (2048, 1000)


def test_vit_has_the_weights_of_vit_b16():
  params = jax.eval_shape(lambda: benchmark.vit(1, quick=False).params)
  assert len(params) == 50
  assert sum(leaf.size for leaf in params.values()) == 86_292_480


@pytest.mark.parametrize("select", [benchmark.ARGSORT, benchmark.SORT], ids=["argsort", "sort"])
@pytest.mark.parametrize("gamma_sal", [0.0, 0.3, 0.9])
def test_sorting_gives_the_same_masks(select, gamma_sal):
  shape, budget = (3, 3, 4, 12), 61
  keys = jax.random.split(jax.random.key(7), 3)
  # Magnitudes that differ widely among neurons: some are ablated, some over-full.
  scale = jnp.exp(jax.random.normal(keys[0], (1, 1, 1, shape[-1])))
  weights, grads = (jax.random.normal(key, shape) * scale for key in keys[1:])
  layers = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
  mask = sx.init_masks(jax.random.key(1), sx.allocate(layers, fan_in=5))["kernel"]
  weights = jnp.where(mask, weights, 0)
  want = sx.srigl_update(
    weights, grads, mask, budget=budget, drop_fraction=0.25, gamma_sal=gamma_sal
  )
  got = benchmark.sorting_update(
    weights, grads, mask, budget=budget, drop_fraction=0.25, gamma_sal=gamma_sal, select=select
  )
  np.testing.assert_array_equal(got, want)
  neurons = np.asarray(want).any((0, 1, 2)).sum()
  assert neurons < shape[-1] if gamma_sal == 0.9 else neurons > 0


def test_candidates_take_turns():
  calls = []
  candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
  times = timing.interleave("turns", candidates, repeats=3)
  assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
  assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_candidates_may_have_fewer_rounds():
  calls = []
  candidates = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
  done = []
  times = timing.take_turns(candidates, rounds={"a": 3, "b": 1}, after_round=done.append)
  assert times == {"a": [1, 3, 4], "b": [2]} and done == [1, 2, 3]


def test_inputs_take_turns_and_warm_up_does_not_count():
  given = []
  timing.call_seconds(given.append, "abc", warm_up=0, spend=60, most=4)
  assert "".join(given) == "c" + "abca"
  given.clear()
  assert timing.call_seconds(given.append, "abc", warm_up=0, spend=0, most=4) < 60
  assert "".join(given) == "ca"


def test_rows_know_their_targets():
  row = timing.Row("name", [3.0, 1.0, 2.0], {"a": [1.0]})
  assert (row.ratio, row.target, row.is_met) == (2.0, "", None)
  assert row._replace(at_most=2.0).is_met and not row._replace(at_most=1.9).is_met
  assert row._replace(at_least=2.0).is_met and not row._replace(at_least=2.1).is_met
  assert "MISSED" in timing.format_table([row._replace(at_most=1.9)])


@pytest.mark.parametrize(
  "sections, num_rows",
  [
    (["--only=vit"], 4),
    ([], 12),
  ],
)
@pytest.mark.slow  # compiles for most of a minute
def test_the_command_runs(tmp_path, sections, num_rows):
  out = tmp_path / "results.json"
  command = [sys.executable, "-m", "experiments.benchmark_training"]
  done = subprocess.run(
    [*command, "--quick", "--repeats=1", f"--out={out}", *sections],
    env=os.environ | {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(out.read_text())
  assert results["environment"]["jax"] == jax.__version__
  assert "--quick" in results["command"]
  assert len(results["rows"]) == num_rows
  for row in results["rows"]:
    assert row["ratio"] > 0 and row["rounds"] == len(next(iter(row["seconds"].values())))
    assert row["name"] in done.stdout and row["is_met"] is None
