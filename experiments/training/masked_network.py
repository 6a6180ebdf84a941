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
from experiments.data import Dataset, ImageStream
from experiments.models.small_dense import small_dense_kwargs
from experiments.processes.sharding import AXIS
from experiments.training.engines import TrainState, masked_engine
from experiments.training.method_plan import Plan, check_layer_names, make_method, with_sparsity
from experiments.training.network import Model, Network
from experiments.training.warm_start import warm_start


def masked_network(
  config: ConfigDict,
  data: Dataset | ImageStream,
  plan: Plan,
  inner: optax.GradientTransformation,
) -> Network:
  """The network of a config whose `method.engine` is `"masked"`.

  Args:
    config: see `configs/base.py`.
    data: its data set.
    plan: of its method.
    inner: the optimizer.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
  """
  weights_key, sparse_key = jax.random.split(jax.random.key(config.seed))
  model, params, model_state = _make_model(config, data, weights_key)
  if config.model.init_from:
    params, model_state = warm_start(config.model.init_from, params, model_state)
  tx = _make_tx(config, plan, inner, params, model.macs)
  params, opt_state = _start_sparse(config, plan, tx, params, sparse_key)
  state = TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state)
  leaves = sx.plan(params, tx, show=False) if plan.method.has_masks else None
  return Network(model, masked_engine(model.apply, tx), state, leaves)


def _make_model(
  config: ConfigDict, data: Dataset | ImageStream, key: Array
) -> tuple[Model, dict[str, Array], dict[str, Array]]:
  """The network, narrowed if the method says so, with its first weights and statistics."""
  shapes: dict[str, Any] = {"num_classes": data.num_classes, "image_shape": data.image_shape}

  def init(kwargs: dict[str, Any]) -> tuple[Model, Any, Any]:
    apply, params, model_state = models.init(
      config.model.name,
      key=key,
      dtype=config.model.dtype,
      batch_axis=AXIS if config.train.sync_batch_norm else None,
      **shapes,
      **kwargs,
    )
    image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
    infer = lambda params, x: apply(params, model_state, x, train=False)[0]
    build = lambda: models.build(
      config.model.name, dtype=config.model.dtype, rngs=nnx.Rngs(0), **shapes, **kwargs
    )
    module = lambda params, model_state: models.with_arrays(build(), params | model_state)
    return Model(kwargs, apply, module, sx.layer_macs(infer, params, image)), params, model_state

  kwargs = config.model.kwargs.to_dict()
  if config.method.name != "small_dense":
    return init(kwargs)
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
