"""Output-norm variance by mask, closed form against simulation: `python -m experiments.theory`.

Networks are drawn as the model of `srigl_jax.analysis.norm_variance` says (masks by the library's
own functions) and the variance of their squared output norm is compared with the closed form, over
width, fan-in and depth. It writes a results file and a figure; `--quick` takes fewer samples.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import Array

import srigl_jax as sx
from experiments.analysis.theory_figure import NAMES, output_norm_variance_figure
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from experiments.common.progress import progress
from srigl_jax.analysis import norm_variance

_AT_A_TIME = 256  # networks
_SEED = 0
_RESULTS = "experiments/results/theory.json"
_FIGURE = "docs/figures/theory.png"


class Case(NamedTuple):
  """Networks to simulate.

  Attributes:
    mask: one of `theory.MASKS`.
    n: neurons of each layer.
    k: mean fan-in.
    depth: layers.
    gates: "bernoulli", drawn as the model says, or "relu", the network's own.
  """

  mask: str
  n: int
  k: int
  depth: int = 1
  gates: str = "bernoulli"


class Point(NamedTuple):
  """A variance, computed and simulated.

  Attributes:
    mask, n, k, depth, gates: see `Case`.
    form: the closed form.
    simulated: mean over the networks of `(|z|² − 1)²`.
    standard_error: of that mean.
  """

  mask: str
  n: int
  k: int
  depth: int
  gates: str
  form: float
  simulated: float
  standard_error: float

  @property
  def z_score(self) -> float:
    """Standard errors from the closed form to the simulation."""
    return (self.simulated - self.form) / self.standard_error


def squared_norms(case: Case, num_samples: int, *, seed: int = _SEED) -> np.ndarray:
  """Squared norms `[num_samples, depth]` float32 after each layer of random networks.

  Each sample has its own masks, weights and gates, and an input drawn uniformly from the unit
  sphere.
  """
  keys = jax.random.split(jax.random.key(seed), num_samples)
  run = jax.jit(lambda keys: jax.lax.map(lambda key: _one(key, case), keys, batch_size=_AT_A_TIME))
  return np.asarray(run(keys))


def _one(key: Array, case: Case) -> Array:
  """Squared norms after each layer of one network, `[depth]`."""
  mask_key, weight_key, gate_key, input_key = jax.random.split(key, 4)
  names = [f"{i}/kernel" for i in range(case.depth)]
  masks = _masks(mask_key, names, case)
  x = jax.random.normal(input_key, (case.n,))
  x /= jnp.linalg.norm(x)
  norms = []
  for i, name in enumerate(names):
    if case.gates == "relu":
      x = jax.nn.relu(x)
    else:
      x *= jax.random.bernoulli(jax.random.fold_in(gate_key, i), 0.5, (case.n,))
    weights = jax.random.normal(jax.random.fold_in(weight_key, i), (case.n, case.n))
    x = math.sqrt(2 / case.k) * (x @ jnp.where(masks[name], weights, 0))
    norms.append((x**2).sum())
  return jnp.stack(norms)


def _masks(key: Array, names: Sequence[str], case: Case) -> dict[str, Array]:
  """Masks `[inputs, neurons]` by name."""
  shape = (case.n, case.n)
  if case.mask == "bernoulli":
    return {
      name: jax.random.bernoulli(jax.random.fold_in(key, i), case.k / case.n, shape)
      for i, name in enumerate(names)
    }
  structure = "unstructured" if case.mask == "constant_per_layer" else case.mask
  kernels = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name in names}
  allocation = sx.allocate(kernels, fan_in=case.k, structure=structure)
  masks = sx.init_masks(key, allocation)
  return {name: masks.get(name, jnp.ones(shape, bool)) for name in names}  # k = n: dense, no mask


def simulate(case: Case, num_samples: int, *, seed: int = _SEED) -> list[Point]:
  """Computes and simulates the variance after each of a case's layers.

  Returns:
    A point for each depth from 1 to `case.depth`, from the same networks.
  """
  norms = squared_norms(case, num_samples, seed=seed).astype(np.float64)
  # The mean of |z|² is known to be 1, so these are unbiased, and so is their mean's error.
  squares = (norms - 1) ** 2
  return [
    Point(
      **case._asdict() | {"depth": i + 1},
      form=norm_variance.output_norm_variance(case.mask, case.n, case.k, depth=i + 1),
      simulated=float(column.mean()),
      standard_error=float(column.std(ddof=1) / math.sqrt(num_samples)),
    )
    for i, column in enumerate(squares.T)
  ]


class Study(NamedTuple):
  """What the command computes.

  Attributes:
    width: widths, at fan-in `k`.
    fan_in: fan-ins, at width `n`.
    depth: layers, at width `n_deep` and fan-in `k_deep`.
    n, k, n_deep, k_deep: see above.
    num_samples: networks of each case.
    num_deep: networks of each case of several layers, whose norms have long tails.
  """

  width: Sequence[int] = (8, 16, 32, 64, 128)
  fan_in: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
  depth: int = 6
  n: int = 64
  k: int = 4
  n_deep: int = 64
  k_deep: int = 8
  num_samples: int = 2**16
  num_deep: int = 2**16


FULL = Study()
QUICK = Study(
  width=(8, 16, 32),
  fan_in=(1, 2, 4, 8, 32),
  n=32,
  depth=4,
  n_deep=32,
  num_samples=2**13,
  num_deep=2**13,
)


def run_study(study: Study) -> dict[str, list[Point]]:
  """All points by the panel that shows them: "width", "fan_in", "depth"."""
  cases = {
    "width": [Case(mask, n, study.k) for mask in norm_variance.MASKS for n in study.width],
    "fan_in": [Case(mask, study.n, k) for mask in norm_variance.MASKS for k in study.fan_in],
    "depth": [
      Case(mask, study.n_deep, study.k_deep, study.depth, gates)
      for gates in ("bernoulli", "relu")
      for mask in norm_variance.MASKS
    ],
  }
  points: dict[str, list[Point]] = {name: [] for name in cases}
  total, done = sum(map(len, cases.values())), 0
  with progress("theory", step=0, total_steps=total) as show:
    for name, of_panel in cases.items():
      for case in of_panel:
        # Each case has draws of its own, so that the z-scores are independent but for depth.
        num_samples = study.num_deep if name == "depth" else study.num_samples
        points[name] += simulate(case, num_samples, seed=_SEED + done)
        done += 1
        show(done)
  return points


def table(points: dict[str, list[Point]]) -> str:
  """A row for each setting; for each mask: closed form, simulation ± standard error, z-score."""
  rows: dict[tuple[Any, ...], dict[str, Point]] = {}
  for panel, of_panel in points.items():
    for p in of_panel:
      rows.setdefault((panel, p.n, p.k, p.depth, p.gates), {})[p.mask] = p
  header = ["neurons", "fan-in", "layers", "gates", *NAMES.values()]
  lines = [
    [n, k, depth, "ReLU" if gates == "relu" else "drawn", *(_cell(by_mask[m]) for m in NAMES)]
    for (_, n, k, depth, gates), by_mask in rows.items()
  ]
  return markdown_table(header, lines, align="rrrl" + "l" * len(NAMES))


def _cell(point: Point) -> str:
  digits = max(0, 2 - math.floor(math.log10(point.standard_error)) - 1)
  form, simulated = f"{point.form:.{digits}f}", f"{point.simulated:.{digits}f}"
  return f"{form}: {simulated} ± {point.standard_error:.{digits}f} ({point.z_score:+.1f})"


def agreement(points: dict[str, list[Point]]) -> dict[str, float]:
  """How well forms and simulations agree: number of points, largest and mean square z-score."""
  scores = np.array([p.z_score for of_panel in points.values() for p in of_panel])
  return {
    "num_points": len(scores),
    "largest_z_score": float(np.abs(scores).max()),
    "mean_square_z_score": float((scores**2).mean()),
  }


def write_results(study: Study, out: Path, figure: Path, *, command: str) -> dict[str, Any]:
  """Runs a study and writes its results file and its figure.

  Args:
    study: what to compute.
    out: the results file.
    figure: the image.
    command: that asked for it, for the record.

  Returns:
    What the file holds.
  """
  points = run_study(study)
  output_norm_variance_figure(points, figure)
  results = {
    "command": command,
    "environment": environment(),
    "table": table(points),
    "study": study._asdict(),
    "agreement": agreement(points),
    "points": {
      panel: [p._asdict() | {"z_score": p.z_score} for p in of_panel]
      for panel, of_panel in points.items()
    },
  }
  write_json(out, results)
  return results


def main() -> int:
  """The command."""
  quick = flags.FLAGS.quick
  folder = Path("runs/theory_quick")
  out = Path(flags.FLAGS.out or (folder / "theory.json" if quick else _RESULTS))
  figure = Path(flags.FLAGS.figure or (folder / "theory.png" if quick else _FIGURE))
  command = command_line("experiments.theory")
  results = write_results(QUICK if quick else FULL, out, figure, command=command)
  found = results["agreement"]
  print(results["table"])
  print(
    f"{found['num_points']} points, largest |z-score| {found['largest_z_score']:.2f}, mean square "
    f"{found['mean_square_z_score']:.2f}; results in {out}, figure in {figure}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_bool("quick", False, "Smaller layers and fewer samples.")
  flags.DEFINE_string(
    "out", "", f"Results file; default: {_RESULTS}, with --quick in runs/theory_quick."
  )
  flags.DEFINE_string(
    "figure", "", f"Image; default: {_FIGURE}, with --quick in runs/theory_quick."
  )
  cli.run(main)
