"""Runs with `config.method.engine = "condensed"` beside the same runs with masks."""

import gc

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments import models
from experiments.common.files import read_json
from experiments.compare import as_results, compare, read_finished
from experiments.deploy.inference import accuracy, predict
from experiments.export import export
from experiments.processes.signals import Interrupted
from experiments.training.load_run import load_run
from experiments.training.loop import train
from experiments.training.setup import prepare
from experiments.workdir.metrics import read_metrics
from srigl_jax import pattern_mask
from tests.experiments.tiny import (
  assert_same,
  devices,
  interrupted_at,
  part,
  quick_compiler,
  read_checkpoint,
  tiny_config,
)

CONDENSED = {"method.engine": "condensed", "method.track_explored": True}


def assert_alike(masked, condensed):
  """Two finished runs have the same masks in the end, and the same topology at every record.

  Returns:
    The condensed network.
  """
  trained, theirs = load_run(condensed), part(read_checkpoint(masked), "masks")
  assert trained.masks.keys() == theirs.keys() and theirs
  for path, pattern in trained.masks.items():
    np.testing.assert_array_equal(pattern_mask(pattern), theirs[path], err_msg=path)
  a, b = (read_metrics(workdir) for workdir in (condensed, masked))
  assert a["topology"] == b["topology"]
  for kind in ("train", "test"):
    for name in ("step", "loss", "accuracy"):
      values = [[record[name] for record in metrics[kind]] for metrics in (a, b)]
      np.testing.assert_allclose(*values, rtol=2e-4, err_msg=name)
  return trained


def test_a_condensed_run_is_the_masked_one(finished_run, tmp_path):
  masked, expected = finished_run
  config = tiny_config(CONDENSED)
  with devices(1):
    with interrupted_at(3), pytest.raises(Interrupted):
      train(config, tmp_path)
    results = train(config, tmp_path)
    trained = assert_alike(masked, tmp_path)
  assert results["layers"] == expected["layers"]  # fan-ins, active neurons, ITOP
  assert results["test_accuracy"] == expected["test_accuracy"]
  assert (results["engine"], expected["engine"]) == ("condensed", "masked")
  parts = [read_json(folder / "memory.json")["arrays"] for folder in (tmp_path, masked)]
  assert {"patterns", "explored"} <= parts[0].keys() and "masks" not in parts[0]
  assert parts[0]["parameters"] < parts[1]["parameters"]
  assert "(condensed)" in (tmp_path / "report.md").read_text()
  with devices(1):
    runs = [read_finished(path) for path in (masked, tmp_path)]
    told = compare(*runs)
  assert as_results(*runs, told)["environment"] == results["environment"]
  assert "Same connections in the end, in all 2 sparse layers." in told and "nowhere" in told
  exported = export(trained, tmp_path / "model.safetensors")
  with quick_compiler():
    logits, labels = predict({"before": trained.model, "after": exported.model}, trained.run.data)
  np.testing.assert_allclose(logits["after"], logits["before"], rtol=1e-4, atol=1e-5)
  assert accuracy(logits["after"], labels) == pytest.approx(results["test_accuracy"])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"method.engine": "sparse"}, "method.engine is 'sparse'"),
    ({"method.name": "rigl"}, "rigl does not keep a constant fan-in.*srigl.*engine=masked"),
    ({"method.name": "dense"}, "no sparse layers"),
    ({"method.name": "srigl_shared"}, "structure is 'constant_fan_in:group_size=16'"),
    ({"method.name": "static"}, "structure is 'unstructured'"),
    ({"method.sparse_init": ""}, "sparse_init is empty"),
  ],
)
def test_what_has_no_condensed_form_is_refused(changes, message):
  with devices(1), pytest.raises(ValueError, match=message):
    prepare(tiny_config(CONDENSED | changes))


def test_a_layer_that_has_no_condensed_form_is_refused(monkeypatch):
  reasons = {"hidden/0/kernel": "it is a convolution in groups"}
  monkeypatch.setattr(models, "untrainable", lambda *_: reasons)
  with devices(1), pytest.raises(ValueError, match=r"'hidden/0/kernel'.*groups.*method.dense"):
    prepare(tiny_config(CONDENSED))


ADAMW = {"optimizer.name": "adamw", "optimizer.learning_rate": 0.01, "optimizer.clip_norm": 1.0}
CONVNET = {
  "model.name": "convnet",
  "model.kwargs": ConfigDict({"widths": (8, 12), "convs_per_stage": 1}),
  "data.kwargs.image_shape": (8, 8, 3),
}
MLP = {"model.kwargs": ConfigDict({"hidden": (12, 12)}), "method.drop_fraction": 0.8}
WHOLE_RUNS = {
  "one gradient on two devices": (2, {**MLP, "train.label_smoothing": 0.1}),
  "averaged gradients": (1, {**MLP, "method.grad_accumulation_steps": 2, **ADAMW}),
  "averaged gradients on eight devices": (8, {**MLP, "method.grad_accumulation_steps": 2}),
  "accumulated batches": (
    1,
    {
      **MLP,
      "optimizer.learning_rate": 0.3,
      "optimizer.accumulation_steps": 2,
      "train.total_epochs": 6.0,
    },
  ),
  "both on two devices": (
    2,
    {
      **MLP,
      "optimizer.accumulation_steps": 2,
      "method.grad_accumulation_steps": 2,
      "train.total_epochs": 6.0,
      **ADAMW,
    },
  ),
  "a convolutional network on eight devices": (8, {**CONVNET, "train.sync_batch_norm": True}),
  "a convolutional network, averaged gradients": (
    2,
    {**CONVNET, "method.grad_accumulation_steps": 2},
  ),
  "a vision transformer": (
    1,
    {
      "model.name": "vit_b16",
      "model.kwargs": ConfigDict(
        {"width": 8, "depth": 2, "num_heads": 2, "mlp_width": 16, "patch_size": 2, "remat": True}
      ),
      "data.kwargs.image_shape": (4, 4, 3),
      **ADAMW,
    },
  ),
}


@pytest.fixture
def keys_from_the_first(monkeypatch):
  """Attention to keys less the first token's: the same function, whose zero gradients are exact.

  A softmax does not see what all keys have in common. A key that is ablated is its bias in every
  token, so the gradient in the query of the same neuron is 0, but for rounding that differs from
  one program to the next, and by which masks would grow. Of such differences it is 0 without.
  """
  attention = jax.nn.dot_product_attention
  from_the_first = lambda query, key, value: attention(query, key - key[:, :1], value)
  monkeypatch.setattr(jax.nn, "dot_product_attention", from_the_first)


@pytest.mark.slow
@pytest.mark.parametrize("case", WHOLE_RUNS)
def test_a_whole_run_is_the_masked_one_and_resumes_bit_for_bit(tmp_path, case, keys_from_the_first):
  count, changes = WHOLE_RUNS[case]
  config = lambda engine: tiny_config({**CONDENSED, "method.engine": engine, **changes})
  with devices(count):
    results = [train(config(engine), tmp_path / engine) for engine in ("masked", "condensed")]
    assert_alike(tmp_path / "masked", tmp_path / "condensed")
    with interrupted_at(4), pytest.raises(Interrupted):
      train(config("condensed"), tmp_path / "resumed")
    train(config("condensed"), tmp_path / "resumed")
  assert results[0]["layers"] == results[1]["layers"]
  records = read_metrics(tmp_path / "condensed")["topology"]
  changes = [
    np.diff([record["layers"][path]["active_neurons"] for record in records])
    for path in records[0]["layers"]
  ]
  assert np.min(changes) < 0 < np.max(changes)  # neurons are ablated, and come back
  assert_same(read_checkpoint(tmp_path / "resumed"), read_checkpoint(tmp_path / "condensed"))


def test_a_network_does_not_keep_what_it_was_made_of():
  """Beside the state that trains there is no other: first weights and patterns are let go."""
  config = tiny_config(CONDENSED)
  with config.unlocked():
    config.model.kwargs.hidden = (1213,)  # a size that no other array has
  with devices(1):
    run, state = prepare(config)
    sizes = {pattern.capacity for pattern in run.topology(state).values()}
    del state
    gc.collect()
    assert not [x for x in jax.live_arrays() if x.shape and x.shape[0] in sizes]
