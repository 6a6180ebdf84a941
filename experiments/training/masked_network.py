"""A network of dense layers, its masks (if it is sparse) in the optimizer's state."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.models.small_dense import small_dense_kwargs
from experiments.tasks import Task
from experiments.training.engines import TrainState, masked_engine
from experiments.training.method_plan import Plan, check_layer_names, make_method, with_sparsity
from experiments.training.network import Model, Network, network_builder
from experiments.training.warm_start import warm_start


def masked_network(
  config: ConfigDict,
  task: Task,
  shapes: dict[str, Any],
  plan: Plan,
  inner: optax.GradientTransformation,
) -> Network:
  """The network of a config whose `method.engine` is `"masked"`.

  Args:
    config: see `configs/base.py`.
    task: what the domain brings.
    shapes: what networks are told of the data, from `task.shapes`.
    plan: of its method.
    inner: the optimizer.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
  """
  weights_key, sparse_key = jax.random.split(jax.random.key(config.seed))
  model, params, model_state = _make_model(config, task, shapes, weights_key)
  if config.model.init_from:
    params, model_state = warm_start(config.model.init_from, params, model_state)
  tx = _make_tx(config, plan, inner, params, model.macs)
  params, opt_state = _start_sparse(config, plan, tx, params, sparse_key)
  state = TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state)
  leaves = sx.plan(params, tx, show=False) if plan.method.has_masks else None
  return Network(model, masked_engine(model.apply, tx), state, leaves)


def _make_model(
  config: ConfigDict, task: Task, shapes: dict[str, Any], key: Array
) -> tuple[Model, dict[str, Array], dict[str, Array]]:
  """The network, narrowed if the method says so, with its first weights and statistics."""

  def init(kwargs: dict[str, Any]) -> tuple[Model, Any, Any]:
    build = network_builder(config, task, shapes, kwargs, shared_statistics=False)
    build_shared = network_builder(config, task, shapes, kwargs)
    apply, params, model_state = models.init_functional(build_shared, key)
    infer = lambda params, x: apply(params, model_state, x, train=False)[0]
    module = lambda params, model_state: models.with_arrays(
      build(nnx.Rngs(0)), params | model_state
    )
    macs = sx.layer_macs(infer, params, task.inputs(shapes, 1))
    return Model(kwargs, apply, module, macs), params, model_state

  kwargs = config.model.kwargs.to_dict()
  if config.method.name != "small_dense":
    return init(kwargs)
  if "image_shape" not in shapes:
    raise ValueError(
      f"config.method.name is small_dense, which knows how to narrow networks of images only, and "
      f"config.task.name is {config.task.name}: give a smaller config.model.kwargs to dense."
    )
  wide, wide_params, _ = init(kwargs)
  model, params, model_state = init(
    small_dense_kwargs(config.model.name, 1 - config.method.sparsity, **shapes, **kwargs)
  )
  size = lambda params: sum(layer.size for layer in sx.allocate(params, 0.0).layers.values())
  model = model._replace(
    share_of_weights=size(params) / size(wide_params),
    share_of_macs=sum(model.macs.values()) / sum(wide.macs.values()),
  )
  return model, params, model_state


def _make_tx(
  config: ConfigDict,
  plan: Plan,
  inner: optax.GradientTransformation,
  params: Any,
  macs: dict[str, int],
) -> optax.GradientTransformationExtraArgs:
  """The optimizer, wrapped in the sparse training method; over several batches if asked for."""
  check_layer_names(config.method, params)
  tx = make_method(
    with_sparsity(config.method, params, macs),
    inner,
    total_steps=plan.total_steps,
    seed=config.seed,
    stages=plan.stages,
  )
  if (every := config.optimizer.accumulation_steps) > 1:
    return optax.with_extra_args_support(optax.MultiSteps(tx, every).gradient_transformation())
  return tx


def _start_sparse(
  config: ConfigDict,
  plan: Plan,
  tx: optax.GradientTransformationExtraArgs,
  params: dict[str, Array],
  key: Array,
) -> tuple[dict[str, Array], Any]:
  """The optimizer's first state with the first masks, and the weights masked or drawn for them."""
  opt_state = tx.init(params)
  if plan.method.has_masks:
    masks = sx.get_masks(opt_state)
    if config.method.sparse_init and plan.method.draws_weights:
      params = sx.init_sparse_weights(key, params, masks, config.method.sparse_init)
    params = sx.apply_masks(params, masks)
  return params, opt_state
