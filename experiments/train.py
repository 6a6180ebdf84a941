"""Trains one network: `python -m experiments.train --config=configs/NAME.py --workdir=DIR`.

The same command resumes a run that was interrupted, bit for bit, and does nothing for one that is
finished. Everything that it writes is in the work directory: config.json, metrics.jsonl,
tensorboard/, checkpoints/, and at the end results.json, report.md and figures/.
"""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import cli, models, report
from experiments.checkpoint import Checkpoints
from experiments.data import Dataset, batch_indices, load
from experiments.files import read_json, write_json
from experiments.interrupt import Interrupted, watch_signals
from experiments.method import make_method
from experiments.optimizer import learning_rate, make_optimizer
from experiments.progress import progress
from experiments.record import Recorder, environment, read_metrics
from experiments.steps import (
  Metrics,
  TrainState,
  make_eval_fn,
  make_train_fn,
  replicate,
  steps_per_dispatch,
)

_DYNAMIC = ("set", "rigl", "srigl")


class Run(NamedTuple):
  """A config made concrete.

  Attributes:
    config: the config.
    data: the data set.
    train_fn: see `steps.make_train_fn`.
    eval_fn: see `steps.make_eval_fn`.
    schedule: learning rate by optimizer step.
    init_state: the state at step 0, weights masked.
    macs: multiply-accumulates for one example of each dense layer.
    steps_per_epoch: batches in an epoch.
    total_steps: batches of the run.
    max_steps: batches in one call of `train_fn`.
  """

  config: ConfigDict
  data: Dataset
  train_fn: Callable[..., tuple[TrainState, Metrics]]
  eval_fn: Callable[..., list[Metrics]]
  schedule: optax.Schedule
  init_state: TrainState
  macs: dict[str, int]
  steps_per_epoch: int
  total_steps: int
  max_steps: int

  @property
  def is_sparse(self) -> bool:
    """Whether the method masks anything."""
    return self.config.method.name != "dense"

  def steps(self, epochs: float) -> int:
    """Epochs as a number of steps, at least 1."""
    return max(1, round(epochs * self.steps_per_epoch))

  def batches(self, start: int, end: int) -> np.ndarray:
    """Indices of the batches of steps `start` to `end`, `[end - start, batch]` int32."""
    size, seed = self.config.data.batch_size, self.config.seed
    return batch_indices(start, end - start, size, len(self.data.train_labels), seed)

  def learning_rate(self, step: int) -> float:
    """Learning rate after `step` batches."""
    return float(self.schedule(step // self.config.optimizer.accumulation_steps))

  def last_update(self, step: int) -> int:
    """The step of the last topology update until `step`, 0 if there was none."""
    method, batches = self.config.method, self.config.optimizer.accumulation_steps
    if method.name not in _DYNAMIC:
      return 0
    until = int(method.update_until_fraction * (self.total_steps // batches))
    done = min(step // batches, until - 1) // method.update_every_steps
    return max(0, done) * method.update_every_steps * batches

  def warn_early(self, summary: sx.Summary, step: int) -> None:
    """Warns in the first updates if ablation takes away most of a layer."""
    method = self.config.method
    first = 5 * method.update_every_steps * self.config.optimizer.accumulation_steps
    if method.name == "srigl" and method.ablation and step <= first:
      sx.warn_if_over_ablated(summary, method.gamma_sal)

  def summarize(self, state: TrainState) -> sx.Summary:
    """Statistics of the network as it is."""
    masks, explored = {}, {}
    if self.is_sparse:
      sparse = sx.get_state(state.opt_state)
      masks, explored = sparse.masks, sparse.explored
    return sx.summarize(state.params, masks, explored=explored, macs=self.macs)


def prepare(config: ConfigDict) -> Run:
  """Loads the data, builds model and optimizer, and initialises the state.

  Raises:
    ValueError: if a setting is unknown, out of range, or does not fit the others.
    FileNotFoundError: if the data set is not there.
  """
  _check_kind_and_numbers(config)
  data = load(
    config.data.name, data_dir=config.data.data_dir or None, **config.data.kwargs.to_dict()
  )
  batch_size, num_devices = config.data.batch_size, jax.local_device_count()
  if batch_size % num_devices or not 0 < batch_size <= len(data.train_labels):
    raise ValueError(
      f"config.data.batch_size is {batch_size}; it must be a multiple of the number of devices "
      f"({num_devices}) and at most the number of training examples ({len(data.train_labels)})."
    )
  steps_per_epoch = len(data.train_labels) // batch_size
  total_steps = max(1, round(config.train.total_epochs * steps_per_epoch))
  every = config.optimizer.accumulation_steps
  optimizer_steps = total_steps // every

  weights_key, sparse_key = jax.random.split(jax.random.key(config.seed))
  apply, params, model_state = models.init(
    config.model.name,
    num_classes=data.num_classes,
    image_shape=data.image_shape,
    key=weights_key,
    dtype=config.model.dtype,
    **config.model.kwargs.to_dict(),
  )
  schedule = learning_rate(
    config.optimizer, steps_per_epoch=steps_per_epoch / every, total_steps=optimizer_steps
  )
  tx = make_method(
    config.method,
    make_optimizer(config.optimizer, schedule),
    total_steps=optimizer_steps,
    seed=config.seed,
  )
  if every > 1:
    tx = optax.with_extra_args_support(optax.MultiSteps(tx, every).gradient_transformation())
  opt_state = tx.init(params)
  if config.method.name != "dense":
    masks = sx.get_masks(opt_state)
    if config.method.sparse_init:
      params = sx.init_sparse_weights(sparse_key, params, masks, config.method.sparse_init)
    params = sx.apply_masks(params, masks)

  max_steps = steps_per_dispatch(config.train.steps_per_dispatch, params)
  image = jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
  return Run(
    config=config,
    data=data,
    train_fn=make_train_fn(
      apply,
      tx,
      data,
      label_smoothing=config.train.label_smoothing,
      seed=config.seed,
      max_steps=max_steps,
    ),
    eval_fn=make_eval_fn(apply, data, batch_size=config.train.eval_batch_size),
    schedule=schedule,
    init_state=TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state),
    macs=sx.layer_macs(lambda p, x: apply(p, model_state, x, train=False)[0], params, image),
    steps_per_epoch=steps_per_epoch,
    total_steps=total_steps,
    max_steps=max_steps,
  )


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains to the end, from the last checkpoint if there is one.

  Args:
    config: see `configs/base.py`.
    workdir: directory of this run and no other.

  Returns:
    The results, as `results.json` holds them.

  Raises:
    ValueError: if the config is not usable, or `workdir` belongs to another config.
    FloatingPointError: if the loss is not finite; the last checkpoint stays.
    Interrupted: after SIGINT or SIGTERM, once the state is saved.
  """
  check_owner(workdir, config)
  results = read_json(workdir / "results.json")
  # The report is written last, so it may be all that is missing.
  if not results or not (workdir / "report.md").exists():
    results = results or _train(config, workdir)
    report.write_run_report(workdir)
  return results


def _train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
  """Trains what is left of a run and writes its results."""
  run = prepare(config)
  write_json(workdir / "config.json", config.to_dict())
  checkpoints = Checkpoints(workdir / "checkpoints", keep=config.train.keep_checkpoints)
  try:
    restored = checkpoints.restore(run.init_state)
    state = replicate(run.init_state if restored is None else restored)
    state = _loop(run, state, workdir, checkpoints)
  finally:
    checkpoints.close()
  results = _as_json(_results(run, state, workdir))
  write_json(workdir / "results.json", results)
  return results


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


def check_owner(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that belongs to another config.

  Raises:
    ValueError: naming the directory, and the settings in which the configs differ.
  """
  theirs = read_json(workdir / "config.json")
  differing = _differences(theirs, _as_json(config.to_dict())) if theirs else {}
  differing.pop("data.data_dir", None)  # where the data lie does not change what is learnt
  if differing:
    listed = "; ".join(f"{k}: {a!r} there, {b!r} here" for k, (a, b) in differing.items())
    raise ValueError(
      f"{workdir} holds a run of another config ({listed}). Give this run a --workdir of its own, "
      "or repeat the other one's config to resume it."
    )


def _as_json(value: Any) -> Any:
  """The value as it comes back from a JSON file."""
  if isinstance(value, dict):
    return {k: _as_json(v) for k, v in value.items()}
  return [_as_json(v) for v in value] if isinstance(value, list | tuple) else value


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
  if not isinstance(a, dict) or not isinstance(b, dict):
    return {} if a == b else {prefix: (a, b)}
  found: dict[str, tuple[Any, Any]] = {}
  for key in sorted(a.keys() | b.keys()):
    path = f"{prefix}.{key}" if prefix else key
    found |= _differences(a.get(key), b.get(key), path)
  return found


def _loop(run: Run, state: TrainState, workdir: Path, checkpoints: Checkpoints) -> TrainState:
  """Trains from `state` to the end, recording and saving on the way; returns the last state."""
  config = run.config.train
  images, labels = replicate((run.data.train_images, run.data.train_labels))
  test_set = replicate((run.data.test_images, run.data.test_labels))
  log_every = config.log_every_steps
  eval_every = run.steps(config.eval_every_epochs)
  save_every = run.steps(config.checkpoint_every_epochs)
  step = int(state.step)
  summary, summary_step = run.summarize(state), step
  window: list[Metrics] = []
  since = time.perf_counter()
  with (
    contextlib.closing(Recorder(workdir, step=step)) as recorder,
    watch_signals() as interrupted,
    progress(run.config.name, step=step, total_steps=run.total_steps) as show,
  ):
    if step == 0:
      recorder.write_topology(step, summary, last_update=0)
    while step < run.total_steps:
      stops = [step - step % every + every for every in (log_every, eval_every, save_every)]
      end = min(step + run.max_steps, run.total_steps, *stops)
      state, metrics = run.train_fn(state, images, labels, run.batches(step, end))
      step = end
      window.append(metrics)
      finished, stopping = step == run.total_steps, interrupted()
      if not (finished or stopping or step in stops):
        continue

      values = _averages(window)
      seconds = time.perf_counter() - since
      values |= {"images_per_s": values.pop("examples") / seconds, "seconds": seconds}
      window, since = [], time.perf_counter()
      if run.last_update(step) > summary_step:
        summary, summary_step = run.summarize(state), step
        recorder.write_topology(step, summary, last_update=run.last_update(step))
        run.warn_early(summary, step)
      recorder.write("train", step, **values, learning_rate=run.learning_rate(step))
      show(
        step,
        loss=values["loss"],
        accuracy=values["accuracy"],
        **{"images/s": round(values["images_per_s"])},
        sparsity=f"{summary.sparsity:.2%}",
        neurons=f"{summary.active_neurons:.1%}",
      )
      test = None
      if finished or step % eval_every == 0:
        test = _averages(run.eval_fn(state, *test_set))
        recorder.write("test", step, loss=test["loss"], accuracy=test["accuracy"])
      if finished or stopping or step % save_every == 0:
        checkpoints.save(step, state, test_accuracy=test["accuracy"] if test else None)
      since += time.perf_counter() - since if test else 0.0
      if stopping and not finished:
        checkpoints.wait()
        raise Interrupted(stopping, step)
  return state


def _averages(window: list[Metrics]) -> dict[str, float]:
  """Loss and accuracy over a window, and the examples in it.

  Raises:
    FloatingPointError: if a loss in the window is not finite.
  """
  window = jax.device_get(window)
  if bad := [int(m.bad_step) for m in window if m.bad_step >= 0]:
    raise FloatingPointError(
      f"The loss of step {bad[0]} is not finite: the run has diverged. The checkpoints from before "
      "are kept. Lower config.optimizer.learning_rate, set config.optimizer.clip_norm or "
      "config.optimizer.warmup_epochs, and start in another --workdir."
    )
  count = float(sum(m.examples for m in window))
  return {
    "loss": float(sum(m.loss for m in window)) / count,
    "accuracy": float(sum(m.correct for m in window)) / count,
    "examples": count,
  }


def _results(run: Run, state: TrainState, workdir: Path) -> dict[str, Any]:
  """What `results.json` holds of a finished run."""
  metrics = read_metrics(workdir)
  summary = run.summarize(state)
  tests = [record["accuracy"] for record in metrics["test"]]
  inference = summary.inference_flops
  method = run.config.method
  training = inference
  if inference is not None and method.name in (
    "rigl",
    "srigl",
  ):  # those that need dense gradients now and then
    training = sx.training_flops(inference, update_every=method.update_every_steps)
  return {
    "name": run.config.name,
    "method": method.name,
    "seed": run.config.seed,
    "steps": run.total_steps,
    "test_accuracy": tests[-1],
    "best_test_accuracy": max(tests),
    "sparsity": summary.sparsity,
    "active_neurons": summary.active_neurons,
    "itop_rate": summary.itop_rate,
    "inference_flops": inference,
    "training_flops": training,
    "train_seconds": sum(record["seconds"] for record in metrics["train"]),
    "layers": [layer._asdict() for layer in summary.layers],
    "table": str(summary),
    "environment": environment(),
  }


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  cli.use_compile_cache(workdir / ".compiled")
  try:
    results = train(_CONFIG.value, workdir)
  except Interrupted as stop:
    number, step = stop.args
    print(f"Stopped and saved at step {step}. The same command goes on from there.")
    return 128 + number
  print(results["table"])
  print(
    f"test accuracy {results['test_accuracy']:.2%} (best {results['best_test_accuracy']:.2%}); "
    f"report in {workdir / 'report.md'}"
  )
  return 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_string("workdir", None, "Directory of this run.", required=True)
  cli.run(main)
