"""Training and evaluation steps: pure functions of the state, run on all devices.

Data-parallel through `jax.pmap` from the start, one device being a case of many: each device of
each process takes its share of the batch, gradients and batch statistics are averaged, and
everything in the state is the same on all devices (so it has no device axis and is checkpointed as
it is).

Randomness in the inputs depends on an example's place in the whole batch and not on the device that
happens to get it: any number of devices sees the same. Dropout alone is drawn for each device.

A pack of `R` runs trains together under `jax.vmap` (`experiments.packs`). A pack of one is not
batched at all, since XLA has slower convolutions for that.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from experiments.data import InputPipeline, Prefetch
from experiments.models import Apply
from experiments.packs import run_axes
from experiments.processes.sharding import AXIS, num_devices, replicate, shard_batches


class TrainState(NamedTuple):
  """Everything that training carries from step to step.

  Attributes:
    step: `[]` int32, batches done. The batch order and all randomness are functions of the seed
      and the step, so this is the position in the data too.
    params: `{path: array}`, zero off the masks.
    model_state: `{path: array}`, batch statistics.
    opt_state: the optimizer's state, the masks within.
  """

  step: Array
  params: dict[str, Array]
  model_state: dict[str, Array]
  opt_state: Any


class Metrics(NamedTuple):
  """Sums over examples for each run of a pack, to be divided by `examples`.

  Attributes:
    loss: `[R]` float32.
    correct: `[R]` float32, correct predictions.
    examples: `[R]` float32, their number.
    bad_step: `[R]` int32, the first step whose loss was not finite; -1 if none. In evaluation, the
      step of the state if its loss is not.
  """

  loss: Array
  correct: Array
  examples: Array
  bad_step: Array


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
    keys: of the runs, on every device.
  """

  program: Any
  keys: Array

  def __call__(
    self,
    state: TrainState,
    device_data: Any,
    batches: dict[str, Array],
    num_steps: int,
    signal: int = 0,
  ) -> tuple[TrainState, Metrics, Array]:
    """Does some steps."""
    numbers = replicate((np.int32(num_steps), np.int32(signal)))
    return self.program(state, self.keys, device_data, batches, *numbers)

  def temporary_bytes(
    self, state: TrainState, device_data: Any, batches: dict[str, Array]
  ) -> int | None:
    """Bytes on each device that a call takes besides its arguments and results.

    Activations, gradients and other temporaries as the compiler has planned them, which compiles
    the program once more; None if the backend does not say.
    """
    numbers = replicate((np.int32(1), np.int32(0)))
    lowered = self.program.lower(state, self.keys, device_data, batches, *numbers)
    found = lowered.compile().memory_analysis()
    return None if found is None else int(found.temp_size_in_bytes)


def make_train_fn(
  apply: Apply,
  tx: optax.GradientTransformationExtraArgs,
  pipeline: InputPipeline,
  *,
  label_smoothing: float,
  seeds: Sequence[int],
  max_steps: int,
) -> TrainFn:
  """Builds `train(state, device_data, batches, num_steps, signal=0) -> (state, metrics, signal)`.

  Args:
    apply: the model, see `experiments.models.functional`.
    tx: the optimizer, sparse training included. It gets gradients averaged over devices.
    pipeline: for its `train_inputs`.
    label_smoothing: share of the target spread over all classes.
    seeds: of augmentation and dropout, one for each of the `R` runs of the pack.
    max_steps: the most steps that one call will do.

  Returns:
    A function that does `num_steps <= max_steps` steps and waits for nothing. It donates `state`,
    which is stacked (`packs`); `device_data` is the pipeline's on every device (`replicate`) and
    `batches` are from `shard_batches`. All numbers of steps share one compiled program. The signal
    that comes out is the largest that went in, in any process: they learn of each other's with no
    further message.
  """
  total = num_devices()

  def loss_fn(params, model_state, x, targets, key):
    logits, model_state = apply(params, model_state, x, train=True, rngs=key)
    smooth = optax.smooth_labels(targets, label_smoothing)
    loss = optax.safe_softmax_cross_entropy(logits, smooth).mean()
    is_correct = logits.argmax(-1) == targets.argmax(-1)
    return loss, (model_state, is_correct.sum(dtype=jnp.float32))

  def step_fn(state: TrainState, key, device_data, batch):
    share, device = jax.tree.leaves(batch)[0].shape[0], lax.axis_index(AXIS)
    key = jax.random.fold_in(jax.random.wrap_key_data(key), state.step)
    augment_key, dropout_key = jax.random.split(key)
    x, targets = pipeline.train_inputs(
      augment_key, device * share + jnp.arange(share), device_data, batch
    )
    (loss, (model_state, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, state.model_state, x, targets, jax.random.fold_in(dropout_key, device)
    )
    loss, grads, model_state = lax.pmean((loss, grads, model_state), AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = jnp.asarray(share * total, jnp.float32)
    bad_step = jnp.where(jnp.isfinite(loss), -1, state.step + 1)
    metrics = Metrics(loss * count, lax.psum(correct, AXIS), count, bad_step)
    return TrainState(state.step + 1, params, model_state, opt_state), metrics

  def pack_step(state, keys, device_data, batches, i):
    batch = jax.tree.map(lambda x: x[i], batches)
    if len(seeds) == 1:
      state, metrics = step_fn(state, keys[0], device_data, jax.tree.map(lambda x: x[0], batch))
      return state, jax.tree.map(lambda x: x[None], metrics)
    axes = run_axes(state)
    step = jax.vmap(step_fn, in_axes=(axes, 0, None, 0), out_axes=(axes, 0))
    return step(state, keys, device_data, batch)

  def one_step(state, keys, device_data, batches, num_steps, signal):
    del num_steps
    return *pack_step(state, keys, device_data, batches, 0), lax.pmax(signal, AXIS)

  def many_steps(state, keys, device_data, batches, num_steps, signal):
    def body(i, carry):
      state, total = carry
      state, new = pack_step(state, keys, device_data, batches, i)
      return state, Metrics(
        total.loss + new.loss,
        total.correct + new.correct,
        total.examples + new.examples,
        jnp.where(total.bad_step >= 0, total.bad_step, new.bad_step),
      )

    zero, none = jnp.zeros(len(seeds)), jnp.full(len(seeds), -1, jnp.int32)
    start = state, Metrics(zero, zero, zero, none)
    return *lax.fori_loop(0, num_steps, body, start), lax.pmax(signal, AXIS)

  run = jax.pmap(
    one_step if max_steps == 1 else many_steps,
    axis_name=AXIS,
    in_axes=(None, None, None, 0, None, None),
    out_axes=None,
    donate_argnums=0,
  )
  keys = replicate(np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds]))
  return TrainFn(run, keys)


def make_eval_fn(
  apply: Apply, pipeline: InputPipeline, *, num_runs: int = 1
) -> Callable[..., list[Metrics]]:
  """Builds `evaluate(state, device_data, passes=1) -> [metrics of a batch]`, each example once.

  Args:
    apply: the model.
    pipeline: for its `test_batches`, whose size all devices must be able to share, and
      `test_inputs`.
    num_runs: `R`, runs in the pack.

  Returns:
    A function of the stacked state, of what every device holds (`replicate`), and of how
    many evaluations there will be, this one included.
  """

  def run_fn(params, model_state, step, x, y, valid):
    logits, _ = apply(params, model_state, x, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    loss = jnp.where(valid, loss, 0).sum()
    correct = ((logits.argmax(-1) == y) & valid).sum(dtype=jnp.float32)
    loss, correct, count = lax.psum((loss, correct, valid.sum(dtype=jnp.float32)), AXIS)
    return Metrics(loss, correct, count, jnp.where(jnp.isfinite(loss), -1, step))

  def batch_fn(params, model_state, step, device_data, batch):
    x, y, valid = pipeline.test_inputs(device_data, jax.tree.map(lambda x: x[0, 0], batch))
    if num_runs == 1:
      metrics = run_fn(params, model_state, step, x, y, valid)
      return jax.tree.map(lambda m: m[None], metrics)
    pack = jax.vmap(run_fn, in_axes=(0, 0, None, None, None, None))
    return pack(params, model_state, step, x, y, valid)

  in_axes = (None, None, None, None, 0)
  run = jax.pmap(batch_fn, axis_name=AXIS, in_axes=in_axes, out_axes=None)

  def evaluate(state, device_data, passes=1):
    with Prefetch(
      pipeline.test_batches(passes), lambda batch: shard_batches([[batch]], 1)
    ) as batches:
      of = lambda batch: run(state.params, state.model_state, state.step, device_data, batch)
      return [jax.device_get(of(batch)) for batch in batches]

  return evaluate
