"""A network whose sparse layers are in condensed form from the first step to the last."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.processes.sharding import AXIS
from experiments.tasks import Task
from experiments.training.engines import ENGINES, TrainState, condensed_engine
from experiments.training.method_plan import (
  Plan,
  arguments_of,
  check_layer_names,
  with_sparsity,
)
from experiments.training.methods import METHODS
from experiments.training.network import Model, Network, network_builder
from srigl_jax.structures import ConstantFanIn, as_structure

_HOW_SPARSE = ("sparsity", "distribution", "density", "fan_in", "sparse")


def is_condensed(config: ConfigDict) -> bool:
  """Whether the `method` section asks for the condensed engine.

  Raises:
    ValueError: if it asks for an unknown one, or the method has no condensed form.
  """
  if config.engine not in ENGINES:
    raise ValueError(f"config.method.engine is {config.engine!r}; it must be one of {ENGINES}.")
  if config.engine == "masked":
    return False
  known = [name for name, method in METHODS.items() if method.condensed]
  reason = ""
  if config.name not in known:
    reason = f"{config.name} does not keep a constant fan-in, without which there is no such form"
    if config.name in ("dense", "small_dense"):
      reason = f"{config.name} has no sparse layers"
    elif config.name == "prune_pretrained":
      reason = "prune_pretrained starts from a dense network"
    elif config.name == "fixed_masks":
      reason = "fixed_masks takes masks of any kind"
    reason += f"; choose one of {', '.join(known)}"
  elif (given := config.kwargs.get("structure")) and as_structure(given) != ConstantFanIn():
    reason = (
      f"config.method.kwargs.structure is {given!r}; it must be 'constant_fan_in', without blocks "
      "or groups"
    )
  elif not config.sparse_init:
    reason = (
      "config.method.sparse_init is empty, and the model's own dense weights are never made; name "
      "a scheme, such as he_normal"
    )
  if reason:
    raise ValueError(
      f"config.method.engine is 'condensed', but {reason}, or train with masks: "
      "config.method.engine=masked."
    )
  return True


def condensed_network(
  config: ConfigDict,
  task: Task,
  shapes: dict[str, Any],
  plan: Plan,
  inner: optax.GradientTransformation,
) -> Network:
  """The network of a config whose `method.engine` is `"condensed"`; its arguments as the masked's.

  Patterns and weights are those that masks of the same seed start with.

  Args:
    config: see `configs/base.py`.
    task: what the domain brings.
    shapes: what networks are told of the data, from `task.shapes`.
    plan: of its method.
    inner: the optimizer.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
  """
  if config.model.init_from:
    raise ValueError(
      f"config.model.init_from is {config.model.init_from}, but dense weights are never made with "
      "config.method.engine=condensed: leave it empty, or train with masks."
    )
  weights_key, sparse_key = jax.random.split(jax.random.key(config.seed))
  kwargs = config.model.kwargs.to_dict()
  build = network_builder(config, task, shapes, kwargs, shared_statistics=False)
  dense = models.init_functional(build, weights_key, abstract=True)
  check_layer_names(config.method, dense.params)
  macs = _macs(dense, task.inputs(shapes, 1))
  method = with_sparsity(config.method, dense.params, macs, structure=ConstantFanIn())
  tx, how_sparse = _make_method(method, inner, plan, config)
  allocation = sx.allocate(dense.params, **how_sparse, structure=ConstantFanIn())
  build_fn = network_builder(config, task, shapes, kwargs)
  for path, reason in models.untrainable(build_fn, weights_key, allocation.budgets).items():
    raise ValueError(
      f"config.method.engine is 'condensed', but layer {path!r} cannot train in condensed form: "
      f"{reason}. Name it in config.method.dense, or train with masks: config.method.engine=masked."
    )
  patterns = sx.init_patterns(jax.random.key(config.seed), allocation)
  values = sx.init_condensed_weights(sparse_key, patterns, config.method.sparse_init)
  functions = models.init_condensed(build_fn, weights_key, patterns, values)
  signals = None
  if config.method.grad_accumulation_steps * config.optimizer.accumulation_steps > 1:
    alone = models.init_condensed(build, weights_key, patterns, values)
    signals = _signal_shapes(alone, task.inputs(shapes, config.data.batch_size))
  opt_state = tx.init(functions.params, patterns, signals)
  state = TrainState(jnp.zeros((), jnp.int32), functions.params, functions.model_state, opt_state)
  model = Model(kwargs, functions.apply, functions.module, macs)
  ablate = arguments_of(method, total_steps=plan.total_steps, seed=config.seed).get("ablate", False)
  leaves = sx.plan(dense.params, show=False, ablate=ablate, **how_sparse)
  engine = condensed_engine(functions.apply, functions.module, tx)
  return Network(model, engine, state, leaves)


def _macs(dense: models.FunctionalModel, inputs: Any) -> dict[str, int]:
  """Multiply-accumulates of each layer when dense, for one example."""
  model_state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dense.model_state)
  infer = lambda params, x: dense.apply(params, model_state, x, train=False)[0]
  return sx.layer_macs(infer, dense.params, inputs)


def _make_method(
  method: ConfigDict, inner: optax.GradientTransformation, plan: Plan, config: ConfigDict
) -> tuple[sx.CondensedTraining, dict[str, Any]]:
  """The optimizer wrapped in the method, and what says how sparse the layers are."""
  given = arguments_of(method, total_steps=plan.total_steps, seed=config.seed)
  how_sparse = {name: given[name] for name in _HOW_SPARSE if name in given}
  given |= {
    "axis_name": AXIS,
    "accumulation_steps": config.optimizer.accumulation_steps,
    "track_explored": method.track_explored,
  }
  function = METHODS[method.name].condensed
  assert function is not None
  takes = inspect.signature(function).parameters
  return function(inner, **{k: v for k, v in given.items() if k in takes}), how_sparse


def _signal_shapes(model: models.CondensedModel, inputs: Any) -> dict[str, Any]:
  """What topology updates need of a whole batch of inputs of these shapes."""

  def of(params: Any, model_state: Any, x: Any) -> dict[str, Any]:
    def loss_fn(module: nnx.Module) -> Array:
      outputs: Any = module(x, train=True, rngs=nnx.Rngs(0))
      return sum(y.sum() for y in jax.tree.leaves(outputs))

    return sx.condensed_value_and_grad(loss_fn)(model.module(params, model_state))[1].signals

  return jax.eval_shape(of, model.params, model.model_state, inputs)
