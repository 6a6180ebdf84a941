"""Runs that train together: each as if it were alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from experiments import packs
from experiments import train as train_module
from experiments.common.files import read_json
from experiments.data import make_input_pipeline
from experiments.processes.sharding import shard_batches
from experiments.processes.signals import Interrupted
from experiments.train import train, train_pack
from experiments.training.setup import prepare
from experiments.training.steps import make_train_fn, replicate
from experiments.workdir.metrics import read_metrics
from tests.experiments.tiny import (
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

pytestmark = pytest.mark.usefixtures("one_device")

# Seeds and sparsities differ.
DIFFERENCES = {
  "a": {},
  "b": {"seed": 1, "method.sparsity": 0.7},
  "c": {"seed": 2, "method.sparsity": 0.5},
}


@pytest.fixture(autouse=True)
def only_training(monkeypatch):
  """Drawing figures takes longer than these runs, and so does compiling them well."""
  monkeypatch.setattr(train_module.report, "write_run_report", lambda workdir: None)
  with quick_compiler():
    yield


def configs(changes=None, names="abc"):
  return {n: tiny_config(DIFFERENCES[n] | {"name": n} | (changes or {})) for n in names}


def in_directories(root, **kwargs):
  return {root / name: config for name, config in configs(**kwargs).items()}


def records(workdir, kind):
  return read_metrics(workdir)[kind]


def assert_equal_training(one, other):
  """Masks and what follows from them to the bit, weights and losses to rounding."""
  checkpoints = [read_checkpoint(d) for d in (one, other)]
  for field in ("masks", "explored", "budgets"):
    assert_same(*(part(checkpoint, field) for checkpoint in checkpoints))
  first, second = checkpoints
  assert first.keys() == second.keys()
  for path, array in first.items():
    assert second[path].dtype == array.dtype and second[path].shape == array.shape, path
    np.testing.assert_allclose(second[path], array, rtol=1e-3, atol=1e-4, err_msg=path)
  for kind in ("train", "test"):
    a, b = records(one, kind), records(other, kind)
    assert [r["step"] for r in a] == [r["step"] for r in b]
    np.testing.assert_allclose([r["loss"] for r in a], [r["loss"] for r in b], rtol=1e-4)
  assert records(one, "topology") == records(other, "topology")
  same = ("name", "method", "seed", "steps", "sparsity", "active_neurons", "itop_rate", "layers")
  results = [read_json(d / "results.json") for d in (one, other)]
  assert [results[0][k] for k in same] == [results[1][k] for k in same]
  assert results[0].keys() == results[1].keys()


METHODS = {
  "srigl": {},
  "rigl, averaged gradients, adam": {
    "method.name": "rigl",
    "method.grad_accumulation_steps": 2,
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.01,
  },
  "set, accumulated batches": {"method.name": "set", "optimizer.accumulation_steps": 2},
}


@pytest.mark.parametrize(
  "method", [m if m == "srigl" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_a_run_of_a_pack_equals_one_that_trains_alone(tmp_path, method):
  together = in_directories(tmp_path / "pack", changes=METHODS[method])
  results = train_pack(together)
  assert [r["packed_runs"] for r in results.values()] == [3, 3, 3]
  for workdir, config in together.items():
    train(config, tmp_path / workdir.name)
    assert_equal_training(tmp_path / workdir.name, workdir)


@pytest.mark.slow
def test_devices_and_statistics_of_a_batch_in_a_pack(tmp_path):
  """A convolutional network on two devices."""
  together = in_directories(tmp_path / "pack", names="ab")
  for config in together.values():
    config.model.name = "convnet"
    with config.unlocked():
      config.model.kwargs = {"widths": (8,), "convs_per_stage": 1}
  with devices(2):
    train_pack(together)
    for workdir, config in together.items():
      train(config, tmp_path / workdir.name)
      assert_equal_training(tmp_path / workdir.name, workdir)


# ---- resumed -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pack_goes_on_as_singles(tmp_path):
  with interrupted_at(3), pytest.raises(Interrupted) as stop:
    train_pack(in_directories(tmp_path / "pack"))
  assert stop.value.args[1] == 6
  for workdir, config in in_directories(tmp_path / "pack").items():
    assert checkpoint_steps(workdir)[-1] == 6
    assert train(config, workdir)["packed_runs"] == 1
    train(config, tmp_path / workdir.name)
    assert_equal_training(tmp_path / workdir.name, workdir)


def test_singles_go_on_as_a_pack_of_those_at_one_step(tmp_path):
  """And one that is finished is not repeated."""
  runs = in_directories(tmp_path / "pack")
  for poll, (workdir, config) in zip((3, 3, 5), runs.items(), strict=True):
    with interrupted_at(poll), pytest.raises(Interrupted):
      train(config, workdir)
  assert [checkpoint_steps(workdir)[-1] for workdir in runs] == [6, 6, 9]
  results = train_pack(runs)
  assert [r["packed_runs"] for r in results.values()] == [2, 2, 1]
  for workdir, config in runs.items():
    train(config, tmp_path / workdir.name)
    assert_equal_training(tmp_path / workdir.name, workdir)
  assert train_pack(runs) == results


# ---- failures ----------------------------------------------------------------------------------


def test_one_that_diverges_does_not_spoil_the_others(tmp_path, monkeypatch):
  """Its weights are made too large at the start."""
  real = train_module.prepare

  def poisoned(config, *data):
    run = real(config, *data)
    if config.seed == 1:
      params = jax.tree.map(lambda p: p * 1e38, run.init_state.params)
      run = run._replace(init_state=run.init_state._replace(params=params))
    return run

  monkeypatch.setattr(train_module, "prepare", poisoned)
  runs = in_directories(tmp_path / "pack")
  a, b, c = train_pack(runs).values()
  assert isinstance(b, FloatingPointError) and "is not finite" in str(b)
  assert a["steps"] == c["steps"] == TOTAL_STEPS
  assert not (tmp_path / "pack" / "b" / "results.json").exists()
  assert not records(tmp_path / "pack" / "b", "train")
  train(runs[tmp_path / "pack" / "a"], tmp_path / "a")
  assert_equal_training(tmp_path / "a", tmp_path / "pack" / "a")


def test_one_that_cannot_start_does_not_stop_the_others(tmp_path):
  runs = in_directories(tmp_path)
  runs[tmp_path / "b"].method.sparsity = 1.5
  a, b, c = train_pack(runs).values()
  assert isinstance(b, ValueError) and "1.5" in str(b)
  assert a["packed_runs"] == c["packed_runs"] == 2


def test_layers_that_are_dense_in_some_runs_only(tmp_path):
  """Their states cannot be stacked, so they train one after the other."""
  runs = in_directories(tmp_path, names="ab")
  for config, sparsity in zip(runs.values(), (0.1, 0.7), strict=True):
    config.method.sparsity = sparsity
  kinds = {packs.signature(prepare(config).init_state) for config in runs.values()}
  assert len(kinds) == 2
  assert [r["packed_runs"] for r in train_pack(runs).values()] == [1, 1]


def test_configs_that_differ_in_more_are_refused(tmp_path):
  runs = in_directories(tmp_path, names="ab")
  runs[tmp_path / "b"].optimizer.learning_rate = 0.2
  with pytest.raises(ValueError, match=r"differ in nothing but name, seed, method\.sparsity"):
    train_pack(runs)
  assert not list(tmp_path.iterdir())


# ---- what is batched ---------------------------------------------------------------------------


def count_conditions(jaxpr):
  """How many conditionals there are, those within others included."""
  count = 0
  for equation in jaxpr.eqns:
    count += equation.primitive.name == "cond"
    for value in equation.params.values():
      for inner in value if isinstance(value, list | tuple) else [value]:
        inner = getattr(inner, "jaxpr", inner)
        count += count_conditions(inner) if hasattr(inner, "eqns") else 0
  return count


@pytest.mark.parametrize("every", [1, 2])
def test_topology_updates_stay_conditional_in_a_pack(every):
  """If not, they would be computed in every step."""
  changes = {"method.name": "rigl", "optimizer.accumulation_steps": every}
  runs = [prepare(config) for config in configs(changes).values()]
  states = [run.init_state for run in runs]
  update = lambda s: runs[0].tx.update(s.params, s.opt_state, s.params)[1]
  conditions = lambda fn, state: count_conditions(jax.make_jaxpr(fn)(state).jaxpr)
  alone = conditions(update, states[0])
  stacked = packs.stack(states)
  axes = packs.run_axes(stacked)
  pack = jax.vmap(update, in_axes=(axes,), out_axes=axes.opt_state)
  assert conditions(pack, stacked) == alone >= every
  # Were the counters batched, the test would see it.
  all_batched = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  assert conditions(jax.vmap(update), all_batched) < alone


def test_a_pack_of_one_is_not_batched():
  run = prepare(tiny_config())
  assert packs.stack([run.init_state]) is run.init_state
  assert packs.unstack(run.init_state, 0, 1) is run.init_state


def test_stacking_and_its_inverse():
  states = [prepare(config).init_state for config in configs().values()]
  stacked = packs.stack(states)
  assert np.shape(stacked.step) == np.shape(sx.get_state(stacked.opt_state).step) == ()
  assert np.shape(sx.get_state(stacked.opt_state).budgets["head/kernel"]) == (3,)
  for i, state in enumerate(states):
    jax.tree.map(np.testing.assert_array_equal, packs.unstack(stacked, i, 3), state)


@pytest.mark.slow
def test_each_run_draws_its_own_augmentation():
  """The metrics of a pack are those of its seeds, in their order."""
  run = prepare(tiny_config())
  noisy = lambda key, images, batch: jax.random.uniform(key, (batch.shape[0], *images.shape[1:]))
  data = run.data.__class__(**{**vars(run.data), "augment_fn": noisy})
  pipeline = make_input_pipeline(data, batch_size=16, eval_batch_size=7, seed=0)
  device_data = replicate(pipeline.device_data)
  losses = {}
  for seeds in ((0,), (1,), (0, 1)):
    fn = make_train_fn(
      run.apply,
      optax.with_extra_args_support(run.tx),
      pipeline,
      label_smoothing=0.0,
      seeds=seeds,
      max_steps=1,
    )
    fresh = jax.tree.map(np.asarray, prepare(tiny_config()).init_state)
    state = replicate(packs.stack([fresh for _ in seeds]))
    batches = shard_batches([list(pipeline.train_batches(0, 1)) for _ in seeds], 1)
    losses[seeds] = fn(state, device_data, batches, 1)[1].loss
  np.testing.assert_allclose(losses[0, 1], np.concatenate([losses[0,], losses[1,]]), rtol=1e-5)
  assert losses[0, 1][0] != losses[0, 1][1]


# ---- which runs --------------------------------------------------------------------------------


def test_groups_are_of_runs_that_differ_in_seed_and_sparsity_only():
  runs = configs() | {
    "d": tiny_config({"method.name": "rigl"}),
    "e": tiny_config({"seed": 3}),
    "f": tiny_config({"method.name": "rigl", "seed": 1}),
    "g": tiny_config({"method.kwargs.gamma_sal": 0.5}),
  }
  assert packs.group(runs, 99) == [["a", "b", "c", "e"], ["d", "f"], ["g"]]
  assert packs.group(runs, 3) == [["a", "b", "c"], ["d", "f"], ["e"], ["g"]]
  assert packs.group(runs, 1) == [[name] for name in runs]
