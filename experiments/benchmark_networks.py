"""Networks as people have them, trained and exported: `python -m experiments.benchmark_networks`.

Each network of `experiments.benchmarks.networks.registry` is trained by SRigL for a few dozen steps
over two topology updates, made ready for inference, and compared with itself in masked dense form:
the largest difference of outputs over the largest output, and the time of a call at batches of 1,
16 and 64, taken in turns. Speed is the time of dense over that of exported, more than 1 where the
export is faster. Networks whose package is not installed are named and left out.

The networks are small, as tests need them: their speed says whether an export costs anything, not
what a large network gains.

The results file has a row as soon as its network is measured. With `--only` the rows of other
networks that were measured on the same machine and versions stay in it, so a run can be cut short
and go on, and a network be measured again; the command in the file then says that there were
several runs.
"""

import importlib.util
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import srigl_jax as sx
from experiments.benchmarks.networks.network import Network, Trained, dense_twin, train
from experiments.benchmarks.networks.registry import NETWORKS
from experiments.benchmarks.timing import interleave, quartiles, seconds
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import RESULTS, read_json, write_json
from experiments.common.markdown import markdown_table

_OUT = RESULTS / "networks.json"
_TOLERANCE = 1e-5
_SECONDS, _MOST_CALLS = 0.05, 20  # in a row, for one time


class Row(NamedTuple):
  """One network.

  Attributes:
    name: its name.
    framework: its framework's.
    num_layers: sparse layers, those of stacks one by one.
    plan: how its layers were told: recognised from the parameters alone, or by which arguments.
    losses: of the first and the last step.
    error: the largest difference from the dense twin, over the largest output.
    speed: by batch, the dense twin's time over the exported network's, median of the rounds.
    times: by batch, seconds of both, one for each round.
  """

  name: str
  framework: str
  num_layers: int
  plan: str
  losses: tuple[float, float]
  error: float
  speed: dict[int, float]
  times: dict[int, dict[str, list[float]]]


def measure(name: str, *, steps: int, repeats: int, batches: tuple[int, ...]) -> Row:
  """Trains, exports and times a network.

  Args:
    name: a key of `NETWORKS`.
    steps: of training; a topology update after each third.
    repeats: rounds of timing.
    batches: sizes to time.
  """
  network = NETWORKS[name].make()
  trained = train(network, steps=steps, update_every=max(1, steps // 3))
  error, speed, times = 0.0, {}, {}
  for batch in batches:
    found, seconds = _compare(f"{name}, batch {batch}", network, trained, batch, repeats)
    error, times[batch] = max(error, found), seconds
    ratios = np.asarray(seconds["dense"]) / np.asarray(seconds["exported"])
    speed[batch] = quartiles(list(ratios))[1]
  layers = sx.plan(network.params, show=False, **_layout(network), sparsity=0.7).layers
  num_layers = sum(x.num_stacked for x in layers if x.is_sparse)
  return Row(
    name,
    NETWORKS[name].framework,
    num_layers,
    _plan(network),
    (trained.losses[0], trained.losses[-1]),
    error,
    speed,
    times,
  )


def _layout(network: Network) -> dict[str, Any]:
  """What the network's transformation is told of its layers."""
  return {key: x for key, x in network.kwargs.items() if key in ("axes", "sparse")}


def _plan(network: Network) -> str:
  """How the layers were told: "recognised" if they are the same without being told."""
  told = _layout(network)

  def layers(**kwargs: Any) -> list[tuple[Any, ...]]:
    plan = sx.plan(network.params, show=False, **kwargs)
    return [(x.path, x.num_neurons, x.dense_fan_in, x.num_stacked) for x in plan.layers]

  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # a plan without its arguments may well look wrong
    same = not told or layers() == layers(**told)
  return "recognised" if same else f"by {' and '.join(told)}"


def _compare(
  what: str, network: Network, trained: Trained, batch: int, repeats: int
) -> tuple[float, dict[str, list[float]]]:
  """The exported network's error at a batch, and the times of both."""
  inputs = network.inputs(batch)
  exported = network.condense(trained.params, trained.state, trained.masks, inputs)
  dense = jax.jit(dense_twin(network, trained))
  expected = np.asarray(dense(inputs), np.float64)
  error = float(np.abs(np.asarray(exported(inputs)) - expected).max() / np.abs(expected).max())
  if error > _TOLERANCE:
    raise RuntimeError(f"{what}: the exported network is off by {error:.2g} of the outputs.")

  once = min(seconds(lambda: dense(inputs)) for _ in range(2))
  calls = min(_MOST_CALLS, max(1, round(_SECONDS / once)))

  def several(call: Any) -> Any:
    return lambda: [call(inputs) for _ in range(calls)]

  times = interleave(
    what, {"dense": several(dense), "exported": several(exported)}, repeats=repeats
  )
  return error, {name: [t / calls for t in found] for name, found in times.items()}


def table(rows: list[Row]) -> str:
  """The rows in Markdown."""
  batches = sorted({batch for row in rows for batch in row.speed})
  columns = ["network", "framework", "sparse layers", "layers told", "loss", "export's error"]
  columns += [f"speed, batch {batch}" for batch in batches]
  cells = [
    [
      row.name,
      row.framework,
      f"{row.num_layers}",
      row.plan,
      f"{row.losses[0]:.3g} → {row.losses[1]:.3g}",
      f"{row.error:.1e}",
      *(f"{row.speed[batch]:.2f}" for batch in batches),
    ]
    for row in rows
  ]
  return markdown_table(columns, cells, align="ll" + "r" + "l" + "r" * (len(columns) - 4))


def main() -> None:
  """The command."""
  options = flags.FLAGS
  names = options.only or list(NETWORKS)
  packages = {name: NETWORKS[name].package for name in names}
  absent = {n for n, package in packages.items() if package and not _is_installed(package)}
  path = Path(options.out) if options.out else None if options.quick else _OUT
  rows = _measured(path) if options.only and path else {}
  started = time.monotonic()
  for name in (n for n in names if n not in absent):
    batches = (1,) if options.quick else (1, 16, 64)
    steps, repeats = (6, 2) if options.quick else (24, options.repeats)
    rows[name] = measure(name, steps=steps, repeats=repeats, batches=batches)
    jax.clear_caches()
    if path:
      _write(path, [rows[n] for n in NETWORKS if n in rows], is_mixed=len(rows) > len(names))
  print(table([rows[n] for n in NETWORKS if n in rows]))
  if absent:
    print("Left out, since their packages are not installed: " + ", ".join(sorted(absent)) + ".")
  print(f"{time.monotonic() - started:.0f} s")
  if path:
    print(f"results: {path}")


def _measured(path: Path) -> dict[str, Row]:
  """The rows of an earlier run on this machine with these versions, by name."""
  result = read_json(path)
  if result is None or result.get("environment") != environment():
    return {}
  return {row["name"]: _row(row) for row in result["rows"]}


def _row(row: dict[str, Any]) -> Row:
  by_batch = lambda found: {int(batch): x for batch, x in found.items()}
  return Row(**{**row, "speed": by_batch(row["speed"]), "times": by_batch(row["times"])})


def _write(path: Path, rows: list[Row], *, is_mixed: bool) -> None:
  command = command_line("experiments.benchmark_networks")
  result = {
    "command": f"{command}  # the other rows by earlier runs" if is_mixed else command,
    "environment": environment(),
    "table": table(rows),
    "rows": [row._asdict() for row in rows],
  }
  write_json(path, result)


def _is_installed(package: str) -> bool:
  return importlib.util.find_spec(package) is not None


if __name__ == "__main__":
  flags.DEFINE_string("out", None, f"JSON file of the results; {_OUT} but for --quick.")
  flags.DEFINE_bool("quick", False, "Few steps at batch 1, to see that it works.")
  flags.DEFINE_integer("repeats", 15, "Rounds of timing.", lower_bound=1)
  flags.DEFINE_multi_enum(
    "only", None, list(NETWORKS), "Networks; the file's others stay. All by default."
  )
  cli.run(main)
