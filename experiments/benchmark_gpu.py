"""Whole networks on a GPU, condensed and dense: `python -m experiments.benchmark_gpu --out=FILE`.

Networks of `experiments.benchmark_serving` under random masks of constant fan-in at 90 %, exported
by `condense_model`, against their dense twins in JAX, both in float32 (whose products JAX rounds to
TF32) and in bfloat16 throughout. Each runs some times in a row within one compiled program, on one
input, as a server's network does; weights are arguments, not constants, and those of small networks
stay in the second-level cache, for both. Outputs in float32 are compared with those of the dense
network at the highest precision, in bfloat16 as well: the error is reported, over the largest
output.

The file is written after each row; `--seconds` ends the run with what it has. It needs no native
CPU library. `--tiny` tries the program at small sizes, on a CPU too.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import srigl_jax as sx
from experiments.benchmarks.kernels import gpu_timing
from experiments.benchmarks.serving import models
from experiments.benchmarks.serving.cases import NETWORKS, TWIN_SPARSITY
from experiments.benchmarks.timing import quartiles
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table

_BATCHES: dict[str, tuple[int, ...]] = {
  "MLP 3 × 4096": (1, 8, 16, 64),
  "ViT-B/16": (1, 16, 64),
  "feed-forward pair": (1, 16, 64, 512),
  "ResNet-50": (1, 16, 64),
  "CIFAR ResNet-18": (1, 64),
}
_TINY: dict[str, tuple[int, ...]] = {"feed-forward pair": (1, 16)}
_DTYPES = ("float32", "bfloat16")
_SPEND_SECONDS = 0.05


class Row(NamedTuple):
  """A network at a batch size, in one type.

  Attributes:
    network: its name.
    batch: examples.
    dtype: of weights and activations.
    seconds: of a run, by `"dense"` and `"condensed"`, one for each round.
    errors: likewise, over the largest output.
    failed: likewise, why there are none.
  """

  network: str
  batch: int
  dtype: str
  seconds: dict[str, list[float]]
  errors: dict[str, float]
  failed: dict[str, str]


def main() -> int:
  """The command."""
  options = flags.FLAGS
  if jax.default_backend() == "cpu" and not options.tiny:
    raise ValueError("jax finds no GPU here: --tiny tries the program without one.")
  deadline = time.monotonic() + options.seconds
  rows: list[Row] = []
  for row in _rows(_TINY if options.tiny else _BATCHES, deadline):
    rows.append(row)
    write_json(Path(options.out), _result(rows))
    print(_line(row), flush=True)
  print(_table(rows))
  return 0 if rows and not any(row.failed for row in rows) else 1


def _rows(todo: dict[str, tuple[int, ...]], deadline: float) -> Iterator[Row]:
  for name, batches in todo.items():
    if time.monotonic() > deadline:
      return
    network = NETWORKS[name]
    model, masks = models.build(network.make, TWIN_SPARSITY, network.distribution)
    exact = _dense_outputs(model, network.inputs(max(batches)))
    for dtype in _DTYPES:
      candidates = dict(_candidates(model, masks, network.inputs(1), dtype))
      for batch in batches:
        if time.monotonic() > deadline:
          return
        inputs = network.inputs(batch)
        want = exact if batch == max(batches) else None
        yield _measure(Row(name, batch, dtype, {}, {}, {}), candidates, inputs[0], want)


def _dense_outputs(model: nnx.Module, inputs: tuple[np.ndarray, ...]) -> np.ndarray:
  """Outputs in float32, whose products are not rounded to TF32."""
  with jax.default_matmul_precision("highest"):
    return np.asarray(nnx.jit(lambda model, *x: model(*x))(model, *map(jnp.asarray, inputs)))


def _candidates(
  model: nnx.Module, masks: sx.Masks, inputs: tuple[np.ndarray, ...], dtype: str
) -> Iterator[tuple[str, tuple[Any, Any]]]:
  """The graphs and states of the dense and of the condensed network in a type."""
  graphdef, state = nnx.split(model)
  cast = nnx.merge(graphdef, jax.tree.map(lambda x: _cast(x, dtype), state))
  yield "dense", nnx.split(cast)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, dtype) for x in inputs)
  yield "condensed", nnx.split(sx.condense_model(cast, masks, shapes))


def _cast(x: Any, dtype: str) -> Any:
  return x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x


def _measure(
  row: Row, candidates: dict[str, tuple[Any, Any]], x: np.ndarray, want: np.ndarray | None
) -> Row:
  """The row, with what was measured."""
  for name, (graphdef, state) in candidates.items():
    apply = lambda x, state, graphdef=graphdef: nnx.merge(graphdef, state)(x)
    try:
      pairs = [(jnp.asarray(x, row.dtype), state)]
      if want is not None:
        got = np.asarray(jax.jit(apply)(*pairs[0]), np.float64)
        row.errors[name] = float(np.abs(got - want).max() / np.abs(want).max())
      program = gpu_timing.compile_loop(apply, pairs)
      row.seconds[name] = gpu_timing.time_loop(program, pairs, spend=_SPEND_SECONDS)
    except Exception as error:  # whatever a compiler raises is that row's result
      row.failed[name] = f"{type(error).__name__}: {error}"[:400]
  return row


def _line(row: Row) -> str:
  found = ", ".join(f"{name} {_micros(row, name)} µs" for name in row.seconds)
  why = "".join(f"; {name} failed: {text}" for name, text in row.failed.items())
  return f"{row.network}, {row.dtype}, batch {row.batch}: {found}{why} {row.errors or ''}"


def _micros(row: Row, name: str) -> str:
  return f"{1e6 * float(np.median(row.seconds[name])):,.0f}" if name in row.seconds else "–"


def _table(rows: list[Row]) -> str:
  """Times, ratios and errors."""
  lines = []
  for row in rows:
    ratio = ""
    if len(row.seconds) == 2:
      ratios = np.divide(row.seconds["dense"], row.seconds["condensed"])
      low, middle, high = quartiles(list(ratios))
      ratio = f"{middle:.2f} ({low:.2f}–{high:.2f})"
    errors = [f"{row.errors[n]:.1e}" if n in row.errors else "" for n in ("dense", "condensed")]
    products = "TF32" if row.dtype == "float32" else row.dtype
    times = [_micros(row, n) for n in ("dense", "condensed")]
    lines.append((row.network, products, str(row.batch), *times, ratio, *errors))
  header = ("network", "products in", "batch", "dense µs", "condensed µs", "dense / condensed")
  return markdown_table((*header, "dense off by", "condensed off by"), lines)


def _result(rows: list[Row]) -> dict[str, Any]:
  return {
    "command": command_line("experiments.benchmark_gpu"),
    "environment": environment(),
    "table": _table(rows),
    "rows": [row._asdict() for row in rows],
  }


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "JSON file of the results.", required=True)
  flags.DEFINE_float("seconds", 600.0, "After which no row is begun.", lower_bound=0.0)
  flags.DEFINE_bool("tiny", False, "One small network, to try the program.")
  cli.run(main)
