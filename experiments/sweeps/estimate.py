"""What a sweep will cost, said before it starts."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import packs
from experiments.common.files import read_json
from experiments.data import load
from experiments.processes.sharding import replicate, shard_batches
from experiments.sweeps import workers
from experiments.sweeps.spec import expand
from experiments.training.setup import prepare
from experiments.training.steps import make_train_fn

_CALIBRATION_SECONDS = 2.0


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


def of_sweep(sweep: ConfigDict, workdir: Path, *, jobs: int, pack: str, calibrate: bool) -> str:
  """The number of runs, steps and images of a sweep that are not finished, and their time.

  The rate is that of its finished runs; else what the sweep's config says, `images_per_s` with its
  `images_per_s_source` (for a machine that need not be this one); else that of a calibration.

  Args:
    sweep: see `sweeps.variants_of`.
    workdir: of the sweep.
    jobs: see `sweep.run_sweep`.
    pack: see `sweep.run_sweep`.
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
      data[key] = load(
        config.data.name, data_dir=config.data.data_dir or None, **config.data.kwargs.to_dict()
      )
    size = config.data.batch_size
    of_run = max(1, round(config.train.total_epochs * (data[key].num_train // size)))
    steps += of_run
    images += of_run * size
  said = f"{said}; left: {steps:,} steps, {images:,} images."
  rate = _known_rate(sweep, runs, workdir)
  if rate is None:
    if not calibrate:
      return said
    measured = _calibrate(next(iter(left.values())))
    rate = Rate(measured, "measured just now", False)
  num_packs = len(packs.group(left, packs.choose_size(pack, next(iter(left.values())))))
  num_workers = workers.choose_jobs(jobs, num_packs) if rate.is_of_a_worker else 1
  seconds = images / rate.images_per_s
  time_left = _duration(seconds / num_workers)
  sharing = "" if num_workers == 1 else f" with {num_workers} workers, if none slows the others"
  return (
    f"{said} At {rate.images_per_s:,.0f} images/s ({rate.source}) that is {time_left}{sharing}."
  )


def _known_rate(sweep: ConfigDict, runs: dict[str, ConfigDict], workdir: Path) -> Rate | None:
  images, seconds = 0.0, 0.0
  for name, config in runs.items():
    if results := read_json(workdir / name / "results.json"):
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
  steps = 20
  train = trainer(config, 1, steps)
  done, since, seconds = 0, time.perf_counter(), 0.0
  while seconds < _CALIBRATION_SECONDS:
    train()
    done += steps
    seconds = time.perf_counter() - since
  return done * config.data.batch_size / seconds


def trainer(config: ConfigDict, num_runs: int, num_steps: int) -> Callable[[], Any]:
  """Something that trains for a while whenever it is called, for timing; compiled already.

  Args:
    config: of the runs, which differ in their seed.
    num_runs: how many train together.
    num_steps: of one call, rounded up to whole calls of the device.
  """
  configs = [ConfigDict(config.to_dict()) for _ in range(num_runs)]
  for seed, each in enumerate(configs):
    each.seed = config.seed + seed
  first = prepare(configs[0])
  runs = [first, *(prepare(each, first.data) for each in configs[1:])]
  step = make_train_fn(
    first.apply,
    first.tx,
    first.pipeline,
    label_smoothing=config.train.label_smoothing,
    seeds=[each.seed for each in configs],
    max_steps=first.max_steps,
  )
  device_data = replicate(first.pipeline.device_data)
  state = replicate(packs.stack([run.init_state for run in runs]))
  done = 0

  def train() -> Any:
    nonlocal state, done
    metrics = None
    for _ in range(-(-num_steps // first.max_steps)):
      end = done + first.max_steps
      batches = [run.batches(done, end) for run in runs]
      batch = shard_batches(batches, first.max_steps)
      state, metrics, _ = step(state, device_data, batch, first.max_steps)
      done = end
    return jax.block_until_ready(metrics)

  train()
  return train


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
