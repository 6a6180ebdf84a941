"""What a sweep will cost, said before it starts."""

import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.common.files import read_sound
from experiments.processes.sharding import replicate, shard_batches
from experiments.sweeps import workers
from experiments.sweeps.spec import expand
from experiments.tasks import make_task
from experiments.training.setup import load_data, prepare
from experiments.training.steps import make_train_fn

_CALIBRATION_SECONDS, _CALIBRATION_STEPS = 2.0, 20


class Rate(NamedTuple):
  """How fast a network trains.

  Attributes:
    images_per_s: of one worker, or of the whole machine.
    source: where that is from.
    is_of_a_worker: whether several workers are that much faster.
  """

  images_per_s: float
  source: str
  is_of_a_worker: bool


def sweep_cost(sweep: ConfigDict, workdir: Path, *, jobs: int, calibrate: bool) -> str:
  """The number of runs, steps and images of a sweep that are not finished, and their time.

  The rate is that of its finished runs; else what the sweep's config says, `images_per_s` with its
  `images_per_s_source` (for a machine that need not be this one); else that of a calibration.

  Args:
    sweep: see `sweeps.variants_of`.
    workdir: of the sweep.
    jobs: see `sweep.run_sweep`.
    calibrate: whether to train for a few seconds if there is no other figure; else no time is
      given then.

  Raises:
    ValueError: if the sweep is not usable.
    FileNotFoundError: if its data are not there.
  """
  runs = expand(sweep)
  left = {n: c for n, c in runs.items() if not (workdir / n / "results.json").exists()}
  said = f"{len(runs)} runs, {len(runs) - len(left)} of them finished"
  if not left:
    return f"{said}."
  data: dict[str, Any] = {}
  steps = images = 0
  for config in left.values():
    key = repr(sorted(config.data.to_dict().items()))
    if key not in data:
      task = make_task(config)
      data[key] = load_data(task, config.data)
    size = config.data.batch_size
    of_run = max(1, round(config.train.total_epochs * (data[key].num_train // size)))
    steps += of_run
    images += of_run * size
  said = f"{said}; left: {steps:,} steps, {images:,} {task.unit}."
  rate = _known_rate(sweep, runs, workdir)
  if rate is None:
    if not calibrate:
      return said
    measured = _calibrate(next(iter(left.values())))
    rate = Rate(measured, "measured just now", False)
  num_workers = workers.choose_jobs(jobs, len(left)) if rate.is_of_a_worker else 1
  seconds = images / rate.images_per_s
  time_left = _duration(seconds / num_workers)
  sharing = "" if num_workers == 1 else f" with {num_workers} workers, if none slows the others"
  return (
    f"{said} At {rate.images_per_s:,.0f} {task.unit}/s ({rate.source}) that is {time_left}"
    f"{sharing}, without the start-up and compilation of each run."
  )


_COUNTED = {"steps": int, "train_seconds": float}


def _known_rate(sweep: ConfigDict, runs: dict[str, ConfigDict], workdir: Path) -> Rate | None:
  images, seconds = 0.0, 0.0
  for name, config in runs.items():
    if results := read_sound(workdir / name / "results.json", _COUNTED):
      images += results["steps"] * config.data.batch_size
      seconds += results["train_seconds"]
  if seconds:
    return Rate(images / seconds, "that of the finished runs", True)
  if given := sweep.get("images_per_s"):
    return Rate(given, sweep.get("images_per_s_source", "as the config says"), False)
  return None


def _calibrate(config: ConfigDict) -> float:
  """Images per second of a run, by a few seconds of it on the whole machine.

  Processes that share the machine are faster together; so the time is an upper limit.
  """
  run, init_state = prepare(config)
  train_fn = make_train_fn(
    run.engine,
    run.pipeline,
    run.task,
    seed=config.seed,
    max_steps=run.max_steps,
  )
  state, device_data = replicate((init_state, run.pipeline.device_data))
  step = 0

  def train() -> None:
    nonlocal state, step
    for _ in range(-(-_CALIBRATION_STEPS // run.max_steps)):
      end = step + run.max_steps
      batches = shard_batches(list(run.pipeline.train_batches(step, end)), run.max_steps)
      state, metrics, _ = train_fn(state, device_data, batches, run.max_steps, with_norms=False)
      step = end
    jax.block_until_ready(metrics)

  train()  # compiles
  first, since, seconds = step, time.perf_counter(), 0.0
  while step == first or seconds < _CALIBRATION_SECONDS:
    train()
    seconds = time.perf_counter() - since
  return (step - first) * config.data.batch_size / seconds


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
