"""Training and evaluation steps: pure functions of the state, run on every local device.

Data-parallel through `jax.pmap` from the start, one device being a case of many: each device
takes its share of the batch, gradients and batch statistics are averaged, and everything in the
state is the same on all devices (so it has no device axis and is checkpointed as it is).

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
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.data import Dataset
from experiments.models import Apply
from experiments.packs import run_axes

_AXIS = "devices"


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


def replicate(tree: Any) -> Any:
  """Puts a copy of every array on each local device, as one array without a device axis."""
  mesh = Mesh(np.asarray(jax.local_devices()), (_AXIS,))
  return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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


def make_train_fn(
  apply: Apply,
  tx: optax.GradientTransformationExtraArgs,
  data: Dataset,
  *,
  label_smoothing: float,
  seeds: Sequence[int],
  max_steps: int,
) -> Callable[[TrainState, Array, Array, np.ndarray], tuple[TrainState, Metrics]]:
  """Builds `train(state, images, labels, indices) -> (state, metrics)`.

  Args:
    apply: the model, see `experiments.models.functional`.
    tx: the optimizer, sparse training included. It gets gradients averaged over devices.
    data: for its `augment_fn`.
    label_smoothing: share of the target spread over all classes.
    seeds: of augmentation and dropout, one for each of the `R` runs of the pack.
    max_steps: the most steps that one call will do.

  Returns:
    A function that does `n <= max_steps` steps. It donates `state`, which is stacked (`packs`);
    `images` and `labels` are the whole training set on every device (`replicate`); `indices`
    `[R, n, batch]` are the batches, whose size the number of devices must divide. All `n` share
    one compiled program.
  """
  num_devices = jax.local_device_count()

  def loss_fn(params, model_state, x, y, key):
    logits, model_state = apply(params, model_state, x, train=True, rngs=key)
    labels = optax.smooth_labels(jax.nn.one_hot(y, logits.shape[-1]), label_smoothing)
    loss = optax.safe_softmax_cross_entropy(logits, labels).mean()
    return loss, (model_state, (logits.argmax(-1) == y).sum(dtype=jnp.float32))

  def step_fn(state: TrainState, key, images, labels, batch):
    key = jax.random.fold_in(jax.random.wrap_key_data(key), state.step)
    augment_key, dropout_key = jax.random.split(jax.random.fold_in(key, lax.axis_index(_AXIS)))
    x, y = data.augment_fn(augment_key, images, batch), labels[batch]
    (loss, (model_state, correct)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
      state.params, state.model_state, x, y, dropout_key
    )
    loss, grads, model_state = lax.pmean((loss, grads, model_state), _AXIS)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    count = jnp.asarray(batch.shape[0] * num_devices, jnp.float32)
    bad_step = jnp.where(jnp.isfinite(loss), -1, state.step + 1)
    metrics = Metrics(loss * count, lax.psum(correct, _AXIS), count, bad_step)
    return TrainState(state.step + 1, params, model_state, opt_state), metrics

  def pack_step(state, keys, images, labels, batch):
    if len(seeds) == 1:
      state, metrics = step_fn(state, keys[0], images, labels, batch[0])
      return state, jax.tree.map(lambda x: x[None], metrics)
    axes = run_axes(state)
    step = jax.vmap(step_fn, in_axes=(axes, 0, None, None, 0), out_axes=(axes, 0))
    return step(state, keys, images, labels, batch)

  def one_step(state, keys, images, labels, batches, num_steps):
    del num_steps
    return pack_step(state, keys, images, labels, batches[0])

  def many_steps(state, keys, images, labels, batches, num_steps):
    def body(i, carry):
      state, total = carry
      state, new = pack_step(state, keys, images, labels, batches[i])
      return state, Metrics(
        total.loss + new.loss,
        total.correct + new.correct,
        total.examples + new.examples,
        jnp.where(total.bad_step >= 0, total.bad_step, new.bad_step),
      )

    zero, none = jnp.zeros(len(seeds)), jnp.full(len(seeds), -1, jnp.int32)
    return lax.fori_loop(0, num_steps, body, (state, Metrics(zero, zero, zero, none)))

  run = jax.pmap(
    one_step if max_steps == 1 else many_steps,
    axis_name=_AXIS,
    in_axes=(None, None, None, None, 0, None),
    out_axes=None,
    donate_argnums=0,
  )
  keys = replicate(np.stack([jax.random.key_data(jax.random.key(seed)) for seed in seeds]))

  def train(state, images, labels, indices):
    num_runs, n, batch_size = indices.shape
    share = batch_size // num_devices
    batches = np.zeros((num_devices, max_steps, num_runs, share), np.int32)
    batches[:, :n] = indices.reshape(num_runs, n, num_devices, share).transpose(2, 1, 0, 3)
    return run(state, keys, images, labels, batches, np.int32(n))

  return train


def make_eval_fn(
  apply: Apply, data: Dataset, *, batch_size: int, num_runs: int = 1
) -> Callable[[TrainState, Array, Array], list[Metrics]]:
  """Builds `evaluate(state, images, labels) -> [metrics of a batch]`, each example counting once.

  Args:
    apply: the model.
    data: for its `preprocess_fn`.
    batch_size: of all devices together, rounded up to a multiple of their number.
    num_runs: `R`, runs in the pack.

  Returns:
    A function of the stacked state and of a whole data set on every device (`replicate`).
  """
  num_devices = jax.local_device_count()
  share = -(-batch_size // num_devices)

  def run_fn(params, model_state, step, x, y, valid):
    logits, _ = apply(params, model_state, x, train=False)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    correct = (logits.argmax(-1) == y) * valid
    loss, correct, count = lax.psum(((loss * valid).sum(), correct.sum(), valid.sum()), _AXIS)
    return Metrics(loss, correct, count, jnp.where(jnp.isfinite(loss), -1, step))

  def batch_fn(params, model_state, step, images, labels, batch, valid):
    x, y = data.preprocess_fn(images[batch]), labels[batch]
    if num_runs == 1:
      metrics = run_fn(params, model_state, step, x, y, valid)
      return jax.tree.map(lambda m: m[None], metrics)
    pack = jax.vmap(run_fn, in_axes=(0, 0, None, None, None, None))
    return pack(params, model_state, step, x, y, valid)

  in_axes = (None, None, None, None, None, 0, 0)
  run = jax.pmap(batch_fn, axis_name=_AXIS, in_axes=in_axes, out_axes=None)

  def evaluate(state, images, labels):
    size = share * num_devices
    batches = []
    for start in range(0, images.shape[0], size):
      index = start + np.arange(size, dtype=np.int32).reshape(num_devices, share)
      valid = (index < images.shape[0]).astype(np.float32)
      index = np.minimum(index, images.shape[0] - 1)
      metrics = run(state.params, state.model_state, state.step, images, labels, index, valid)
      batches.append(jax.device_get(metrics))
    return batches

  return evaluate
