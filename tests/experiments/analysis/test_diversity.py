"""Feature diversity of the runs of a tiny sweep."""

import runpy
import sys

import numpy as np
import pytest
from absl.testing import flagsaver
from flax import nnx
from ml_collections import ConfigDict

from experiments import models
from experiments.analysis.layer_features import Measured, layers_with_kernel, measure
from experiments.common.files import read_json, write_json
from experiments.diversity import (
  as_json,
  cka_by_pair,
  load_sweep,
  markdown_tables,
  rank_by_variant,
)
from experiments.sweep import run_sweep
from experiments.sweeps.plots import diversity as diversity_figure
from experiments.training import loop
from tests.experiments.tiny import devices, quick_compiler, tiny_config
from tests.helpers import table_cells

pytestmark = pytest.mark.usefixtures("one_device")

# The sweep that these look at takes longer than any other fixture.
slow = pytest.mark.slow

LAYERS = ["hidden/0", "hidden/1"]


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
  """The directory of a finished sweep of two variants and two seeds; not to be changed."""
  workdir = tmp_path_factory.mktemp("sweep")
  base = tiny_config({"train.total_epochs": 1.0})
  with base.unlocked():
    base.model.kwargs.hidden = (8, 6)
  variants = (("dense", {"method": {"name": "dense"}}), ("srigl", {"method": {"name": "srigl"}}))
  config = ConfigDict({"name": "S", "base": base, "variants": variants, "seeds": (0, 1)}).lock()
  with devices(1), quick_compiler(), pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "write_run_report", lambda workdir: None)
    run_sweep(config, workdir)
  return workdir


@pytest.fixture(scope="module")
def loaded(sweep):
  with devices(1):
    return load_sweep(sweep)


@pytest.fixture(scope="module")
def measured(loaded):
  return measure(*loaded, batch_size=13)


def by_hand(model, data):
  """What the layers of a multilayer perceptron return for the test images, in float64."""
  x = np.asarray(data.preprocess_fn(data.test_images), np.float64).reshape(26, -1)
  result = []
  for layer in model.hidden:
    kernel, bias = (np.asarray(v[...], np.float64) for v in (layer.kernel, layer.bias))
    result.append(x @ kernel + bias)
    x = np.maximum(result[-1], 0)
  return result


@slow
def test_effective_ranks_are_those_of_the_layers_outputs(loaded, measured):
  networks, data = loaded
  assert measured.runs == [("dense", 0), ("dense", 1), ("srigl", 0), ("srigl", 1)]
  assert measured.layers == LAYERS
  assert measured.num_features == [8, 6] and measured.num_examples == 26
  for model, ranks in zip(networks.values(), measured.effective_ranks, strict=True):
    for features, rank in zip(by_hand(model, data), ranks, strict=True):
      singular = np.linalg.svd(features - features.mean(0), compute_uv=False)
      shares = singular[singular > 1e-6] / singular.sum()
      assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)


@slow
def test_similarities_are_those_of_the_layers_outputs(loaded, measured):
  """In another way: U-centring as a projection, batch by batch."""
  networks, data = loaded
  outputs = [layer for model in networks.values() for layer in by_hand(model, data)]
  total = np.zeros((8, 8))
  for batch in (slice(0, 13), slice(13, 26)):
    grams = []
    for x in outputs:
      gram = x[batch] @ x[batch].T
      np.fill_diagonal(gram, 0)
      row = gram.sum(0) / 11
      gram = gram - row - row[:, None] + gram.sum() / 11 / 12
      np.fill_diagonal(gram, 0)
      grams.append(gram.ravel())
    total += np.array(grams) @ np.array(grams).T
  expected = total / np.sqrt(np.outer(np.diagonal(total), np.diagonal(total)))
  np.testing.assert_allclose(measured.cka.reshape(8, 8), expected, atol=1e-4)


@slow
def test_normalized_measures_are_those_of_neurons_of_variance_1(loaded):
  """And do not see that a neuron has weights a hundred times as large, which the others do."""
  networks, data = loaded
  run = ("dense", 0)
  model = networks[run]
  found = measure({run: model}, data, batch_size=13, normalize=True)
  for features, rank in zip(by_hand(model, data), found.effective_ranks[0], strict=True):
    spread = features.std(0)
    x = (features - features.mean(0))[:, spread > 1e-6] / spread[spread > 1e-6]
    singular = np.linalg.svd(x, compute_uv=False)
    shares = singular[singular > 1e-6] / singular.sum()
    assert rank == pytest.approx(np.exp(-(shares * np.log(shares)).sum()), rel=1e-3)
  larger = nnx.clone(model)
  layer = larger.hidden[1]
  factors = np.array([100.0, 1, 1, 1, 1, 1], np.float32)
  layer.kernel.set_value(layer.kernel[...] * factors[None])
  layer.bias.set_value(layer.bias[...] * factors)
  both = {run: model, ("larger", 1): larger}
  same = measure(both, data, batch_size=13, normalize=True)
  np.testing.assert_allclose(same.effective_ranks[1], found.effective_ranks[0], rtol=1e-4)
  np.testing.assert_allclose(same.cka[0, 1, 1, 1], 1, atol=1e-4)
  assert measure(both, data, batch_size=13).cka[0, 1, 1, 1] < 0.9


@slow
def test_only_whole_batches_count(loaded, measured):
  networks, data = loaded
  fewer = measure(networks, data, batch_size=10)
  assert fewer.num_examples == 20
  same = measure(networks, data, batch_size=10, num_examples=20)
  np.testing.assert_array_equal(same.cka, fewer.cka)
  everything = measure(networks, data, batch_size=1000)
  np.testing.assert_allclose(everything.effective_ranks, measured.effective_ranks, rtol=1e-6)


@slow
def test_layers_can_be_chosen(loaded, measured):
  networks, data = loaded
  chosen = measure(networks, data, layers=["head", "hidden/1"], batch_size=13)
  assert chosen.num_features == [4, 6]
  np.testing.assert_allclose(chosen.effective_ranks[:, 1], measured.effective_ranks[:, 1])
  with pytest.raises(ValueError, match=r"no layer 'hiden'. There are: head, hidden/0, hidden/1"):
    measure(networks, data, layers=["hiden"])
  with pytest.raises(ValueError, match="at least 4"):
    measure(networks, data, num_examples=3)


def test_layers_of_convolutional_networks():
  model = nnx.eval_shape(
    lambda: models.build("resnet18", num_classes=3, image_shape=(8, 8, 3), rngs=nnx.Rngs(0))
  )
  layers = layers_with_kernel(model)
  assert len(layers) == 20 and {"conv1", "layer2/0/shortcut", "layer4/1/conv2"} <= {*layers}
  assert "head" not in layers


# ---- what is made of it ------------------------------------------------------------------------


def example(runs, similarity, ranks=None):
  ranks = np.ones((len(runs), 1)) if ranks is None else np.array(ranks)
  matrix = np.array(similarity, float).reshape(len(runs), 1, len(runs), 1)
  return Measured(runs, ["layer"], [10], ranks, matrix, 20)


def test_pairs_have_different_seeds():
  runs = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
  pairs = cka_by_pair(
    example(runs, [[1, 0.1, 0.9, 0.2], [0.1, 1, 0.4, 0.9], [0.9, 0.4, 1, 0.6], [0.2, 0.9, 0.6, 1]])
  )
  assert pairs == {("a", "a"): 0.1, ("a", "b"): pytest.approx(0.3), ("b", "b"): 0.6}


def test_a_single_seed_is_compared_with_itself_elsewhere():
  pairs = cka_by_pair(example([("a", 0), ("b", 0)], [[1, 0.9], [0.9, 1]]))
  assert pairs == {("a", "b"): 0.9}


def test_a_layer_that_died_in_one_run_leaves_the_others():
  nan = np.nan
  runs = [("a", 0), ("a", 1), ("a", 2)]
  measured = example(runs, [[1, nan, 0.4], [nan, nan, nan], [0.4, nan, 1]])
  assert cka_by_pair(measured) == {("a", "a"): pytest.approx(0.4)}
  results = as_json(measured, "this")
  assert results["cka"][0][0] == [[1.0], [None], [0.4]]


def test_tables():
  runs = [("a", 0), ("a", 1), ("b", 0)]
  measured = example(runs, [[1, 0.5, 0.9], [0.5, 1, 0.25], [0.9, 0.25, 1]], [[2.0], [4.0], [5.0]])
  assert rank_by_variant(measured)["a"]["layer"][0] == 3.0
  assert table_cells(markdown_tables(measured)) == [
    ["effective rank", "features", "a", "b"],
    ["layer", "10", "3.0 ± 12.7", "5.0"],
    ["CKA", "a", "b"],
    ["a", "0.500", "0.250"],
    ["b", "0.250", ""],
  ]


@slow
def test_figure(measured, tmp_path):
  sizes = dict(zip(measured.layers, measured.num_features, strict=True))
  path = tmp_path / "figure.png"
  diversity_figure(rank_by_variant(measured), cka_by_pair(measured), sizes, path)
  assert path.read_bytes().startswith(b"\x89PNG") and path.stat().st_size > 10_000


# ---- reading -----------------------------------------------------------------------------------


@slow
def test_variants_can_be_chosen(sweep):
  networks, _ = load_sweep(sweep, variants=["srigl"])
  assert list(networks) == [("srigl", 0), ("srigl", 1)]
  with pytest.raises(ValueError, match=r"no variant 'rigl'. It has: dense, srigl"):
    load_sweep(sweep, variants=["rigl"])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@slow
def test_the_command(sweep, tmp_path, monkeypatch, capsys):
  out, figure = tmp_path / "out.json", tmp_path / "out.png"
  arguments = [f"--workdir={sweep}", "--variants=srigl", "--layers=hidden/1", "--batch=13"]
  monkeypatch.setattr(sys, "argv", ["diversity", *arguments, f"--out={out}", f"--figure={figure}"])
  with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
    runpy.run_module("experiments.diversity", run_name="__main__")
  assert not stop.value.code
  results = read_json(out)
  assert results["table"] in capsys.readouterr().out
  assert results["runs"] == ["srigl/seed0", "srigl/seed1"] and results["layers"] == ["hidden/1"]
  assert results["command"].startswith("python -m experiments.diversity --workdir=")
  assert results["environment"]["jax"] and figure.exists()


def test_what_cannot_be_read(tmp_path):
  with pytest.raises(ValueError, match=r"holds no sweep: it has no sweep\.json"):
    load_sweep(tmp_path)
  variant = {"seeds": [0], "axes": {}, "config": tiny_config().to_dict()}
  write_json(
    tmp_path / "sweep.json",
    {"name": "S", "study": "", "command": "this", "variants": {"a": variant}},
  )
  with pytest.raises(ValueError, match=r"No run in .* is finished"):
    load_sweep(tmp_path)
