"""Tasks one after the other: their batches, what is kept of them, and that runs resume."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from configs import continual_cifar10
from experiments.analysis.forgetting import accuracy_matrix, measures
from experiments.data.continual import load_tasks, tasks_pipeline
from experiments.processes.signals import Interrupted
from experiments.tasks.continual_classification import continual_classification
from experiments.training.loop import train
from experiments.workdir.metrics import read_metrics
from tests.experiments.tiny import (
  assert_same,
  devices,
  interrupted_at,
  quick_compiler,
  read_checkpoint,
)

SMALL = {"image_shape": (4, 4, 1), "num_classes": 4, "num_train": 80, "num_test": 26}
SIZES = {"batch_size": 5, "eval_batch_size": 7, "seed": 0}


def tiny_config(argument="continual", **changes):
  """Two tasks of 16 steps each."""
  config = continual_cifar10.get_config(f"{argument}-digits")
  config.data.name = "synthetic"
  config.data.batch_size = 10
  config.data.kwargs = {**SMALL, "num_tasks": 2, "split": "classes"}
  config.model.kwargs = {"hidden": (16,)}
  config.method.sparsity = 0.5
  config.method.update_every_steps = 3
  config.train.total_epochs = 4.0
  config.train.eval_every_epochs = 2.0
  config.train.checkpoint_every_epochs = 1.0
  config.train.log_every_steps = 8
  config.train.eval_batch_size = 7
  config.lock()
  config.update_from_flattened_dict(changes)
  return config


def test_classes_are_divided_among_tasks_one_after_the_other():
  tasks = load_tasks("synthetic", num_tasks=2, **SMALL)
  labels = tasks.images.train_labels
  assert [set(labels[part].tolist()) for part in tasks.train] == [{0, 1}, {2, 3}]
  pipeline = tasks_pipeline(tasks, total_steps=8, **SIZES)
  batches = list(pipeline.train_batches(0, 8))
  assert [set(b["task"].tolist()) for b in batches] == [{0}] * 4 + [{1}] * 4
  assert all(set(labels[b["index"]] // 2) == {int(b["task"][0])} for b in batches)
  (again,) = pipeline.train_batches(5, 6)
  np.testing.assert_array_equal(again["index"], batches[5]["index"])
  tested = list(pipeline.test_batches())
  assert all(len(set(b["task"].tolist())) == 1 for b in tested)
  seen = np.concatenate([b["index"][b["valid"]] for b in tested])
  assert sorted(seen.tolist()) == list(range(26))
  joint = tasks_pipeline(tasks, **SIZES)
  (batch,) = joint.train_batches(0, 1)
  assert (labels[batch["index"]] // 2 == batch["task"]).all()


@pytest.mark.parametrize("scenario", ["task", "head", "class"])
def test_a_permuted_task_has_its_own_order_of_pixels_and_its_own_outputs(scenario):
  tasks = load_tasks("synthetic", num_tasks=3, split="permutations", **SMALL)
  assert tasks.num_classes == 12 and tasks.num_train == 240
  pipeline = tasks_pipeline(tasks, total_steps=12, scenario=scenario, **SIZES)
  batch = {"index": np.arange(3), "task": np.arange(3), "valid": np.ones(3, bool)}
  x, targets, _ = pipeline.test_inputs(pipeline.device_data, batch)
  images = np.asarray(tasks.images.preprocess_fn(tasks.images.test_images[:3]))
  for task in range(3):
    pixels = images[task].reshape(-1)[tasks.pixels[task]]
    np.testing.assert_allclose(np.asarray(x[task]).reshape(-1), pixels, rtol=1e-6)
  np.testing.assert_allclose(x[0], images[0], rtol=1e-6)
  assert targets["label"].tolist() == [4 * t + tasks.images.test_labels[t] for t in range(3)]
  assert targets["up_to"].tolist() == ([0, 1, 2] if scenario == "task" else [2, 2, 2])
  can = np.arange(12)[None] // 4 == np.arange(3)[:, None]
  np.testing.assert_array_equal(targets["classes"], can | (scenario == "class"))


def test_tasks_that_cannot_be_made_are_refused():
  for kwargs, match in [
    ({"num_tasks": 3}, "divide the 4 there are"),
    ({"split": "pixels"}, "split is 'pixels'"),
  ]:
    with pytest.raises(ValueError, match=match):
      load_tasks("synthetic", **SMALL, **kwargs)
  with pytest.raises(ValueError, match="held in memory"):
    load_tasks("synthetic_imagenet")
  tasks = load_tasks("synthetic", num_tasks=2, **SMALL)
  with pytest.raises(ValueError, match="batch_size is 80, but a task has"):
    tasks_pipeline(tasks, total_steps=8, **SIZES | {"batch_size": 80})
  with pytest.raises(ValueError, match="scenario 'domain'"):
    continual_classification(scenario="domain")


def test_the_metrics_are_means_of_tasks_and_classes_that_cannot_be_meant_lose():
  task = continual_classification()
  classes = jnp.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], bool)
  targets = {"label": jnp.array([0, 1, 3]), "task": jnp.array([0, 0, 1]), "classes": classes}
  logits = jnp.array([[1.0, 0, 9, 9], [1, 0, 9, 9], [9, 9, 0, 1]])
  sums = task.test_sums(logits, targets, jnp.array([True, True, True]))
  found = task.finish({name: np.asarray(x) / 3 for name, x in sums.items()})
  assert found["accuracy_0"] == 0.5 and found["accuracy_1"] == 1
  assert found["average_accuracy"] == 0.75
  loss, _ = task.loss(logits, targets)
  right, wrong = -math.log(1 / (1 + math.exp(-1))), -math.log(1 / (1 + math.e))
  assert float(loss) == pytest.approx((2 * right + wrong) / 3, rel=1e-5)


def test_forgetting_is_what_is_lost_of_the_best():
  rows = [[0.9, 0.1, 0.1], [0.7, 0.8, 0.1], [0.75, 0.5, 0.6]]
  tests = [
    {"step": 4 * (i + 1), "loss": 0.0, **{f"accuracy_{j}": x for j, x in enumerate(row)}}
    for i, row in enumerate(rows)
  ]
  matrix = accuracy_matrix(tests, 12)
  np.testing.assert_array_equal(matrix, rows)
  found = measures(matrix)
  assert found.average == pytest.approx((0.75 + 0.5 + 0.6) / 3)
  assert found.forgetting == pytest.approx((0.15 + 0.3) / 2)
  assert found.learnt == pytest.approx((0.9 + 0.8 + 0.6) / 3)
  assert math.isnan(measures(matrix[:1, :1]).forgetting)
  with pytest.raises(ValueError, match="no record of a test at step 4"):
    accuracy_matrix(tests[1:], 12)
  with pytest.raises(ValueError, match="not those of tasks"):
    accuracy_matrix([{"step": 12, "loss": 0.0}], 12)


@pytest.mark.slow
def test_an_earlier_task_is_kept_to_the_bit_and_a_run_resumes(tmp_path, command):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  with devices(1), quick_compiler():
    results = train(tiny_config(), whole)
    with interrupted_at(3), pytest.raises(Interrupted):
      train(tiny_config(), parts)
    train(tiny_config(), parts)
  assert_same(read_checkpoint(parts), read_checkpoint(whole))
  first, last = (r for r in read_metrics(whole)["test"] if r["step"] in (16, 32))
  assert first["accuracy_0"] == last["accuracy_0"] and first["accuracy_1"] != last["accuracy_1"]
  assert results["score"]["last"] == (last["accuracy_0"] + last["accuracy_1"]) / 2
  code, out, err = command("continual", f"--workdir={whole}")
  assert code == 0 and "forgetting 0.00 points" in out, err


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["continual_rigl", "continual_set", "dense"])
def test_other_methods_learn_the_same_tasks(argument, tmp_path):
  with devices(1), quick_compiler():
    results = train(tiny_config(argument), tmp_path)
  assert results["steps"] == 32
  assert results["sparsity"] == pytest.approx(0.5 * (argument != "dense"), abs=0.03)


@pytest.mark.slow
def test_what_would_not_be_protected_is_refused(tmp_path):
  with devices(1), quick_compiler():
    with pytest.raises(ValueError, match=r"eval_every_epochs=2\."):
      train(tiny_config(**{"train.eval_every_epochs": 3.0}), tmp_path / "a")
    config = tiny_config()
    with config.unlocked():
      config.model.name, config.model.kwargs = "convnet", {"widths": (8,), "convs_per_stage": 1}
    with pytest.raises(ValueError, match="batch statistics"):
      train(config, tmp_path / "b")


@pytest.mark.slow
@pytest.mark.parametrize("argument", ["digits-quick", "quick"])
def test_quick_keeps_what_it_learns(argument, tmp_path):
  """The config's own quick sizes: permuted digits, and split CIFAR-10."""
  with devices(1):
    train(continual_cifar10.get_config(argument), tmp_path)
  tests = read_metrics(tmp_path)["test"]
  matrix = accuracy_matrix(tests, tests[-1]["step"])
  for task in range(5):
    assert len(set(matrix[task:, task])) == 1
  assert measures(matrix).average > (0.9 if "digits" in argument else 0.65)
