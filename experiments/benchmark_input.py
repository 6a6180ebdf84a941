"""Throughput of the input, and waiting for it: `python -m experiments.benchmark_input`.

For a streamed data set, ImageNet by default, it measures

- the stages of loading, one after the other on one core: reading a record, decoding it, cropping
  and augmenting it, and the way of a batch to the devices;
- the pipeline alone with several numbers of worker processes: batches are taken as soon as they
  come, from the moment that the first ones are there, in rounds that take turns;
- the fraction of a training step that is spent waiting for its batch: with `--step_ms`, a step that
  takes so long and leaves the host alone, as an accelerator does; with `--model_step`, the
  training step of a real network on the devices that there are (on a CPU, it competes with the
  workers for the cores).

A sample of ImageNet has smaller images than ImageNet. `--shorter_side=375` enlarges them to the
usual size before anything is measured; they are smoother and hence smaller files than photographs
of that size, so that decoding flatters a little. Records are repeated as often as needed.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import data
from experiments.benchmarks.input_cases import Step, model_step, open_stream
from experiments.benchmarks.timing import quartiles, take_turns
from experiments.common import cli
from experiments.common.environment import available_cores, command_line, environment
from experiments.common.files import RESULTS, write_json
from experiments.common.markdown import markdown_table
from experiments.common.progress import progress
from experiments.data.crops import decode
from experiments.data.record_rng import record_rng
from experiments.data.records import Images
from experiments.data.stream import ImageStream, ProcessShard

_OUT = RESULTS / "benchmark_input.json"
_SEED = 0
# The network of --model_step without a config: small enough for a CPU at 224 × 224 pixels.
_SMALL_CONVNET: dict[str, Any] = {"widths": (16, 32, 64, 128, 256), "convs_per_stage": 1}

Row = dict[str, Any]

RECIPES: dict[str, dict[str, Any]] = {
  "resnet50": {},
  "vit": {
    "crop": "random_resized_crop",
    "randaugment_magnitude": 9,
    "mixup": 0.2,
    "cutmix": 1.0,
  },
}
"""What is done to training images, as arguments of the data set."""


def stage_rows(stream: ImageStream, *, num_images: int, batch_size: int) -> Iterator[Row]:
  """Times the stages one by one on this thread."""
  split = stream.train
  if isinstance(split, Images):
    indices = [i % len(split) for i in range(num_images)]
    records, spent = _each(split.records.__getitem__, indices)
    yield _stage("read", spent)
    images, spent = _each(lambda record: decode(record.image), records)
    yield _stage("decode", spent) | {
      "median_pixels": int(np.median([image.width * image.height for image in images])),
      "median_bytes": int(np.median([len(record.image) for record in records])),
    }
    draws = (record_rng(_SEED, epoch, i) for epoch, i in enumerate(indices))
    augment_fn = split.augment_fn
    _, spent = _each(lambda pair: np.asarray(augment_fn(*pair)), zip(images, draws, strict=True))
    yield _stage("crop, flip, augment", spent)
  batch = {"image": np.zeros((batch_size, *stream.image_shape), np.uint8)}
  put = lambda _: jax.block_until_ready(data.put_on_devices(batch))
  put(None)
  _, spent = _each(put, range(max(1, num_images // batch_size)))
  yield _stage("to the devices", [seconds / batch_size for seconds in spent])


def _each(function: Callable[[Any], Any], items: Iterable[Any]) -> tuple[list[Any], list[float]]:
  """The function of every item, and the seconds that each took."""
  results, spent = [], []
  for item in items:
    start = time.perf_counter()
    results.append(function(item))
    spent.append(time.perf_counter() - start)
  return results, spent


def _stage(name: str, spent: list[float]) -> Row:
  mean = float(np.mean(spent))
  return {"name": name, "ms_per_image": 1e3 * mean, "images_per_s": 1 / mean}


def _batches(stream: ImageStream, num_workers: int, batch_size: int) -> data.Prefetch:
  """Batches without end, on the devices."""
  stream = dataclasses.replace(stream, num_workers=num_workers)
  batches = stream.train_batches(0, 10**9, batch_size=batch_size, seed=_SEED, shard=ProcessShard())
  return data.Prefetch(batches, data.put_on_devices)


def _warm_up(batches: data.Prefetch, num_workers: int, batch_size: int) -> None:
  """Takes what may have been finished before the last worker was there, and a little more."""
  for _ in range(3 + -(-128 * num_workers // batch_size)):
    next(batches)


def pipeline_rows(
  stream: ImageStream, workers: list[int], *, num_images: int, batch_size: int, rounds: int
) -> list[Row]:
  """Measures how fast batches come if they are taken at once."""

  def seconds_per_image(num_workers):
    with _batches(stream, num_workers, batch_size) as batches:
      _warm_up(batches, num_workers, batch_size)
      count = -(-num_images // batch_size)
      start = time.perf_counter()
      for _ in range(count):
        next(batches)
      return (time.perf_counter() - start) / (count * batch_size)

  candidates = {str(n): lambda n=n: seconds_per_image(n) for n in workers}
  with progress("input pipeline", step=0, total_steps=rounds) as show:
    times = take_turns(candidates, rounds=rounds, after_round=show)
  num_cores = len(available_cores())
  return [
    {
      "workers": n,
      "images_per_s": 1 / quartiles(times[str(n)])[1],
      "quartiles": [1 / t for t in quartiles(times[str(n)])[::-2]],
      "images_per_s_per_core": 1 / quartiles(times[str(n)])[1] / min(max(1, n), num_cores),
      "rounds": rounds,
    }
    for n in workers
  ]


def waiting_row(
  stream: ImageStream, step: Step, what: str, *, num_workers: int, steps: int, batch_size: int
) -> Row:
  """Measures the fraction of the time of training steps in which they wait for their batch."""
  with _batches(stream, num_workers, batch_size) as batches:
    _warm_up(batches, num_workers, batch_size)
    jax.block_until_ready(step(next(batches)))  # compiles
    waited, start = batches.waited_seconds, time.perf_counter()
    for _ in range(steps):
      jax.block_until_ready(step(next(batches)))
    total = time.perf_counter() - start
    waited = batches.waited_seconds - waited
  return {
    "step": what,
    "workers": num_workers,
    "seconds_per_step": total / steps,
    "waiting": waited / total,
    "images_per_s": steps * batch_size / total,
    "steps": steps,
  }


def _stand_in(milliseconds: float) -> Step:
  return lambda batch: time.sleep(milliseconds / 1e3)


def tables(rows: dict[str, list[Row]]) -> str:
  """The rows as tables for a page."""
  stages = [
    (row["name"], f"{row['ms_per_image']:.3f}", f"{row['images_per_s']:.0f}")
    for row in rows["stages"]
  ]
  pipeline = [
    (
      row["workers"],
      "{:.0f} ({:.0f}–{:.0f})".format(row["images_per_s"], *row["quartiles"]),
      f"{row['images_per_s_per_core']:.0f}",
    )
    for row in rows["pipeline"]
  ]
  waiting = [
    (
      row["step"],
      row["workers"],
      f"{row['seconds_per_step']:.3f}",
      f"{row['waiting']:.1%}",
      f"{row['images_per_s']:.0f}",
    )
    for row in rows["waiting"]
  ]
  return "\n\n".join(
    [
      markdown_table(("stage, on one core", "ms per image", "images/s"), stages),
      markdown_table(("workers", "images/s (quartiles)", "per core"), pipeline, align="rrr"),
      markdown_table(("training step", "workers", "seconds", "waiting", "images/s"), waiting),
    ]
  )


def main() -> None:
  """The command."""
  options = flags.FLAGS
  config = options.config
  name, kwargs, batch_size = options.name, RECIPES[options.recipe], options.batch_size
  model, model_kwargs = "convnet", _SMALL_CONVNET
  if config is not None:
    name, kwargs = config.data.name, config.data.kwargs.to_dict()
    kwargs["data_dir"] = config.data.data_dir or None
    model = config.model.name
    model_kwargs = {"dtype": config.model.dtype, **config.model.kwargs.to_dict()}
  workers = [int(n) for n in options.workers]
  if not workers or min(workers) < 0:
    raise ValueError(f"--workers is {','.join(options.workers)!r}; give numbers such as 0,1,2,4.")
  step_ms = [float(ms) if ms.replace(".", "", 1).isdigit() else -1 for ms in options.step_ms]
  if min(step_ms, default=0) < 0:
    raise ValueError(f"--step_ms is {','.join(options.step_ms)!r}; give times such as 100,400.")
  num_images = 2 * batch_size if options.quick else options.images
  rounds, steps = (1, 2) if options.quick else (options.rounds, options.steps)
  stream = open_stream(name, options.shorter_side, **kwargs)
  if batch_size > stream.num_train:
    raise ValueError(
      f"--batch_size is {batch_size}; it may be {stream.num_train} at most, the training images."
    )
  most = max(workers)
  rows: dict[str, list[Row]] = {
    "stages": list(stage_rows(stream, num_images=min(num_images, 1024), batch_size=batch_size)),
    "pipeline": pipeline_rows(
      stream, workers, num_images=num_images, batch_size=batch_size, rounds=rounds
    ),
    "waiting": [],
  }
  candidates: list[tuple[str, Step]] = []
  for ms in step_ms:
    candidates.append((f"stand-in of {ms:g} ms for {batch_size} images", _stand_in(ms)))
  if options.model_step:
    what = f"{model}, {batch_size} images, on {environment()['device']}"
    candidates.append((what, model_step(stream, model, **model_kwargs)))
  for what, step in candidates:
    rows["waiting"].append(
      waiting_row(stream, step, what, num_workers=most, steps=steps, batch_size=batch_size)
    )
  table = tables(rows)
  print(table)
  if path := options.out or (not options.quick and _OUT):
    write_json(
      Path(path),
      {
        "command": command_line("experiments.benchmark_input"),
        "environment": environment(),
        "table": table,
        "load_average": list(os.getloadavg()),
        "data": {"name": name, "train": stream.num_train, "shorter_side": options.shorter_side},
        **rows,
      },
    )
    print(f"results: {path}")


if __name__ == "__main__":
  config_flags.DEFINE_config_file(
    "config", None, "Config whose data set and network to take, in place of --name."
  )
  flags.DEFINE_string("name", "imagenet2012", "The data set.")
  flags.DEFINE_enum("recipe", "resnet50", list(RECIPES), "What is done to training images.")
  flags.DEFINE_list("workers", ["0", "1", "2", "4"], "Numbers of worker processes.")
  flags.DEFINE_integer("batch_size", 64, "Images of a batch.", lower_bound=1)
  flags.DEFINE_integer("images", 2048, "Images of a measurement.", lower_bound=1)
  flags.DEFINE_integer("shorter_side", 0, "Enlarge the images; 0: as they are.", lower_bound=0)
  flags.DEFINE_integer("rounds", 5, "Measurements of each number of workers.", lower_bound=1)
  flags.DEFINE_integer("steps", 30, "Training steps that wait or do not.", lower_bound=1)
  flags.DEFINE_list("step_ms", ["100", "400"], "Times of a step, in milliseconds.")
  flags.DEFINE_bool("model_step", False, "Also train a network: the config's, else a small one.")
  flags.DEFINE_bool("quick", False, "Few images, to see that it works; the numbers say nothing.")
  flags.DEFINE_string("out", None, f"JSON file of the results; {_OUT} for a whole run.")
  cli.run(main)
