"""Microbenchmarks of condensed layers and models: `python -m kernels.benchmark [--quick]`.

Every method computes the same layer, bias included, in float32 on the same inputs and threads, in
one run: see `benchmarks.kernels.baselines` for the methods, `measurement` for how they are timed,
`targets` for what is held against targets and `twins` for models, convolutions and gradients. It
ends in tables, and in a folder with `benchmark.json`, `benchmark.csv` and bar charts.

    python -m kernels.benchmark --quick                       the rows with targets
    python -m kernels.benchmark                               both layers of the paper, all of it
    python -m kernels.benchmark --shape=512x2048x700          any shape (inputs x outputs x active)
    python -m kernels.benchmark --model=FILE --layer=NAME     a layer of an exported model
    python -m kernels.benchmark --models                      whole models
    python -m kernels.benchmark --small                       small ones, where auto may not lose
    python -m kernels.benchmark --convolutions --gradients    convolutions; what training calls
    python -m kernels.benchmark --fit                         the cost model's constants
    python -m kernels.benchmark --device=gpu                  on a GPU: see `gpu_check`
"""

import datetime
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from experiments.benchmarks.comparison import Comparison, comparison_table, results
from experiments.benchmarks.kernels import (
  fit_cost_model,
  fit_small_layers,
  layers,
  report,
  small_models,
  targets,
  twins,
)
from experiments.benchmarks.kernels.baselines import baselines, versions
from experiments.benchmarks.kernels.measurement import Effort, Measurement, measure_layer
from experiments.common import cli
from experiments.common.environment import available_cores, command_line, environment
from experiments.common.files import RESULTS, read_json, write_json
from experiments.common.progress import progress

_Number = TypeVar("_Number", int, float)

_PUBLISHED = RESULTS / "kernels_cpu.json"
_SPARSITIES = (0.8, 0.9, 0.95, 0.99)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
# What `--quick` measures: the rows with targets.
_QUICK_SPARSITIES = (0.9,)
_QUICK_BATCHES = (1, 16, 64, 256)
_QUICK_BATCHES_ONE_THREAD = (1, 256)
_QUICK_METHODS_ONE_THREAD = ("dense", "structured", "cpu", "cpu_rounded")
_QUICK = Effort(rounds=9, budget=0.8, limit=0.25)
_TWINS = {
  "models": twins.model_rows,
  "small": small_models.rows,
  "convolutions": twins.convolution_rows,
  "gradients": twins.gradient_rows,
}


def main() -> None:
  """The command: starts a process for each number of threads, and reports what they measured."""
  options = flags.FLAGS
  if options.worker:
    _work(*options.worker.split(":", 2))
    return
  _check_options()
  cores = _num_threads("all")
  if options.fit:
    _in_process("fit", cores)
    return
  out = Path(options.out or f"runs/benchmark-{datetime.datetime.now():%Y%m%d-%H%M%S}")
  if (out / "benchmark.json").exists():
    raise ValueError(f"{out} holds the results of an earlier run: give another --out.")
  about = environment() | versions()
  print(", ".join(f"{name} {value}" for name, value in about.items()), flush=True)
  if hasattr(os, "getloadavg") and os.getloadavg()[0] > 0.25 * about["cpu_cores"]:
    print("The machine is busy: times will be long, and ratios not what they are.", flush=True)
  todo = [kind for kind in _TWINS if options[kind].value]
  measured: list[Measurement] = []
  if not todo:
    for threads in dict.fromkeys(map(_num_threads, options.threads)):
      measured += [Measurement(**one) for one in _in_process("layers", threads)]
    print("\n\n".join(report.layer_tables(measured)), end="\n\n")
  rows = targets.comparisons(measured)
  for kind in todo or (["models"] if options.publish else []):
    rows += [Comparison(**row) for row in _in_process(kind, cores)]
  print(comparison_table(rows))
  result = results(rows, command_line("kernels.benchmark"), every_round=False)
  result["environment"] = about
  for path in report.write(out, measured, result):
    print(f"wrote {path}")
  if options.publish:
    report.publish(_PUBLISHED, measured, rows, result)
    print(f"wrote {_PUBLISHED}")


def _check_options() -> None:
  """Finds what is wrong with the flags before anything is measured."""
  options = flags.FLAGS
  narrowing = ("layer", "shape", "model", "sparsity", "batch", "method", *_TWINS, "fit")
  chosen = [name for name in narrowing if options[name].value]
  if options.publish and chosen:
    raise ValueError(
      f"--publish measures everything, or with --quick what has targets: leave out "
      f"--{', --'.join(chosen)}."
    )
  for threads in options.threads:
    _num_threads(threads)
  _layers()
  _batches(1)
  baselines(tuple(options.method))


def _num_threads(text: str) -> int:
  cores = len(available_cores())
  if text == "all":
    return cores
  if not text.isdigit() or not 1 <= int(text) <= cores:
    raise ValueError(f"--threads={text} must be 'all' or a number from 1 to {cores}.")
  return int(text)


def _in_process(what: str, threads: int) -> list[dict[str, Any]]:
  """What another process measured, bound to so many cores before libraries size their pools."""
  cores = available_cores()
  with tempfile.TemporaryDirectory() as folder:
    to = Path(folder) / "measured.json"
    command = [sys.executable, "-m", "experiments.benchmark_kernels", *sys.argv[1:]]
    command.append(f"--worker={what}:{threads}:{to}")
    env = os.environ | {"OMP_NUM_THREADS": str(threads)}  # PyTorch, MKL, OpenBLAS
    try:
      if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores[-threads:])  # a child process inherits it
      done = subprocess.run(command, check=False, env=env)
    finally:
      if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    if done.returncode:
      raise ValueError(f"Measuring {what} on {threads} threads failed; the reason is above.")
    return read_json(to) or []


def _work(what: str, threads: str, to: str) -> None:
  """What such a process does."""
  options = flags.FLAGS
  if what == "fit":
    fit = fit_small_layers if options.small else fit_cost_model
    measured = fit.measure()
    if options.out:
      write_json(Path(options.out) / "fit.json", measured)
    print(fit.report(measured))
  elif what == "layers":
    write_json(Path(to), [one._asdict() for one in _measure_layers(int(threads))])
  else:
    rows = _TWINS[what](rounds=options.rounds or 15)
    write_json(Path(to), [row._asdict() for row in rows])


def _measure_layers(threads: int) -> list[Measurement]:
  """Measures the layers on the cores that this process has."""
  options = flags.FLAGS
  one_thread = options.quick and threads == 1
  names = tuple(options.method) or (_QUICK_METHODS_ONE_THREAD if one_thread else ())
  methods = baselines(names)
  if options.quick and not options.method:
    methods.pop("reference", None)
  effort = _QUICK if options.quick else Effort()
  effort = effort._replace(
    rounds=options.rounds or effort.rounds, limit=options.limit or effort.limit
  )
  todo, batches = _layers(), _batches(threads)
  measured: list[Measurement] = []
  start = time.monotonic()
  total = len(todo) * len(batches)
  with progress(targets.count_threads(threads), step=0, total_steps=total) as show:

    def done(one: Measurement) -> None:
      measured.append(one)
      show(len(measured), layer=one.layer, batch=str(one.batch), s=time.monotonic() - start)

    for layer in todo:
      measure_layer(layer, batches, methods, threads=threads, effort=effort, done=done)
  return measured


def _layers() -> list[layers.Layer]:
  """The layers that the flags ask for.

  Raises:
    ValueError: if there is no such layer, or a sparsity is none.
  """
  options = flags.FLAGS
  if options.model:
    return layers.model_layers(options.model, options.layer)
  if unknown := [name for name in options.layer if name not in layers.SHAPES]:
    known = ", ".join(layers.SHAPES)
    raise ValueError(f"There is no layer {unknown[0]!r}: give {known}, a --shape or a --model.")
  shapes = {name: layers.SHAPES[name] for name in options.layer}
  shapes |= {text: layers.parse_shape(text) for text in options.shape}
  default = _QUICK_SPARSITIES if options.quick else _SPARSITIES
  sparsities = [_number(float, "sparsity", s) for s in options.sparsity or default]
  if not all(0 <= s < 1 for s in sparsities):
    raise ValueError(f"--sparsity must be numbers from 0 to below 1, not {options.sparsity}.")
  return [
    layers.random_layer(name, shape, sparsity)
    for name, shape in (shapes or layers.SHAPES).items()
    for sparsity in sparsities
  ]


def _batches(threads: int) -> list[int]:
  options = flags.FLAGS
  quick = _QUICK_BATCHES_ONE_THREAD if threads == 1 else _QUICK_BATCHES
  batches = options.batch or (quick if options.quick else _BATCHES)
  batches = [_number(int, "batch", n) for n in batches]
  if min(batches) < 1:
    raise ValueError(f"--batch must be sizes of at least 1, not {options.batch}.")
  return batches


def _number(kind: type[_Number], name: str, text: Any) -> _Number:
  try:
    return kind(text)
  except ValueError:
    raise ValueError(f"--{name} must be numbers separated by commas, not {text!r}.") from None


if __name__ == "__main__":
  flags.DEFINE_bool("quick", False, "Only the rows that have targets.")
  flags.DEFINE_multi_string("layer", [], "A layer by name: vit_ffn_up, vit_ffn_down, or --model's.")
  flags.DEFINE_multi_string("shape", [], "Any layer: INxOUT, or INxOUTxACTIVE.")
  flags.DEFINE_string("model", None, "Layers of a file of srigl_jax.save_condensed.")
  flags.DEFINE_list("sparsity", None, "Sparsities; 0.8,0.9,0.95,0.99 by default.")
  flags.DEFINE_list("batch", None, "Rows of the input; 1,2,4,...,2048 by default.")
  flags.DEFINE_list("threads", ["all", "1"], "Numbers of cores, each with a process of its own.")
  flags.DEFINE_list("method", [], "Only these, of experiments.benchmarks.kernels.baselines.")
  flags.DEFINE_integer("rounds", None, "Rounds of each method.", lower_bound=1)
  flags.DEFINE_float("limit", None, "Seconds of a call above which a method is left out.")
  flags.DEFINE_bool("models", False, "Whole models instead of single layers.")
  flags.DEFINE_bool("small", False, "Small networks instead: auto against dense.")
  flags.DEFINE_bool("convolutions", False, "The ResNet-18's convolutions instead.")
  flags.DEFINE_bool("gradients", False, "What training calls of the paper's layers instead.")
  flags.DEFINE_bool(
    "fit",
    False,
    "Measure and print the constants of srigl_kernels.cost_model, or of --small layers.",
  )
  flags.DEFINE_string("out", None, "Folder for the results; a new one in runs/ by default.")
  flags.DEFINE_bool("publish", False, f"With the models, and {_PUBLISHED.name} for the README.")
  flags.DEFINE_string("worker", None, "(Used by the command itself.)")
  cli.run(main)
