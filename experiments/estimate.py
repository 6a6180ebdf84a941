"""What a sweep will cost, said before it starts."""

import time
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from experiments import packs, workers
from experiments.data import Dataset, load
from experiments.files import read_json
from experiments.run import prepare
from experiments.steps import make_train_fn, replicate
from experiments.sweeps import expand

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
  data: dict[str, Dataset] = {}
  steps = images = 0
  for config in left.values():
    key = repr(sorted(config.data.to_dict().items()))
    if key not in data:
      data[key] = load(
        config.data.name, data_dir=config.data.data_dir or None, **config.data.kwargs.to_dict()
      )
    size = config.data.batch_size
    of_run = max(1, round(config.train.total_epochs * (len(data[key].train_labels) // size)))
    steps += of_run
    images += of_run * size
  said = f"{said}; left: {steps:,} steps, {images:,} images."
  rate = _known_rate(sweep, runs, workdir)
  if rate is None:
    if not calibrate:
      return said
    measured = _calibrate(next(iter(left.values())), next(iter(data.values())))
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


def _calibrate(config: ConfigDict, data: Dataset) -> float:
  """Images per second of a run, by a few seconds of it on the whole machine.

  Processes that share the machine are faster together; so the time is an upper limit.
  """
  run = prepare(config, data)
  train_fn = make_train_fn(
    run.apply,
    run.tx,
    data,
    label_smoothing=config.train.label_smoothing,
    seeds=[config.seed],
    max_steps=run.max_steps,
  )
  state = replicate(run.init_state)
  images, labels = replicate((data.train_images, data.train_labels))
  n = run.max_steps
  done, since, seconds = 0, 0.0, 0.0
  while seconds < _CALIBRATION_SECONDS:
    state, metrics = train_fn(state, images, labels, run.batches(done * n, done * n + n)[None])
    jax.block_until_ready(metrics)
    done += 1
    if done == 1:  # it has compiled
      since = time.perf_counter()
    seconds = time.perf_counter() - since if done > 1 else 0.0
  return (done - 1) * n * config.data.batch_size / seconds


def _duration(seconds: float) -> str:
  if seconds < 90:
    return f"{seconds:.0f} s"
  return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
