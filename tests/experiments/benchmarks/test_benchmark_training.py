"""The benchmark of training: its baselines do the same work; never its numbers."""

import functools
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
from experiments.benchmarks.training_problems import resnet50_shapes, vit


def test_resnet50_is_resnet50():
  shapes = resnet50_shapes(quick=False)
  assert len(shapes) == 54
  assert sum(int(np.prod(shape)) for shape in shapes.values()) == 25_502_912
  assert shapes["layer1/0/conv3/kernel"] == (1, 1, 64, 256)
  assert shapes["layer4/0/shortcut/kernel"] == (1, 1, 1024, 2048)
  assert shapes["head/kernel"] == (2048, 1000)


def test_vit_has_the_weights_of_vit_b16():
  params = jax.eval_shape(lambda: vit(1, quick=False).params)
  assert len(params) == 50
  assert sum(leaf.size for leaf in params.values()) == 86_292_480


@pytest.mark.parametrize("select", [benchmark.ARGSORT, benchmark.SORT], ids=["argsort", "sort"])
@pytest.mark.parametrize("gamma_sal", [0.0, 0.9])
def test_sorting_gives_the_same_masks(select, gamma_sal):
  shape, budget = (3, 3, 4, 12), 61
  keys = jax.random.split(jax.random.key(7), 3)
  # Magnitudes that differ widely among neurons: some are ablated, some over-full.
  scale = jnp.exp(jax.random.normal(keys[0], (1, 1, 1, shape[-1])))
  weights, grads = (jax.random.normal(key, shape) * scale for key in keys[1:])
  layers = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
  mask = sx.init_masks(jax.random.key(1), sx.allocate(layers, fan_in=5))["kernel"]
  weights = jnp.where(mask, weights, 0)
  settings = {"budget": budget, "drop_fraction": 0.25, "gamma_sal": gamma_sal}
  updates = (
    functools.partial(sx.srigl_update, **settings),
    functools.partial(benchmark.sorting_update, **settings, select=select),
  )
  want, got = (jax.jit(update)(weights, grads, mask) for update in updates)
  np.testing.assert_array_equal(got, want)
  neurons = np.asarray(want).any((0, 1, 2)).sum()
  assert neurons < shape[-1] if gamma_sal == 0.9 else neurons > 0


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
