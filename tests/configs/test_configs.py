"""Every config builds, can be saved and trains; every sweep expands."""

import importlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

import srigl_jax as sx
from configs import base
from experiments.common.files import read_json
from experiments.models import init_functional
from experiments.sweeps.spec import expand
from experiments.tasks import make_task
from experiments.training import loop
from experiments.training.loop import train
from experiments.training.method_plan import make_method, own_arguments, plan_method
from experiments.training.methods import PRESETS
from experiments.training.network import network_builder
from experiments.training.optimizer import make_optimizer
from tests.experiments.tiny import devices, quick_compiler
from tests.helpers import mostly_slow

CONFIGS = Path(base.__file__).parent
RUNS = sorted(path.stem for path in CONFIGS.glob("*.py") if path.stem != "__init__")
SWEEPS = sorted(path.stem for path in (CONFIGS / "sweeps").glob("*.py") if path.stem != "__init__")

# The smallest model of each kind.
SMALL = {
  "actor_critic": {"hidden": (16,)},
  "q_network": {"hidden": (16,)},
  "mlp": {"hidden": (8,)},
  "convnet": {"widths": (8,), "convs_per_stage": 1},
  "resnet18": {"stage_sizes": (1,), "width": 8},
  "wide_resnet22_2": {"depth": 10, "widen": 1},
  "resnet50": {"stage_sizes": (1,), "width": 4},
  "mobilenet_v3_large": {"blocks": ((3, 16, 16, False, False, 1),), "hidden": 96},
  "bag_of_words": {"width": 16, "num_blocks": 2},
  "denoising_mlp": {"depth": 1, "width": 8, "mlp_width": 16},
  "matrix_factorisation": {"width": 8},
  "graph_sage": {"width": 8},
  "gpt": {"depth": 2, "width": 8, "num_heads": 2, "mlp_width": 16},
  "vit_b16": {"patch_size": 2, "depth": 1, "width": 8, "num_heads": 2, "mlp_width": 16},
}

# Of each task; 32 examples to train on.
SMALL_DATA = {
  "continual_classification": (
    "synthetic",
    {
      "image_shape": (4, 4, 3),
      "num_train": 32,
      "num_test": 10,
      "num_tasks": 1,
      "split": "classes",
    },
  ),
  "denoising_diffusion": (
    "synthetic",
    {"image_shape": (4, 4, 1), "num_train": 32, "num_test": 10},
  ),
  "extreme_classification": (
    "synthetic_labels",
    {"num_labels": 20, "num_features": 30, "num_train": 32, "num_test": 10},
  ),
  "image_classification": (
    "synthetic",
    {"image_shape": (4, 4, 3), "num_train": 32, "num_test": 10},
  ),
  "language_modelling": (
    "synthetic_text",
    {"length": 10, "num_words": 80, "test_chars": 72},
  ),
  "node_classification": (
    "synthetic_graph",
    {"num_nodes": 36, "neighbours": (2, 2)},
  ),
  "recommendation": ("synthetic_ratings", {"num_users": 32}),
  "dqn": ("tests.experiments.tasks.corridor:Corridor", {"test_episodes": 2}),
  "ppo": ("tests.experiments.tasks.corridor:Corridor", {"test_episodes": 2}),
}
SMALL_TASK = {
  "dqn": {"capacity": 32, "warm_up": 8, "replay_dtype": "float32"},
  "ppo": {"num_envs": 4, "num_steps": 8},
}


# Compiling these takes many seconds; others train the same optimizers, test_models their layers.
LONG = (
  "cifar10_mlp",
  "cifar10_quick",
  "cifar10_resnet18",
  "cifar10_wrn22",
  "continual_cifar10",
  "diffusion_digits",
  "gpt_gcide",
  "graph_wordnet",
  "imagenet_mobilenetv3",
  "imagenet_resnet50",
  "imagenet_vit_b16",
  "movielens",
  "dqn_minatar",
  "ppo_gymnax",
  "reverse_dictionary",
  "xmc",
)


def run_config(name, *arguments):
  return importlib.import_module(f"configs.{name}").get_config(*arguments)


def sweep_config(name):
  return importlib.import_module(f"configs.sweeps.{name}").get_config()


def fields(config, prefix=""):
  """Every field by its dotted name, but for the own arguments of a data set, model or method."""
  found = {}
  for key, value in config.items():
    name = f"{prefix}{key}"
    if isinstance(value, ConfigDict) and key != "kwargs":
      found |= fields(value, f"{name}.")
    else:
      found[name] = value
  return found


def with_lists(value):
  """The value with lists in place of its tuples, as JSON has it."""
  if isinstance(value, dict):
    return {key: with_lists(each) for key, each in value.items()}
  return [with_lists(each) for each in value] if isinstance(value, list | tuple) else value


def shrink(config):
  """The config with small images, a small model and two steps."""
  with config.unlocked():
    config.data.name, config.data.kwargs = SMALL_DATA[config.task.name]
    config.data.batch_size = 16
    config.task.kwargs.update(SMALL_TASK.get(config.task.name, {}))
    config.model.kwargs = SMALL[config.model.name]
    config.model.init_from = ""  # of a run that is not there
    if config.method.name == "prune_pretrained":
      config.method.name = "static"
      config.method.kwargs = {"structure": "constant_fan_in"}
    config.model.dtype = "float32"  # others are slow on a CPU
    config.method.sparsity = 0.5
    config.method.update_every_steps = 1
    config.method.update_until_fraction = 1.0  # so that the topology is updated once
    config.method.grad_accumulation_steps = 1
    config.optimizer.accumulation_steps = 1
    config.train.total_epochs = 1.0
    config.train.log_every_steps = 1
  return config


def test_there_are_configs():
  assert {"base", "digits", "cifar10_resnet18", "cifar10_wrn22"} <= set(RUNS)
  assert "digits" in SWEEPS


@pytest.mark.parametrize("name", RUNS)
def test_a_config_has_the_fields_of_base_and_can_be_saved(name):
  methods = [()] if name == "base" else [(), *((method,) for method in base.preset_names())]
  for arguments in methods:
    config = run_config(name, *arguments)
    assert fields(config).keys() == fields(base.get_config()).keys()
    assert json.loads(json.dumps(config.to_dict())) == with_lists(config.to_dict())
    if arguments:
      expected = PRESETS.get(arguments[0], {"name": arguments[0]})
      own = expected.get("kwargs", {})
      assert {key: config.method[key] for key in expected.keys() - {"kwargs"}} | own == (
        {key: expected[key] for key in expected.keys() - {"kwargs"}}
        | {key: config.method.kwargs[key] for key in own}
      )
      assert set(config.method.kwargs) == set(own_arguments(config.method.name))
      assert arguments[0] in config.name


@pytest.mark.parametrize("name", [name for name in RUNS if name != "base"])
def test_an_unknown_method_is_refused(name):
  with pytest.raises(ValueError, match=r"no method.* 'srgil' here: give one of dense, small_dense"):
    run_config(name, "srgil")


@pytest.mark.parametrize("name", mostly_slow(RUNS, set(RUNS) - set(LONG)))
def test_a_config_trains_two_steps(name, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "write_run_report", lambda workdir: None)
  with devices(1), quick_compiler():
    results = train(shrink(run_config(name)), tmp_path)
  assert results["steps"] == 2
  assert 0.3 < results["sparsity"] < 0.7
  assert read_json(tmp_path / "config.json")["model"]["name"] == run_config(name).model.name


@pytest.mark.parametrize(
  "name", mostly_slow(RUNS, set(RUNS) - {"imagenet_mobilenetv3", "imagenet_vit_b16"})
)
def test_a_config_fits_its_model_at_its_true_size(name):
  """Sparsity, rules and initialisation, in shapes only."""
  config = run_config(name)
  images = lambda *shape, classes: {"image_shape": shape, "num_classes": classes}
  shapes = {
    "digits": images(8, 8, 1, classes=10),
    "cifar10": images(32, 32, 3, classes=10),
    "imagenet2012": images(224, 224, 3, classes=1000),
    "files": {
      "num_features": 53_609,
      "num_labels": 236_148,
      "max_features": 64,
      "max_labels": 28,
    },
    "gcide": {"vocab_size": 97, "length": 256},
    "wordnet": {
      "num_features": 512,
      "num_relations": 26,
      "num_classes": 45,
      "neighbours": (8, 4),
    },
    "ratings": {"num_users": 943, "num_items": 1682},
    "Breakout-MinAtar": {"observation_shape": (10, 10, 4), "num_actions": 3},
    "CartPole-v1": {"observation_shape": (4,), "num_actions": 2},
  }[config.data.name]
  if config.task.name == "denoising_diffusion":
    height, width, channels = shapes["image_shape"]
    shapes = {"image_height": height, "image_width": width, "channels": channels}
  build = network_builder(config, make_task(config), shapes, config.model.kwargs.to_dict())
  _, params, _ = init_functional(build, jax.random.key(0), abstract=True)
  inner = make_optimizer(config.optimizer, optax.constant_schedule(0.1))
  tx = make_method(config.method, inner, total_steps=1000, seed=0)
  masks = sx.get_masks(jax.eval_shape(tx.init, params))
  budgets = sx.allocate(params, config.method.sparsity, config.method.distribution).budgets
  assert masks.keys() == budgets.keys()
  kernels = {path: leaf.size for path, leaf in params.items() if path.endswith("kernel")}
  active = sum(np.sum(budgets.get(path, size)) for path, size in kernels.items())  # of a stack many
  assert 1 - active / sum(kernels.values()) == pytest.approx(config.method.sparsity, abs=0.01)
  if scheme := config.method.sparse_init:  # else the model's own
    weights = jax.eval_shape(
      lambda key, *arrays: sx.init_sparse_weights(key, *arrays, scheme),
      jax.random.key(0),
      params,
      masks,
    )
    assert jax.tree.map(jnp.shape, weights) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep_expands_to_unique_runs(name):
  sweep = sweep_config(name)
  json.dumps(sweep.to_dict())
  runs = expand(sweep)
  assert len(runs) == len(sweep.variants) * len(sweep.seeds)
  distinct = set()
  for config in runs.values():
    assert fields(config).keys() == fields(base.get_config()).keys()
    values = config.to_dict()
    del values["name"]
    distinct.add(json.dumps(values, sort_keys=True))
  assert len(distinct) == len(runs)  # no run is another one's twin under a second name


def test_the_order_of_methods_is_measured_at_equal_flops():
  spent = {}
  for name, config in expand(sweep_config("order")).items():
    if not name.endswith("/seed0") or not ("_flops" in name or name.startswith("srigl_9")):
      continue
    total_steps = round(390 * config.train.total_epochs)
    density = 1 - config.method.sparsity
    plan = plan_method(config.method, total_steps=total_steps)
    done = [0, *plan.updates]
    cubic = lambda step, total=total_steps: (1 - min(1, max(0, step / total - 0.1) / 0.65)) ** 3
    history = {step: density + (1 - density) * cubic(step) for step in done[:-1]}
    history |= {done[-1]: density}
    relative = plan.training_flops(density, update_every=100, history=history)
    flops = relative * total_steps
    spent.setdefault(config.method.sparsity, {})[name.rpartition("_")[0]] = flops
  assert len(spent) == 6
  for flops in spent.values():
    tolerance = {"gradual_pruning_flops": 0.2}  # in steps of ΔT, of 129 steps
    assert len(flops) == 5
    for name, value in flops.items():
      assert value == pytest.approx(flops["srigl"], rel=tolerance.get(name, 0.01)), name


def test_an_unknown_argument_of_the_order_is_refused():
  with pytest.raises(ValueError, match="'steps'; give all, condensed, epochs"):
    importlib.import_module("configs.sweeps.order").get_config("steps")
