"""Fits the constants of `srigl_kernels.cost` to times measured on this machine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from experiments.progress import progress
from kernels.benchmark import peers
from kernels.benchmark.layers import Shape, random_layer
from kernels.benchmark.measure import Cell, Effort, measure_layer
from srigl_kernels import BACKENDS, cost, cpu

# Shapes (inputs, outputs, active neurons) and sparsities that a choice has to be made for: square
# and not, with ablated neurons and without, from half dense to nearly empty.
_LAYERS: tuple[tuple[tuple[int, int, int], tuple[float, ...]], ...] = (
  ((768, 3072, 1145), (0.7, 0.8, 0.9, 0.95, 0.99)),
  ((3072, 768, 768), (0.3, 0.5, 0.8, 0.9, 0.95, 0.99)),
  ((768, 768, 768), (0.1, 0.5, 0.9)),
  ((256, 256, 200), (0.3, 0.9)),
  ((576, 64, 50), (0.5, 0.9)),
  ((512, 1000, 1000), (0.3, 0.8)),
  ((4096, 4096, 4096), (0.5, 0.9)),
)
_BATCHES = [1, 4, 16, 48, 64, 256, 1024]
_EFFORT = Effort(rounds=5, budget=0.5, limit=0.3)


def run() -> str:
  """Measures and fits; the constants as they stand in `cost.SECONDS`, and how well they fit."""
  times: dict[str, list[tuple[cost.Sizes, int, float]]] = {}
  total = sum(len(sparsities) for _, sparsities in _LAYERS)
  methods = _methods()
  with progress("fit", step=0, total_steps=total) as show:
    done = 0
    for shape, sparsities in _LAYERS:
      for sparsity in sparsities:
        cells: list[Cell] = []
        layer = random_layer("x".join(map(str, shape)), Shape(*shape), sparsity)
        measure_layer(layer, _BATCHES, methods, threads=0, effort=_EFFORT, done=cells.append)
        for cell in cells:
          sizes = cost.Sizes(cell.in_features, cell.out_features, cell.num_active, cell.fan_in)
          for name in cell.seconds:
            times.setdefault(name, []).append((sizes, cell.batch, cell.median(name)))
        done += 1
        show(done)
  lines = ["SECONDS: dict[str, Rates] = {"]
  for name, measured in times.items():
    rates = fit(name, measured)
    factors = [_estimate(name, rates, sizes, n) / t for sizes, n, t in measured]
    low, middle, high = np.percentile(factors, [10, 50, 90])
    numbers = ", ".join(f"{rate:.3g}" for rate in rates)
    lines.append(f'  "{name}": Rates({numbers}),')
    lines[-1] += f"  # estimate / time: 10 % {low:.2f}, median {middle:.2f}, 90 % {high:.2f}"
  return "\n".join([*lines, "}"])


def _methods() -> dict[str, peers.Peer]:
  """The backends by their keys in `cost.SECONDS`: the native one on every CPU target there is."""
  found = peers.peers(("dense", "structured", "xla"))
  if BACKENDS["cpu"].is_available():
    for isa in ("avx512", "avx2", "generic"):
      try:
        cpu.set_isa(isa)
      except ValueError:  # the CPU does not have it
        continue
      found[f"cpu {isa}"] = peers.native(isa)
  return found


def fit(name: str, measured: Sequence[tuple[cost.Sizes, int, float]]) -> cost.Rates:
  """Constants of one backend, none negative: least squares of the relative error.

  Args:
    name: a key of `cost.SECONDS`.
    measured: `(sizes, batch, seconds)` of calls.
  """
  terms: Any = [np.array(cost.terms(name, sizes, n)) / seconds for sizes, n, seconds in measured]
  matrix = np.array(terms)
  scale = np.maximum(np.abs(matrix).max(0), 1e-30)  # terms differ by many orders of magnitude
  solution, _ = nnls(matrix / scale, np.ones(len(matrix)))
  return cost.Rates(*(float(rate) for rate in solution / scale))


def _estimate(name: str, rates: cost.Rates, sizes: cost.Sizes, batch: int) -> float:
  return sum(a * b for a, b in zip(rates, cost.terms(name, sizes, batch), strict=True))
