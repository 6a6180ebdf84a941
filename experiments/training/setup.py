"""A run: a config made concrete, and the checks that it must pass."""

import inspect
from typing import Any, NamedTuple

import jax
import optax
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.data import InputPipeline
from experiments.processes.sharding import num_devices
from experiments.tasks import Task, make_task
from experiments.training.condensed_network import condensed_network, is_condensed
from experiments.training.engines import Engine, TrainState
from experiments.training.masked_network import masked_network
from experiments.training.method_plan import Plan, in_config_terms, plan_method
from experiments.training.network import Model, Network
from experiments.training.optimizer import learning_rate, make_optimizer
from experiments.training.steps import acting_network, steps_per_dispatch

_EXPERIENCE = 1  # of the run's key, beside what weights and masks are drawn from


class Run(NamedTuple):
  """A config made concrete.

  Attributes:
    config: the config.
    task: what the domain brings, see `tasks.Task`.
    data: the data set.
    shapes: what networks are told of it, see `tasks.Task`.
    pipeline: its batches, see `data.InputPipeline`.
    plan: of its method.
    model: the network.
    engine: how it is trained: the model with its optimizer, wrapped in the method.
    schedule: learning rate by optimizer step.
    steps_per_epoch: batches in an epoch.
    total_steps: batches of the run.
    max_steps: batches in one call of the device.
    leaves: what sparse training does to each parameter; None if it does nothing.
  """

  config: ConfigDict
  task: Task
  data: Any
  shapes: dict[str, Any]
  pipeline: InputPipeline
  plan: Plan
  model: Model
  engine: Engine
  schedule: optax.Schedule
  steps_per_epoch: int
  total_steps: int
  max_steps: int
  leaves: sx.Plan | None

  @property
  def is_sparse(self) -> bool:
    """Whether the method masks anything."""
    return self.plan.method.has_masks

  @property
  def eval_every(self) -> int:
    """Steps from one evaluation to the next."""
    return self._steps(self.config.train.eval_every_epochs)

  @property
  def save_every(self) -> int:
    """Steps from one checkpoint to the next."""
    return self._steps(self.config.train.checkpoint_every_epochs)

  def _steps(self, epochs: float) -> int:
    """Epochs as a number of steps, at least 1."""
    return max(1, round(epochs * self.steps_per_epoch))

  def next_boundary(self, step: int) -> int:
    """The first step after `step` at which something is recorded, evaluated or saved."""
    every = self.config.train.log_every_steps, self.eval_every, self.save_every
    return min(self._next_update(step), *(step - step % n + n for n in every))

  def _next_update(self, step: int) -> int:
    """The step of the next topology update that FLOPs depend on; the last step if there is none."""
    batches = self.config.optimizer.accumulation_steps
    if self.plan.method.flops != "mean":
      return self.total_steps
    coming = (update * batches for update in self.plan.updates if update * batches > step)
    return next(coming, self.total_steps)

  def tests_left(self, step: int) -> int:
    """How many tests there will be from `step` on, that of `step` included."""
    return -(-self.total_steps // self.eval_every) - (step - 1) // self.eval_every

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

  def topology(self, state: TrainState) -> dict[str, Any]:
    """The masks by path, or the patterns of layers in condensed form; none of a dense network."""
    if self.is_condensed:
      return models.patterns_of(state.model_state)
    return sx.get_masks(state.opt_state) if self.is_sparse else {}

  @property
  def is_condensed(self) -> bool:
    """Whether sparse layers are in condensed form."""
    return is_condensed(self.config.method)

  def summarize(self, state: TrainState) -> sx.Summary:
    """Statistics of the network as it is."""
    explored: Any = {}
    if self.is_condensed:
      explored = state.opt_state.explored or None  # not known unless asked for
    elif self.is_sparse:
      explored = sx.get_state(state.opt_state).explored
    masks = self.topology(state)
    return sx.summarize(state.params, masks, explored=explored, macs=self.model.macs)


def prepare(config: ConfigDict, *, for_restoring: bool = False) -> tuple[Run, TrainState]:
  """Loads the data, builds model and optimizer, and initialises the state.

  Args:
    config: see `configs/base.py`.
    for_restoring: whether the state's numbers do not matter: the run that its weights come from, if
      there is one, is not needed then.

  Returns:
    The run, and its state at step 0: weights masked, in the host's memory.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
    FileNotFoundError: if the data set is not there.
  """
  _check(config)
  task = make_task(config)
  data = load_data(task, config.data)
  _check_batch_size(config, data)
  shapes = task.shapes(data)
  stages = task.stages(data)
  steps_per_epoch = data.num_train // config.data.batch_size
  total_steps = stages * max(1, round(config.train.total_epochs * steps_per_epoch / stages))
  pipeline = _make_pipeline(config, task, data, total_steps if stages > 1 else None)
  every = config.optimizer.accumulation_steps
  plan = plan_method(config.method, total_steps=total_steps // every, stages=stages)

  schedule = learning_rate(
    config.optimizer, steps_per_epoch=steps_per_epoch / every, total_steps=plan.schedule_steps
  )
  make = condensed_network if is_condensed(config.method) else masked_network
  start = ConfigDict(config.to_dict()) if for_restoring else config
  if for_restoring:
    start.model.init_from = ""
  try:
    network = make(start, task, shapes, plan, make_optimizer(config.optimizer, schedule))
  except ValueError as error:
    raise ValueError(in_config_terms(str(error))) from error
  if stages > 1:
    _check_stages(config, plan, network, total_steps // stages, steps_per_epoch)
  # Examples of many steps would not fit beside the network.
  asked = 1 if pipeline.is_stream else config.train.steps_per_dispatch
  run = Run(
    config=config,
    task=task,
    data=data,
    shapes=shapes,
    pipeline=pipeline,
    plan=plan,
    model=network.model,
    engine=network.engine,
    schedule=schedule,
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    max_steps=steps_per_dispatch(asked, network.state.params),
    leaves=network.leaves,
  )
  state = network.state
  if pipeline.experience is not None:
    key = jax.random.fold_in(jax.random.key(config.seed), _EXPERIENCE)
    weights = state.params, state.model_state
    carried = pipeline.experience.init(key, acting_network(network.engine), weights)
    state = state._replace(experience=carried)
  return run, jax.device_get(state)


def load_data(task: Task, config: ConfigDict) -> Any:
  """The data set of a task that the `data` section of a config names."""
  kwargs = config.kwargs.to_dict()
  if config.validation_fraction:
    kwargs["validation_fraction"] = config.validation_fraction
    if "validation_fraction" not in inspect.signature(task.load).parameters:
      raise ValueError(
        f"config.data.validation_fraction is {config.validation_fraction}, but {config.name!r} is "
        "no data set of images, of which alone a part can be held out: set it to 0."
      )
  return task.load(config.name, data_dir=config.data_dir or None, **kwargs)


def _check_stages(
  config: ConfigDict, plan: Plan, network: Network, length: int, steps_per_epoch: int
) -> None:
  """Refuses stages of `length` steps that do not fit the rest of the config."""
  every = max(1, round(config.train.eval_every_epochs * steps_per_epoch))
  if length % every or length % config.optimizer.accumulation_steps:
    raise ValueError(
      f"config.train.eval_every_epochs is {config.train.eval_every_epochs}, {every} steps, and "
      f"config.optimizer.accumulation_steps {config.optimizer.accumulation_steps}, but training "
      f"has {plan.stages} stages of {length} steps: these must be a multiple of both. A test at "
      f"each end alone is config.train.eval_every_epochs={length / steps_per_epoch:g}."
    )
  if plan.method.for_test and network.state.model_state:
    raise ValueError(
      f"config.model.name is {config.model.name!r} with batch statistics, which later tasks change "
      "for earlier ones whatever config.method.name protects: give config.model.kwargs.norm=False "
      "to convnet, or take mlp."
    )


def _make_pipeline(
  config: ConfigDict, task: Task, data: Any, total_steps: int | None
) -> InputPipeline:
  """The batches of a data set, which all devices can share."""
  total = num_devices()
  staged = {} if total_steps is None else {"total_steps": total_steps}
  return task.pipeline(
    data,
    **staged,
    batch_size=config.data.batch_size,
    eval_batch_size=-(-config.train.eval_batch_size // total) * total,
    seed=config.seed,
  )


def _check_batch_size(config: ConfigDict, data: Any) -> None:
  batch_size, total = config.data.batch_size, num_devices()
  if batch_size % total or not 0 < batch_size <= data.num_train:
    raise ValueError(
      f"config.data.batch_size is {batch_size}; it must be a multiple of the number of devices "
      f"({total}) and at most the number of training examples ({data.num_train})."
    )


def _check(config: ConfigDict) -> None:
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
  if config.method.name == "prune_pretrained" and not config.model.init_from:
    raise ValueError(
      "config.model.init_from is empty, and prune_pretrained would prune random weights: give the "
      "work directory of a trained dense run."
    )
  if not 0 <= config.seed < 2**32:
    raise ValueError(f"config.seed is {config.seed}; it must lie in 0..2**32 - 1.")
  if not config.train.total_epochs > 0:
    raise ValueError(
      f"config.train.total_epochs is {config.train.total_epochs}; it must be more than 0."
    )
