"""A run: a config made concrete, and the checks that it must pass."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.data import Dataset, ImageStream, InputPipeline, load, make_input_pipeline
from experiments.models.small_dense import small_dense_kwargs
from experiments.processes.sharding import AXIS, Batch, num_devices
from experiments.training.method_plan import Plan, make_method, plan_method, with_sparsity
from experiments.training.optimizer import learning_rate, make_optimizer
from experiments.training.steps import TrainState, steps_per_dispatch


class Run(NamedTuple):
  """A config made concrete.

  Attributes:
    config: the config.
    data: the data set.
    pipeline: its batches, see `data.InputPipeline`.
    plan: of its method.
    model_kwargs: arguments of the model, which a narrow one's differ in from the config's.
    apply: the model, see `models.functional`.
    tx: the optimizer, the method round it.
    schedule: learning rate by optimizer step.
    init_state: the state at step 0, weights masked, in the host's memory; its shapes once training
      has begun (`Logbook`).
    macs: multiply-accumulates for one example of each dense layer.
    share_of_weights: weights of the model relative to those of the config's; less than 1 if it has
      been narrowed.
    share_of_macs: the same of multiply-accumulates.
    steps_per_epoch: batches in an epoch.
    total_steps: batches of the run.
    max_steps: batches in one call of the device.
  """

  config: ConfigDict
  data: Dataset | ImageStream
  pipeline: InputPipeline
  plan: Plan
  model_kwargs: dict[str, Any]
  apply: models.Apply
  tx: optax.GradientTransformationExtraArgs
  schedule: optax.Schedule
  init_state: TrainState
  macs: dict[str, int]
  share_of_weights: float
  share_of_macs: float
  steps_per_epoch: int
  total_steps: int
  max_steps: int

  @property
  def is_sparse(self) -> bool:
    """Whether the method masks anything."""
    return self.plan.method.has_masks

  def steps(self, epochs: float) -> int:
    """Epochs as a number of steps, at least 1."""
    return max(1, round(epochs * self.steps_per_epoch))

  def batches(self, start: int, end: int) -> list[Batch]:
    """This process's parts of the batches of steps `start` to `end - 1`."""
    return list(self.pipeline.train_batches(start, end))

  def next_update(self, step: int) -> int:
    """The step of the next topology update that FLOPs depend on; the last step if there is none."""
    batches = self.config.optimizer.accumulation_steps
    if self.plan.method.flops != "mean":
      return self.total_steps
    coming = (update * batches for update in self.plan.updates if update * batches > step)
    return next(coming, self.total_steps)

  def learning_rate(self, step: int) -> float:
    """Learning rate after `step` batches."""
    done = step // self.config.optimizer.accumulation_steps
    return float(self.schedule(self.plan.schedule_step(done)))

  def last_update(self, step: int) -> int:
    """The step of the last topology update until `step`, 0 if there was none."""
    batches = self.config.optimizer.accumulation_steps
    return self.plan.last_update(step // batches) * batches

  @property
  def sparse_from(self) -> int:
    """The step from which the network is as sparse as asked for; tests before do not count."""
    return self.plan.sparse_from * self.config.optimizer.accumulation_steps

  def warn_early(self, summary: sx.Summary, step: int) -> None:
    """Warns in the first updates if ablation takes away most of a layer."""
    method = self.config.method
    first = 5 * method.update_every_steps * self.config.optimizer.accumulation_steps
    gamma_sal = method.kwargs.get("gamma_sal", 0)
    if gamma_sal and step <= first:
      sx.warn_if_over_ablated(summary, gamma_sal)

  def summarize(self, state: TrainState) -> sx.Summary:
    """Statistics of the network as it is."""
    masks, explored = {}, {}
    if self.is_sparse:
      sparse = sx.get_state(state.opt_state)
      masks, explored = sparse.masks, sparse.explored
    return sx.summarize(state.params, masks, explored=explored, macs=self.macs)


def prepare(config: ConfigDict, data: Dataset | ImageStream | None = None) -> Run:
  """Loads the data, builds model and optimizer, and initialises the state.

  Args:
    config: see `configs/base.py`.
    data: its data set, if that is loaded already.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
    FileNotFoundError: if the data set is not there.
  """
  _check_kind_and_numbers(config)
  data = data or load(
    config.data.name, data_dir=config.data.data_dir or None, **config.data.kwargs.to_dict()
  )
  batch_size, total = config.data.batch_size, num_devices()
  if batch_size % total or not 0 < batch_size <= data.num_train:
    raise ValueError(
      f"config.data.batch_size is {batch_size}; it must be a multiple of the number of devices "
      f"({total}) and at most the number of training examples ({data.num_train})."
    )
  steps_per_epoch = data.num_train // batch_size
  total_steps = max(1, round(config.train.total_epochs * steps_per_epoch))
  every = config.optimizer.accumulation_steps
  plan = plan_method(config.method, total_steps=total_steps // every)

  kwargs = config.model.kwargs.to_dict()
  if config.method.name == "small_dense":
    kwargs = small_dense_kwargs(
      config.model.name,
      1 - config.method.sparsity,
      num_classes=data.num_classes,
      image_shape=data.image_shape,
      **kwargs,
    )
  weights_key, sparse_key = jax.random.split(jax.random.key(config.seed))
  apply, params, model_state = models.init(
    config.model.name,
    num_classes=data.num_classes,
    image_shape=data.image_shape,
    key=weights_key,
    dtype=config.model.dtype,
    batch_axis=AXIS if config.train.sync_batch_norm else None,
    **kwargs,
  )
  image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
  macs = _macs(apply, params, model_state, image)
  share_of_weights = share_of_macs = 1.0
  if config.method.name == "small_dense":
    wide = models.init(
      config.model.name,
      num_classes=data.num_classes,
      image_shape=data.image_shape,
      key=weights_key,
      **config.model.kwargs.to_dict(),
    )
    size = lambda params: sum(layer.size for layer in sx.allocate(params, 0.0).layers.values())
    share_of_weights = size(params) / size(wide.params)
    share_of_macs = sum(macs.values()) / sum(_macs(*wide, image).values())
  schedule = learning_rate(
    config.optimizer, steps_per_epoch=steps_per_epoch / every, total_steps=plan.schedule_steps
  )
  tx = make_method(
    with_sparsity(config.method, params, macs),
    make_optimizer(config.optimizer, schedule),
    total_steps=plan.total_steps,
    seed=config.seed,
  )
  if every > 1:
    tx = optax.with_extra_args_support(optax.MultiSteps(tx, every).gradient_transformation())
  opt_state = tx.init(params)
  if plan.method.has_masks:
    masks = sx.get_masks(opt_state)
    if config.method.sparse_init and plan.method.draws_weights:
      params = sx.init_sparse_weights(sparse_key, params, masks, config.method.sparse_init)
    params = sx.apply_masks(params, masks)

  pipeline = make_input_pipeline(
    data,
    batch_size=batch_size,
    eval_batch_size=-(-config.train.eval_batch_size // total) * total,
    seed=config.seed,
  )
  return Run(
    config=config,
    data=data,
    pipeline=pipeline,
    plan=plan,
    model_kwargs=kwargs,
    apply=apply,
    tx=tx,
    schedule=schedule,
    init_state=jax.device_get(TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state)),
    macs=macs,
    share_of_weights=share_of_weights,
    share_of_macs=share_of_macs,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    # Images of many steps would not fit beside the network.
    max_steps=1
    if pipeline.is_stream
    else steps_per_dispatch(config.train.steps_per_dispatch, params),
  )


def _macs(apply: models.Apply, params: Any, model_state: Any, image: Any) -> dict[str, int]:
  return sx.layer_macs(lambda p, x: apply(p, model_state, x, train=False)[0], params, image)


def _check_kind_and_numbers(config: ConfigDict) -> None:
  """Refuses the config of a sweep, and numbers that cannot be meant."""
  if "variants" in config:
    raise ValueError("This config is a sweep's: use python -m experiments.sweep.")
  counts = {
    "config.optimizer.accumulation_steps": config.optimizer.accumulation_steps,
    "config.train.log_every_steps": config.train.log_every_steps,
    "config.train.eval_batch_size": config.train.eval_batch_size,
    "config.train.keep_checkpoints": config.train.keep_checkpoints,
  }
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f"{name} is {value}; it must be 1 or more.")
  if not 0 <= config.seed < 2**32:
    raise ValueError(f"config.seed is {config.seed}; it must lie in 0..2**32 - 1.")
  if not config.train.total_epochs > 0:
    raise ValueError(
      f"config.train.total_epochs is {config.train.total_epochs}; it must be more than 0."
    )
