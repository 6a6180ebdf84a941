"""Whole runs: every method, any number of devices, interrupted and resumed, refused and broken."""

import contextlib
import gc
import json
import math
import signal
import weakref

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from experiments.common.files import read_json
from experiments.processes.signals import Interrupted
from experiments.training import loop
from experiments.training.loop import train
from experiments.training.run_log import RunLog
from experiments.training.setup import prepare
from experiments.workdir.metrics import MetricsWriter, read_metrics
from tests.experiments.tiny import (
  STEPS_PER_EPOCH,
  TOTAL_STEPS,
  assert_same,
  checkpoint_steps,
  devices,
  interrupted_at,
  part,
  quick_compiler,
  read_checkpoint,
  tiny_config,
)
from tests.helpers import mostly_slow

pytestmark = pytest.mark.usefixtures("one_device")

EVERY_STEP = {"train.checkpoint_every_epochs": 1 / STEPS_PER_EPOCH, "train.keep_checkpoints": 99}
EVERY_TWO = EVERY_STEP | {"train.checkpoint_every_epochs": 2 / STEPS_PER_EPOCH}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  """Drawing figures takes longer than these runs; test_report looks at them."""
  monkeypatch.setattr(loop, "write_run_report", lambda workdir: None)


def losses(workdir, kind="train"):
  return {record["step"]: record["loss"] for record in read_metrics(workdir)[kind]}


def without_clocks(results):
  return {k: v for k, v in results.items() if k not in ("train_seconds", "environment")}


def assert_zero_off_masks(checkpoint):
  """Weights, and whatever the optimizer keeps of their shape."""
  masks = part(checkpoint, "masks")
  arrays = 0
  for path, mask in masks.items():
    for name, array in checkpoint.items():
      if name.endswith(f"['{path}']") and array.dtype == np.float32:
        assert not array[~mask].any(), name
        arrays += 1
  assert arrays >= 2 * len(masks)


# ---- methods -----------------------------------------------------------------------------------

METHODS = {
  "dense": {"method.name": "dense"},
  "static": {"method.name": "static"},
  "set": {"method.name": "set"},
  "rigl": {"method.name": "rigl"},
  "srigl": {"method.name": "srigl"},
  "srigl no ablation": {"method.name": "srigl_no_ablation"},
  "srigl fan-in": {"method.name": "srigl", "method.kwargs.fan_in": 3},
}


@pytest.mark.parametrize("name", mostly_slow(METHODS, {"dense", "rigl", "srigl"}))
def test_method(tmp_path, name):
  results = train(tiny_config(METHODS[name] | EVERY_TWO), tmp_path)
  history = [read_checkpoint(tmp_path, step) for step in range(2, TOTAL_STEPS + 1, 2)]
  masks = [part(checkpoint, "masks") for checkpoint in history]
  assert results["method"] == METHODS[name]["method.name"].removesuffix("_no_ablation")
  assert (results["steps"], results["seed"]) == (TOTAL_STEPS, 0)
  if name == "dense":
    assert not any(masks)
    assert results["sparsity"] == 0
    assert results["active_neurons"] == results["itop_rate"] == 1
    assert results["inference_flops"] == results["training_flops"] == 1
    return

  for checkpoint in history:
    assert_zero_off_masks(checkpoint)
  hidden = [m["hidden/0/kernel"] for m in masks]
  changed = {2 * i + 2 for i in range(1, len(hidden)) if (hidden[i] != hidden[i - 1]).any()}
  assert changed <= {4, 6, 8}
  assert (not changed) == (name == "static")
  active = sum(mask.sum() for mask in masks[-1].values())
  assert results["sparsity"] == 1 - active / (16 * 8 + 8 * 4)
  fan_ins = {path: set(mask.sum(0).tolist()) for path, mask in masks[-1].items()}
  assert (len(fan_ins["hidden/0/kernel"] - {0}) == 1) == name.startswith("srigl")
  assert (0 in fan_ins["hidden/0/kernel"]) == (results["active_neurons"] < 1)
  assert (name == "srigl") <= (results["active_neurons"] < 1)
  assert (name == "srigl no ablation") <= (results["active_neurons"] == 1)
  if name == "srigl fan-in":
    assert min(fan_ins["hidden/0/kernel"] - {0}) >= 3
    assert fan_ins["head/kernel"] == {3}
  explored = part(history[-1], "explored")
  total = sum(mask.sum() for mask in explored.values())
  assert results["itop_rate"] == pytest.approx(total / (16 * 8 + 8 * 4))
  # Those that look at dense gradients now and then pay for it.
  needs_gradients = results["method"] in ("rigl", "srigl")
  assert (results["training_flops"] > results["inference_flops"]) == needs_gradients


def test_a_run_starts_sparse_and_scaled_to_its_fan_in():
  """Weights drawn for the fan-in that there is; without, the model's own, masked."""
  states = {
    scheme: prepare(tiny_config({"method.sparse_init": scheme, "data.batch_size": 32}))[1]
    for scheme in ("he_normal", "")
  }
  for state in states.values():
    for path, mask in state.opt_state.masks.items():
      weights = np.asarray(state.params[path])
      assert weights[np.asarray(mask)].all() and not weights[~np.asarray(mask)].any()
  scale = [np.std(s.params["hidden/0/kernel"]) for s in states.values()]
  assert scale[0] > 1.2 * scale[1]
  dense = prepare(tiny_config({"method.name": "dense"}))[1].params["hidden/0/kernel"]
  mask = np.asarray(states[""].opt_state.masks["hidden/0/kernel"])
  np.testing.assert_array_equal(states[""].params["hidden/0/kernel"], np.where(mask, dense, 0))


def test_the_first_state_takes_no_room_while_training_lasts(tmp_path):
  """Neither on a device, nor in the host's memory."""
  run, state = prepare(tiny_config())
  assert {type(leaf) for leaf in jax.tree.leaves(state)} == {np.ndarray}
  kernel = weakref.ref(state.params["hidden/0/kernel"])
  with contextlib.closing(RunLog(run, state, tmp_path)) as log:
    del state
    log.take_state()
    gc.collect()
    assert kernel() is None


def test_results_are_those_of_the_last_checkpoint(finished_run):
  """The network of the last checkpoint, computed by hand, has the test accuracy of the report."""
  workdir, results = finished_run
  params = {k: v.astype(np.float64) for k, v in part(read_checkpoint(workdir), "params").items()}
  data = prepare(tiny_config())[0].data
  x = data.test_images.reshape(len(data.test_images), -1) / 255
  hidden = np.maximum(x @ params["hidden/0/kernel"] + params["hidden/0/bias"], 0)
  logits = hidden @ params["head/kernel"] + params["head/bias"]
  assert results["test_accuracy"] == (logits.argmax(-1) == data.test_labels).mean()
  tests = [record["accuracy"] for record in read_metrics(workdir)["test"]]
  assert len(tests) == 3
  assert results["test_accuracy"] == tests[-1]
  assert results["best_test_accuracy"] == max(tests)
  assert read_json(workdir / "results.json") == results
  assert read_json(workdir / "config.json")["model"]["kwargs"] == {"hidden": [8]}


def test_it_learns(tmp_path):
  rarely = {"train.eval_every_epochs": 40.0, "train.checkpoint_every_epochs": 40.0}
  results = train(tiny_config({"train.total_epochs": 40.0} | rarely), tmp_path)
  assert results["test_accuracy"] > 0.9
  assert losses(tmp_path)[160] < 0.5 * losses(tmp_path)[3]


def test_the_same_seed_gives_the_same_run(tmp_path, finished_run):
  train(tiny_config(), tmp_path / "same")
  assert_same(read_checkpoint(tmp_path / "same"), read_checkpoint(finished_run[0]))
  train(tiny_config({"seed": 1}), tmp_path / "other")
  other, first = (read_checkpoint(d) for d in (tmp_path / "other", finished_run[0]))
  for name in ("masks", "params"):
    one, two = (part(checkpoint, name)["head/kernel"] for checkpoint in (other, first))
    assert (one != two).any()


# ---- what is recorded --------------------------------------------------------------------------


def test_records_average_over_the_steps_since_the_last(tmp_path):
  """However many steps one call of the device does."""
  train(tiny_config({"train.log_every_steps": 1, "train.steps_per_dispatch": 1}), tmp_path / "one")
  train(tiny_config({"train.eval_every_epochs": 3.0}), tmp_path / "many")
  single, windows = losses(tmp_path / "one"), losses(tmp_path / "many")
  assert list(single) == list(range(1, 13))
  assert list(windows) == [3, 4, 6, 8, 9, 12]  # every 3 steps and before every checkpoint
  start = 0
  for step, loss in windows.items():
    expected = np.mean([single[s] for s in range(start + 1, step + 1)])
    assert loss == pytest.approx(expected, rel=1e-5)
    start = step
  tests = {d: losses(tmp_path / d, "test") for d in ("one", "many")}
  assert list(tests["one"]) == [4, 8, 12] and list(tests["many"]) == [12]


def test_records_of_the_topology(tmp_path):
  """One at the start, and one at each record of training that follows a change."""
  train(tiny_config(EVERY_STEP), tmp_path)
  records = read_metrics(tmp_path)["topology"]
  assert [record["step"] for record in records] == [0, 2, 4, 6, 8]
  for record in records[1:]:
    masks = part(read_checkpoint(tmp_path, record["step"]), "masks")
    assert record["density"] == sum(m.sum() for m in masks.values()) / (16 * 8 + 8 * 4)
    hidden = masks["hidden/0/kernel"]
    layer = record["layers"]["hidden/0/kernel"]
    assert layer["density"] == hidden.mean()
    assert layer["fan_in"] == hidden.sum(0).max()
    assert layer["active_neurons"] == hidden.any(0).mean()


def test_learning_rate_of_the_record(finished_run):
  rates = {r["step"]: r["learning_rate"] for r in read_metrics(finished_run[0])["train"]}
  assert rates[6] == pytest.approx(0.05)  # half-way down the cosine
  assert rates[12] == pytest.approx(0, abs=1e-9)


def test_norms_are_recorded(finished_run):
  records = read_metrics(finished_run[0])["train"]
  assert all(r["grad_norm"] > 0 and r["param_norm"] > r["update_norm"] for r in records)
  params = part(read_checkpoint(finished_run[0]), "params")
  norm = math.sqrt(sum((x.astype(float) ** 2).sum() for x in params.values()))
  assert records[-1]["param_norm"] == pytest.approx(norm, rel=1e-6)


def test_every_record_is_json_and_has_a_kind_and_a_step(finished_run):
  workdir, _ = finished_run
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    record = json.loads(line, parse_constant=pytest.fail)  # neither NaN nor Infinity
    assert record["kind"] in ("train", "test", "topology")
    assert 0 <= record["step"] <= TOTAL_STEPS


# ---- devices -----------------------------------------------------------------------------------


def test_the_number_of_devices_does_not_matter(tmp_path):
  """Without batch statistics the same global batch gives the same training."""
  checkpoints = {}
  for count in (1, 8):
    with devices(count):
      results = train(tiny_config(EVERY_STEP), tmp_path / str(count))
    assert results["environment"]["device"].startswith(f"{count} ×")
    checkpoints[count] = [read_checkpoint(tmp_path / str(count), s) for s in range(1, 13)]
  for kind in ("train", "test"):
    one, eight = (losses(tmp_path / count, kind) for count in "18")
    assert one.keys() == eight.keys()
    np.testing.assert_allclose(list(eight.values()), list(one.values()), rtol=1e-4)
  for one, eight in zip(*checkpoints.values(), strict=True):
    assert_same(part(eight, "masks"), part(one, "masks"))
    assert_zero_off_masks(eight)


def test_batch_statistics_and_masks_on_eight_devices(tmp_path):
  """A convolutional network, eight devices, stopped and resumed."""
  config = tiny_config({"model.name": "convnet", "train.total_epochs": 2.0})
  with config.unlocked():
    config.model.kwargs = {"widths": (8, 8), "convs_per_stage": 1}
  with devices(8), quick_compiler():
    whole = train(config, tmp_path / "whole")
    with interrupted_at(5), pytest.raises(Interrupted):
      train(config, tmp_path / "resumed")
    resumed = train(config, tmp_path / "resumed")
  assert without_clocks(resumed) == without_clocks(whole)
  checkpoint = read_checkpoint(tmp_path / "resumed")
  assert_same(checkpoint, read_checkpoint(tmp_path / "whole"))
  assert_zero_off_masks(checkpoint)
  assert part(checkpoint, "model_state")["blocks/0/bn/mean"].any()


# ---- interrupted and resumed -------------------------------------------------------------------

RESUMED = {
  "one step per call": ({"train.steps_per_dispatch": 1}, 7),
  "amid accumulated batches": (
    {"optimizer.accumulation_steps": 3, "train.steps_per_dispatch": 1, "method.name": "rigl"},
    5,
  ),
  "amid averaged gradients": (
    {
      "optimizer.name": "adam",
      "optimizer.learning_rate": 0.01,
      "method.update_every_steps": 3,
      "method.grad_accumulation_steps": 3,
      "train.steps_per_dispatch": 1,
    },
    5,
  ),
  "random growth": ({"method.name": "set", "model.dtype": "bfloat16"}, 2),
}


@pytest.mark.parametrize("case", mostly_slow(RESUMED, {name for name in RESUMED if "amid" in name}))
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, case):
  changes, poll = RESUMED[case]
  config = tiny_config(changes)
  whole = train(config, tmp_path / "whole")
  with interrupted_at(poll), pytest.raises(Interrupted) as stop:
    train(config, tmp_path / "resumed")
  number, step = stop.value.args
  assert number == signal.SIGTERM and 0 < step < TOTAL_STEPS
  assert checkpoint_steps(tmp_path / "resumed")[-1] == step
  assert not (tmp_path / "resumed" / "results.json").exists()
  resumed = train(config, tmp_path / "resumed")
  assert_same(read_checkpoint(tmp_path / "resumed"), read_checkpoint(tmp_path / "whole"))
  assert without_clocks(resumed) == without_clocks(whole)
  assert losses(tmp_path / "resumed", "test") == losses(tmp_path / "whole", "test")


def test_a_run_stopped_at_every_turn_equals_an_uninterrupted_one(tmp_path, finished_run):
  stops, results = [], None
  while results is None:
    try:
      with interrupted_at(1):
        results = train(tiny_config(), tmp_path)
    except Interrupted as stop:
      stops.append(stop.args[1])
  assert stops == [3, 4, 6, 8, 9]  # at 12 it is finished
  whole = finished_run[0]
  assert_same(read_checkpoint(tmp_path), read_checkpoint(whole))
  assert without_clocks(results) == without_clocks(finished_run[1])
  assert losses(tmp_path) == losses(whole)
  topology, expected = (read_metrics(d)["topology"] for d in (tmp_path, whole))
  assert topology == expected


def test_asked_to_stop_in_the_last_step_it_finishes(tmp_path):
  with interrupted_at(6):
    assert train(tiny_config(), tmp_path)["steps"] == TOTAL_STEPS


def test_killed_between_the_last_checkpoint_and_the_results(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop, "results_of", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    train(tiny_config(), tmp_path)
  before = losses(tmp_path)
  results = train(tiny_config(), tmp_path)
  assert results["steps"] == TOTAL_STEPS
  assert losses(tmp_path) == before


def test_killed_between_the_results_and_the_report(tmp_path, monkeypatch):
  with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
    patch.setattr(loop, "write_run_report", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    train(tiny_config(), tmp_path)
  assert (tmp_path / "results.json").exists()
  reported = []
  monkeypatch.setattr(loop, "write_run_report", reported.append)
  monkeypatch.setattr(loop, "prepare", lambda config: pytest.fail("it prepares"))
  train(tiny_config(), tmp_path)
  assert reported == [tmp_path]


def test_a_finished_run_is_not_trained_again(finished_run, monkeypatch):
  workdir, results = finished_run
  monkeypatch.setattr(loop, "prepare", lambda config: pytest.fail("it prepares"))
  assert train(tiny_config(), workdir) == results


# ---- the directory -----------------------------------------------------------------------------


def test_a_directory_of_another_config_is_refused(finished_run):
  workdir, _ = finished_run
  other = tiny_config({"method.sparsity": 0.8, "train.total_epochs": 4.0})
  message = (
    r"holds a run of another config \(method\.sparsity: 0\.5 there, 0\.8 here; "
    r"train\.total_epochs: 3\.0 there, 4\.0 here\).*--workdir of its own"
  )
  with pytest.raises(ValueError, match=message):
    train(other, workdir)
  assert read_json(workdir / "config.json")["method"]["sparsity"] == 0.5


def test_where_the_data_lie_is_no_difference(finished_run):
  workdir, results = finished_run
  assert train(tiny_config({"data.data_dir": "/elsewhere"}), workdir) == results


def test_a_run_goes_on_with_what_another_machine_needs(tmp_path, finished_run):
  """Less memory and less disk, say: what is learnt is the same."""
  with interrupted_at(2), pytest.raises(Interrupted):
    train(tiny_config(), tmp_path)
  changes = {
    "train.checkpoint_every_epochs": 0.25,
    "train.eval_batch_size": 3,
    "train.keep_checkpoints": 1,
    "train.log_every_steps": 1,
    "train.steps_per_dispatch": 1,
  }
  results = train(tiny_config(changes), tmp_path)
  assert_same(read_checkpoint(tmp_path), read_checkpoint(finished_run[0]))
  assert results["test_accuracy"] == finished_run[1]["test_accuracy"]
  assert read_json(tmp_path / "config.json")["train"]["eval_batch_size"] == 3


def test_a_config_that_cannot_be_used_leaves_the_directory_free(tmp_path):
  with pytest.raises(ValueError, match="batch_size"):
    train(tiny_config({"data.batch_size": 1000}), tmp_path)
  with interrupted_at(1), pytest.raises(Interrupted):
    train(tiny_config(), tmp_path)


# ---- checkpoints -------------------------------------------------------------------------------


def test_the_best_checkpoint_stays_beside_the_latest(tmp_path, monkeypatch):
  """Also if the run is resumed after it."""
  accuracies = {4: 0.5, 8: 0.9, 12: 0.7, 16: 0.6, 20: 0.8}
  evaluate = loop.make_eval_fn

  def make_eval_fn(*arguments, **kwargs):
    real = evaluate(*arguments, **kwargs)

    def scripted(state, *data):
      (first, *_) = real(state, *data)
      correct = np.float32(accuracies[int(state.step)] * first.examples)
      return [first._replace(sums={"accuracy": correct})]

    return scripted

  monkeypatch.setattr(loop, "make_eval_fn", make_eval_fn)
  config = tiny_config({"train.total_epochs": 5.0, "train.keep_checkpoints": 1})
  with interrupted_at(6), pytest.raises(Interrupted):
    train(config, tmp_path)
  assert checkpoint_steps(tmp_path) == [8, 12]
  results = train(config, tmp_path)
  assert checkpoint_steps(tmp_path) == [8, 20]
  assert results["test_accuracy"] == pytest.approx(0.8)
  assert results["best_test_accuracy"] == pytest.approx(0.9)


def test_unreadable_checkpoints_cost_only_time(tmp_path, finished_run):
  config = tiny_config({"train.keep_checkpoints": 99})
  with interrupted_at(5), pytest.raises(Interrupted):
    train(config, tmp_path)
  assert checkpoint_steps(tmp_path) == [4, 8, 9]
  for step in (8, 9):
    (tmp_path / "checkpoints" / str(step) / "state" / "_METADATA").write_text("{")
  # Stopped again, before the steps of those that were damaged.
  with (
    pytest.warns(UserWarning, match="step 8 .* cannot be read"),
    interrupted_at(1),
    pytest.raises(Interrupted, match=r"6"),
  ):
    train(config, tmp_path)
  train(config, tmp_path)
  assert checkpoint_steps(tmp_path) == [4, 6, 8, 12]
  assert_same(read_checkpoint(tmp_path), read_checkpoint(finished_run[0]))
  assert_same(read_checkpoint(tmp_path, 8), read_checkpoint(finished_run[0], 8))


def test_no_checkpoint_without_its_records(tmp_path, monkeypatch):
  """A run that goes on from it would not write them again."""
  settled = []

  def fail_the_second_time(writer):
    settled.append(writer)
    if len(settled) == 2:
      raise OSError("there is no room for records")

  monkeypatch.setattr(MetricsWriter, "settle", fail_the_second_time)
  with pytest.raises(OSError, match="no room for records"):
    train(tiny_config(EVERY_TWO), tmp_path)
  assert checkpoint_steps(tmp_path) == [2]


# ---- divergence --------------------------------------------------------------------------------

# The first epoch is sound; then the learning rate is 1e29.
DIVERGING = {
  "optimizer.schedule": "step",
  "optimizer.decay_epochs": 1.0,
  "optimizer.decay_factor": 1e30,
}


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, one_by_one):
  changes = {"train.log_every_steps": 1, "train.steps_per_dispatch": 1} if one_by_one else {}
  message = r"loss of step 6 is not finite.*before are kept.*config\.optimizer\.clip_norm"
  with pytest.raises(FloatingPointError, match=message):
    train(tiny_config(DIVERGING | changes), tmp_path)
  assert max(losses(tmp_path)) == (5 if one_by_one else 4)
  assert all(np.isfinite(loss) for loss in losses(tmp_path).values())
  assert checkpoint_steps(tmp_path) == [4]
  assert np.isfinite(part(read_checkpoint(tmp_path), "params")["head/kernel"]).all()
  assert not (tmp_path / "results.json").exists()
  with pytest.raises(FloatingPointError, match="step 6"):  # and stops again
    train(tiny_config(DIVERGING | changes), tmp_path)


def test_divergence_in_the_last_step_is_noticed_too(tmp_path):
  """Its loss is that of the weights before it; only the evaluation sees those after it."""
  config = tiny_config(DIVERGING | {"train.total_epochs": 1.25})
  with pytest.raises(FloatingPointError, match="step 5"):
    train(config, tmp_path)
  assert checkpoint_steps(tmp_path) == [4]
  assert not (tmp_path / "results.json").exists()


# ---- accumulated batches, bfloat16 -------------------------------------------------------------


def test_accumulated_batches_make_one_step(tmp_path):
  """Two batches of 16 train as one of 32, and the topology counts optimizer steps."""
  common = {"method.update_every_steps": 2, "method.update_until_fraction": 1.0} | EVERY_STEP
  train(tiny_config(common | {"optimizer.accumulation_steps": 2}), tmp_path / "two")
  train(
    tiny_config(common | {"data.batch_size": 32, "train.checkpoint_every_epochs": 0.5}),
    tmp_path / "one",
  )
  assert checkpoint_steps(tmp_path / "one") == list(range(1, 7))
  history = [read_checkpoint(tmp_path / "two", step) for step in range(1, TOTAL_STEPS + 1)]
  hidden = [part(checkpoint, "masks")["hidden/0/kernel"] for checkpoint in history]
  changed = [i + 1 for i in range(1, TOTAL_STEPS) if (hidden[i] != hidden[i - 1]).any()]
  assert changed == [4, 8]  # optimizer steps 2 and 4
  for step in range(1, 7):
    one, two = read_checkpoint(tmp_path / "one", step), history[2 * step - 1]
    assert_same(part(two, "masks"), part(one, "masks"))
    for path, expected in part(one, "params").items():
      np.testing.assert_allclose(part(two, "params")[path], expected, rtol=1e-4, atol=1e-6)
  # Between optimizer steps nothing moves.
  assert_same(part(history[2], "params"), part(history[1], "params"))
  one, two = (read_metrics(tmp_path / name)["train"] for name in ("one", "two"))
  rates = {record["step"]: record["learning_rate"] for record in two}
  assert all(record["learning_rate"] == rates[2 * record["step"]] for record in one)


def test_bfloat16_trains_float32_weights(tmp_path, finished_run):
  train(tiny_config({"model.dtype": "bfloat16"}), tmp_path)
  checkpoint = read_checkpoint(tmp_path)
  assert {array.dtype.name for array in part(checkpoint, "params").values()} == {"float32"}
  assert_zero_off_masks(checkpoint)
  rounded, exact = losses(tmp_path)[3], losses(finished_run[0])[3]
  assert rounded != exact
  assert rounded == pytest.approx(exact, rel=0.02)


# ---- bad values --------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "changes, message",
  [
    (
      {"method.name": "srgil"},
      r"config\.method\.name is 'srgil'.*dense, small_dense.*'srigl'\?",
    ),
    ({"method.distribution": "erkk"}, r"distribution.*'erkk'.*erk.*uniform"),
    ({"method.sparsity": 1.0}, r"sparsity is 1\.0; it must lie in \[0, 1\)"),
    ({"method.sparsity": -0.1}, r"sparsity is -0\.1; it must lie in \[0, 1\)"),
    ({"method.kwargs.gamma_sal": -0.3}, r"gamma_sal is -0\.3; it must be .*0 for no ablation"),
    ({"method.kwargs.salient_base": "fan_in"}, r"salient_base is 'fan_in'; it must be one of"),
    ({"method.drop_fraction": 1.5}, r"drop_fraction is 1\.5; it must lie in \[0, 1\]"),
    ({"method.update_every_steps": 0}, r"update_every is 0; it must be .* 1 or more"),
    ({"method.grad_accumulation_steps": 3}, r"grad_accumulation_steps is 3, more than"),
    ({"method.name": "static", "method.kwargs.structure": "block"}, r"structure.*'block'"),
    ({"method.never_ablate": ("tail",)}, r"config\.method\.never_ablate names 'tail'"),
    ({"method.dense": ("tail",)}, r"config\.method\.dense names 'tail'.*layers: "),
    ({"method.sparse_init": "he"}, r"'he'.*he_normal"),
    ({"optimizer.name": "sdg"}, r"config\.optimizer\.name is 'sdg'.*'sgd'\?"),
    ({"optimizer.schedule": "cosin"}, r"config\.optimizer\.schedule is 'cosin'.*'cosine'\?"),
    ({"optimizer.accumulation_steps": 0}, r"accumulation_steps is 0; it must be 1 or more"),
    ({"model.name": "mpl"}, r"model.*name is 'mpl'; it must be one of .*'mlp'\?"),
    ({"model.dtype": "bfloat61"}, r"dtype must be one of float32, bfloat16, got bfloat61"),
    ({"model.dtype": "float64"}, r"dtype must be one of float32, bfloat16, got float64"),
    ({"data.name": "sintetic"}, r"data set.*name is 'sintetic'.*'synthetic'\?"),
    ({"data.batch_size": 65}, r"config\.data\.batch_size is 65; .*training examples \(64\)"),
    ({"data.batch_size": 0}, r"config\.data\.batch_size is 0"),
    ({"train.log_every_steps": 0}, r"config\.train\.log_every_steps is 0; it must be 1 or more"),
    ({"train.eval_batch_size": 0}, r"config\.train\.eval_batch_size is 0"),
    ({"train.keep_checkpoints": 0}, r"config\.train\.keep_checkpoints is 0"),
    ({"train.total_epochs": 0.0}, r"config\.train\.total_epochs is 0\.0; .* more than 0"),
    ({"seed": -1}, r"config\.seed is -1; it must lie in 0\.\."),
  ],
)
def test_bad_values(changes, message):
  with pytest.raises(ValueError, match=f"(?s){message}"):
    prepare(tiny_config(changes))


@pytest.mark.parametrize(
  "section, name", [("model", "mlp"), ("data", "synthetic"), ("method", "srigl")]
)
def test_unknown_arguments_of_models_data_sets_and_methods(section, name):
  config = tiny_config().copy_and_resolve_references().unlock()
  config[section].kwargs = ConfigDict({"hiden": 3})
  with pytest.raises(
    ValueError, match=rf"config\.{section}\.kwargs of '{name}' has 'hiden'; it may"
  ):
    prepare(config)


def test_batches_must_divide_among_the_devices():
  with devices(3), pytest.raises(ValueError, match=r"batch_size is 16; .*devices \(3\)"):
    prepare(tiny_config())


def test_a_missing_data_set_says_where_to_put_it(tmp_path):
  config = tiny_config()
  with config.unlocked():
    config.data.update({"name": "cifar10", "data_dir": str(tmp_path), "kwargs": {}})
    config.data.kwargs = {}
  with pytest.raises(FileNotFoundError, match=rf"{tmp_path}(?s:.*)--config\.data\.data_dir=DIR"):
    prepare(config)


def test_a_narrow_network_is_compared_with_the_wide_one(tmp_path):
  with quick_compiler():
    results = train(
      _small_dense_config(),
      tmp_path,
    )
  weights = sum(math.prod(shape) for shape in _kernel_shapes(tmp_path).values())
  wide = 16 * 16 + 16 * 16 + 16 * 4
  assert weights <= 0.5 * wide
  assert results["sparsity"] == pytest.approx(1 - weights / wide)
  assert results["inference_flops"] == pytest.approx(weights / wide)
  assert results["training_flops"] == pytest.approx(weights / wide)


def _small_dense_config():
  config = tiny_config({"method.name": "small_dense", "train.total_epochs": 0.5})
  with config.unlocked():
    config.model.kwargs.hidden = (16, 16)
  return config


def _kernel_shapes(workdir):
  params = part(read_checkpoint(workdir), "params")
  return {path: x.shape for path, x in params.items() if path.endswith("kernel")}


def test_what_pruning_costs_does_not_depend_on_logging(tmp_path):
  """Every step of the cubic counts, however seldom anything is recorded."""
  changes = {"method.name": "gradual_pruning", "method.kwargs.prune_from_fraction": 0.0}
  costs = []
  for log_every in (1, 12):
    with quick_compiler():
      config = tiny_config(changes | {"train.log_every_steps": log_every})
      costs.append(train(config, tmp_path / str(log_every))["training_flops"])
  assert costs[0] == pytest.approx(costs[1], rel=1e-6) and costs[0] < 0.99
