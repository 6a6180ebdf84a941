"""Training and evaluation steps: pure functions of the state, run on all devices.

Data-parallel through `jax.pmap` from the start, one device being a case of many: each device of
each process takes its part of the batch, gradients and batch statistics are averaged, and
everything in the state is the same on all devices (so it has no device axis and is checkpointed as
it is).

Randomness in the inputs depends on an example's place in the whole batch and not on the device that
happens to get it: any number of devices sees the same. Only dropout is drawn for each device.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.data import InputPipeline, Prefetch
from experiments.models import Apply
from experiments.processes.sharding import AXIS, num_devices, replicate, shard_batches
from experiments.tasks.task import Sums, Task, count_of
from experiments.training.engines import Engine, TrainState


class Metrics(NamedTuple):
  """Sums over examples, to be divided by `examples`.

  Attributes:
    loss: `[]` float32.
    sums: of the task's other metrics by name, float32; `[]` in training.
    examples: `[]` float32, their number.
    bad_step: `[]` int32, the first step whose loss was not finite; -1 if none. In evaluation, the
      step of the state if its loss is not.
    norms: `[]` float32 by name, of the last step: L2 norms of the whole gradient (also of masked
      weights, unless they are not stored), of the parameters after the step, and of its update if
      the engine has it; NaN if they were not asked for. Empty in evaluation.
  """

  loss: Array
  sums: Sums
  examples: Array
  bad_step: Array
  norms: dict[str, Array]


def steps_per_dispatch(asked: int, params: dict[str, Array]) -> int:
  """How many steps one call of the training function does at most.

  Several save the time of calling it, which is most of a small model's step. But XLA runs
  convolutions inside a loop with its slow fallback on CPU (25 times slower, measured with
  jax 0.10 and the convolutional network of configs/cifar10_quick.py).
  """
  if asked:
    return asked
  has_conv = any(p.ndim > 2 for p in params.values())
  return 1 if has_conv and jax.default_backend() == "cpu" else 20


class TrainFn(NamedTuple):
  """The training function, see `make_train_fn`.

  Attributes:
    program: what `jax.pmap` has made.
    key: the run's random key as data, on every device.
  """

  program: Any
  key: Array

  def __call__(
    self,
    state: TrainState,
    device_data: Any,
    batches: dict[str, Array],
    num_steps: int,
    signal: int = 0,
    with_norms: bool = True,
  ) -> tuple[TrainState, Metrics, Array]:
    """Does some steps."""
    numbers = replicate((np.int32(num_steps), np.int32(signal), np.bool_(with_norms)))
    return self.program(state, self.key, device_data, batches, *numbers)

  def compile(self, state: TrainState, device_data: Any, batches: dict[str, Array]) -> int | None:
    """Compiles the program, so that no call has to.

    Returns:
      Bytes on each device that a call takes besides its arguments and results: activations,
      gradients and other temporaries as the compiler has planned them; None if it does not say.
    """
    numbers = replicate((np.int32(1), np.int32(0), np.bool_(False)))
    lowered = self.program.lower(state, self.key, device_data, batches, *numbers)
    found = lowered.compile().memory_analysis()
    return None if found is None else int(found.temp_size_in_bytes)


def make_train_fn(
  engine: Engine,
  pipeline: InputPipeline,
  task: Task,
  *,
  seed: int,
  max_steps: int,
) -> TrainFn:
  """Builds the function that trains, see `TrainFn.__call__`.

  Args:
    engine: the model and its optimizer.
    pipeline: for its `train_inputs`.
    task: for its loss and metrics.
    seed: of augmentation and dropout.
    max_steps: the most steps that one call will do.

  Returns:
    `train(state, device_data, batches, num_steps, signal, with_norms) -> (state, metrics, signal)`,
    which does `num_steps <= max_steps` steps and waits for nothing. It donates `state`;
    `device_data` is the pipeline's on every device (`replicate`) and `batches` are from
    `shard_batches`. All numbers of steps share one compiled program. The returned signal is the
    largest that was passed in by any process: they learn of each other's without a further message.
  """

  def step_fn(state: TrainState, key, device_data, batch, wanted):
    augment_key, dropout_key = _step_keys(key, state.step)
    if pipeline.experience is not None:
      weights = state.params, state.model_state
      experience, device_data = pipeline.experience.advance(
        jax.random.fold_in(augment_key, 1), state.experience, acting_network(engine), weights
      )
      state = state._replace(experience=experience)
    x, targets = pipeline.train_inputs(augment_key, _places(batch), device_data, batch)

    found = engine.gradients(lambda outputs: task.loss(outputs, targets), state, x, dropout_key)
    loss, sums = found.loss, found.aux
    state = state._replace(model_state=found.model_state)
    state, updates = engine.update(found.grads, state)

    count = jnp.asarray(count_of(x) * num_devices(), jnp.float32)
    state = state._replace(step=state.step + 1)
    bad_step = jnp.where(jnp.isfinite(loss), -1, state.step)
    metrics = Metrics(loss * count, lax.psum(sums, AXIS), count, bad_step, norms={})
    measured = {"grad_norm": found.trained, "update_norm": updates, "param_norm": state.params}
    return state, metrics._replace(norms=_norms(wanted, measured))

  def one_step(state, key, device_data, batches, num_steps, signal, with_norms):
    del num_steps
    batch = jax.tree.map(lambda x: x[0], batches)
    return *step_fn(state, key, device_data, batch, with_norms), lax.pmax(signal, AXIS)

  def many_steps(state, key, device_data, batches, num_steps, signal, with_norms):
    def body(i, carry):
      state, metrics = carry
      batch = jax.tree.map(lambda x: x[i], batches)
      state, new = step_fn(state, key, device_data, batch, with_norms & (i == num_steps - 1))
      return state, _add(metrics, new)

    zero = jnp.zeros(())
    sums = dict.fromkeys(task.train_metrics, zero)
    norms = dict.fromkeys(("grad_norm", "update_norm", "param_norm"), zero)
    metrics = Metrics(zero, sums, zero, jnp.asarray(-1, jnp.int32), norms)
    done = lax.fori_loop(0, num_steps, body, (state, metrics))
    return *done, lax.pmax(signal, AXIS)

  program = jax.pmap(
    one_step if max_steps == 1 else many_steps,
    axis_name=AXIS,
    in_axes=(None, None, None, 0, None, None, None),
    out_axes=None,
    donate_argnums=0,
  )
  return TrainFn(program, replicate(np.asarray(jax.random.key_data(jax.random.key(seed)))))


def acting_network(engine: Engine) -> Callable[[Any, Any], Any]:
  """The network as `data.Experience` has it: a function of its weights and of inputs."""

  def network(weights: Any, inputs: Any) -> Any:
    params, model_state = weights
    return engine.apply(params, model_state, inputs, train=False)[0]

  return network


def _norms(wanted: Array, trees: dict[str, Any]) -> dict[str, Array]:
  """The norms of a step if wanted; in each they would take 8 % of a ResNet-18's time."""
  measure = lambda trees: {
    name: jnp.full((), jnp.nan, jnp.float32) if tree is None else optax.tree.norm(tree)
    for name, tree in trees.items()
  }
  skip = lambda trees: dict.fromkeys(trees, jnp.full((), jnp.nan, jnp.float32))
  return lax.cond(wanted, measure, skip, trees)


def _step_keys(key: Array, step: Array) -> tuple[Array, Array]:
  """The keys of augmentation, the same on all devices, and of dropout, each device's own."""
  key = jax.random.fold_in(jax.random.wrap_key_data(key), step)
  augment_key, dropout_key = jax.random.split(key)
  return augment_key, jax.random.fold_in(dropout_key, lax.axis_index(AXIS))


def _places(batch: dict[str, Array]) -> Array:
  """Where this device's examples stand in the batch of all devices, `[B]` int32."""
  size = jax.tree.leaves(batch)[0].shape[0]
  return lax.axis_index(AXIS) * size + jnp.arange(size)


def _add(total: Metrics, new: Metrics) -> Metrics:
  """The metrics of some steps and of the one after them."""
  return Metrics(
    total.loss + new.loss,
    jax.tree.map(jnp.add, total.sums, new.sums),
    total.examples + new.examples,
    jnp.where(total.bad_step >= 0, total.bad_step, new.bad_step),
    norms=new.norms,
  )


def make_eval_fn(
  apply: Apply,
  pipeline: InputPipeline,
  task: Task,
  for_test: Callable[[Any, Any, Any], Any] | None = None,
) -> Callable[..., list[Metrics]]:
  """Builds `evaluate(state, device_data, passes=1) -> [metrics of a batch]`, each example once.

  Args:
    apply: the model.
    pipeline: for its `test_inputs`, and `test_batches` of a size that all devices can share.
    task: for its metrics.
    for_test: of the run's method, see `methods.Method`.

  Returns:
    A function of the state, of what lies on every device (`replicate`), and of how many evaluations
    there will be, this one included.
  """

  def batch_fn(params, model_state, step, opt_state, device_data, batches):
    batch = jax.tree.map(lambda x: x[0], batches)
    x, targets, valid = pipeline.test_inputs(device_data, batch)
    params = for_test(params, opt_state, targets) if for_test else params
    network = lambda inputs: apply(params, model_state, inputs, train=False)[0]
    outputs = pipeline.test_outputs(network, x)
    sums = task.test_sums(outputs, targets, valid)
    sums, count = lax.psum((sums, valid.sum(dtype=jnp.float32)), AXIS)
    loss = sums.pop("loss")
    return Metrics(loss, sums, count, jnp.where(jnp.isfinite(loss), -1, step), {})

  in_axes = (None, None, None, None, None, 0)
  run = jax.pmap(batch_fn, axis_name=AXIS, in_axes=in_axes, out_axes=None)

  def evaluate(state, device_data, passes=1):
    with Prefetch(
      pipeline.test_batches(passes), lambda batch: shard_batches([batch], 1)
    ) as batches:
      opt_state = state.opt_state if for_test else ()
      known = state.params, state.model_state, state.step, opt_state, device_data
      of = lambda batch: run(*known, batch)
      return [jax.device_get(of(batch)) for batch in batches]

  return evaluate
