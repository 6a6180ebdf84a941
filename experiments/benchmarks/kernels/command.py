"""The command: what to measure, in which processes, and where the results go."""

import datetime
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from absl import flags

from experiments.benchmarks.kernels import (
  baselines,
  fit_cost_model,
  layers,
  models,
  report,
  targets,
)
from experiments.benchmarks.kernels.measure import Cell, Effort, measure_layer
from experiments.benchmarks.timing import Row, format_table
from experiments.common import cli
from experiments.common.environment import environment
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


def define_flags() -> None:
  """Defines the command's flags."""
  flags.DEFINE_bool("quick", False, "Only the rows that have targets.")
  flags.DEFINE_multi_string("layer", [], "A layer by name: vit_ffn_up, vit_ffn_down, or --model's.")
  flags.DEFINE_multi_string("shape", [], "Any layer: INxOUT, or INxOUTxACTIVE.")
  flags.DEFINE_string("model", None, "Layers of a file of srigl_jax.save_condensed.")
  flags.DEFINE_list("sparsity", None, "Sparsities; 0.8,0.9,0.95,0.99 by default.")
  flags.DEFINE_list("batch", None, "Rows of the input; 1,2,4,...,2048 by default.")
  flags.DEFINE_list("threads", ["all", "1"], "Numbers of cores, each with a process of its own.")
  flags.DEFINE_list(
    "method", [], "Only these methods, of experiments.benchmarks.kernels.baselines."
  )
  flags.DEFINE_integer("rounds", None, "Rounds of each method.", lower_bound=1)
  flags.DEFINE_float("limit", None, "Seconds of a call above which a method is left out.")
  flags.DEFINE_bool("models", False, "Whole models instead of single layers.")
  flags.DEFINE_bool("fit", False, "Measure and print the constants of srigl_kernels.cost_model.")
  flags.DEFINE_string("out", None, "Folder for the results; a new one in runs/ by default.")
  flags.DEFINE_bool("publish", False, f"With the models, and {_PUBLISHED.name} for the README.")
  flags.DEFINE_integer("pin", 0, "(Used by the command itself.) Measure here, on so many cores.")
  flags.DEFINE_string("to", None, "(Used by the command itself.) JSON file for what is measured.")


def run() -> None:
  """Runs the command."""
  define_flags()
  cli.run(lambda: _measure_here() if flags.FLAGS.pin else _main())


def _main() -> None:
  """Starts a process for each number of threads, and reports what they measured."""
  options = flags.FLAGS
  _check_options()
  if options.fit:
    _in_process("fit", threads=_num_threads("all"))
    return
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  out = Path(options.out or f"runs/benchmark-{stamp}")
  if (out / "benchmark.json").exists():
    raise ValueError(f"{out} holds the results of an earlier run: give another --out.")
  about = report.environment(environment())
  print(report.header(about), flush=True)
  cells: list[Cell] = []
  if not options.models:
    for threads in dict.fromkeys(map(_num_threads, options.threads)):
      cells += [Cell(**cell) for cell in _in_process("layers", threads=threads)]
    print(report.grid(cells), end="\n\n")
  rows = targets.rows(cells)
  if options.models or options.publish:
    rows += [Row(**row) for row in _in_process("models", threads=_num_threads("all"))]
  print(format_table(rows))
  command = shlex.join(["python", "-m", "kernels.benchmark", *sys.argv[1:]])
  result = report.summary(rows, command, about)
  for path in report.write(out, cells, result):
    print(f"wrote {path}")
  if options.publish:
    report.publish(_PUBLISHED, cells, rows, result)
    print(f"wrote {_PUBLISHED}")


def _check_options() -> None:
  """Finds what is wrong with the flags before anything is measured."""
  options = flags.FLAGS
  chosen = [name for name in ("layer", "shape", "model", "sparsity", "batch", "method")
            if options[name].value]  # fmt: skip
  if options.publish and (chosen or options.models or options.fit):
    given = [*chosen, *(name for name in ("models", "fit") if options[name].value)]
    raise ValueError(
      f"--publish measures everything, or with --quick what has targets: leave out "
      f"--{', --'.join(given)}."
    )
  for threads in options.threads:
    _num_threads(threads)
  _layers()
  _batches(1)
  baselines.peers(tuple(options.method))


def _num_threads(text: str) -> int:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  if text == "all":
    return cores
  if not text.isdigit() or not 1 <= int(text) <= cores:
    raise ValueError(f"--threads={text} must be 'all' or a number from 1 to {cores}.")
  return int(text)


def _in_process(what: str, *, threads: int) -> list[dict]:
  """Runs the same command in a process that is pinned before it starts; what it measured."""
  with tempfile.TemporaryDirectory() as folder:
    to = Path(folder) / "measured.json"
    command = [sys.executable, "-m", "kernels.benchmark", *sys.argv[1:]]
    command += [f"--pin={threads}", f"--to={to}"]
    if what == "models":
      command.append("--models")
    done = subprocess.run(command, check=False)
    if done.returncode:
      raise ValueError(f"Measuring {what} on {threads} threads failed; the reason is above.")
    return read_json(to) or []


def _measure_here() -> None:
  """What a pinned process does."""
  options = flags.FLAGS
  if options.fit:
    measured = fit_cost_model.measure()
    if options.out:
      write_json(Path(options.out) / "fit.json", measured)
    print(fit_cost_model.report(measured))
    return
  if options.models:
    rows = models.rows(rounds=options.rounds or 15)
    write_json(Path(options.to), [row._asdict() for row in rows])
    return
  write_json(Path(options.to), [cell._asdict() for cell in _cells(options.pin)])


def _cells(threads: int) -> list[Cell]:
  """Measures the layers on the cores that this process has."""
  options = flags.FLAGS
  one = options.quick and threads == 1
  names = tuple(options.method) or (_QUICK_METHODS_ONE_THREAD if one else ())
  methods = baselines.peers(names)
  if options.quick and not options.method:
    methods.pop("reference", None)
  effort = _QUICK if options.quick else Effort()
  effort = effort._replace(
    rounds=options.rounds or effort.rounds, limit=options.limit or effort.limit
  )
  todo, batches = _layers(), _batches(threads)
  cells: list[Cell] = []
  start = time.monotonic()
  name = f"{threads} thread{'s' if threads > 1 else ''}"
  with progress(name, step=0, total_steps=len(todo) * len(batches)) as show:
    for layer in todo:

      def done(cell: Cell) -> None:
        cells.append(cell)
        show(len(cells), layer=cell.layer, batch=str(cell.batch), s=time.monotonic() - start)

      measure_layer(layer, batches, methods, threads=threads, effort=effort, done=done)
  return cells


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
  default: Sequence[int] = _BATCHES
  if options.quick:
    default = _QUICK_BATCHES_ONE_THREAD if threads == 1 else _QUICK_BATCHES
  batches = [_number(int, "batch", n) for n in options.batch or default]
  if min(batches) < 1:
    raise ValueError(f"--batch must be sizes of at least 1, not {options.batch}.")
  return batches


def _number(kind: type[_Number], name: str, text: Any) -> _Number:
  try:
    return kind(text)
  except ValueError:
    raise ValueError(f"--{name} must be numbers separated by commas, not {text!r}.") from None
