"""Fits the constants of `srigl_kernels.cost_model` to times measured on this machine."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import nnls

from experiments.benchmarks.kernels.baselines import Baseline, baselines, native
from experiments.benchmarks.kernels.layers import SHAPES, Shape, random_layer
from experiments.benchmarks.kernels.measurement import Effort, Measurement, measure_layer
from experiments.common.progress import progress
from srigl_kernels import BACKENDS, cost_model
from srigl_kernels.backends.cpu import library

# Shapes (inputs, outputs, active neurons) and sparsities that a choice has to be made for: square
# and not, with ablated neurons and without, from half dense to nearly empty.
_LAYERS: tuple[tuple[Shape, tuple[float, ...]], ...] = (
  (SHAPES["vit_ffn_up"], (0.7, 0.8, 0.9, 0.95, 0.99)),
  (SHAPES["vit_ffn_down"], (0.3, 0.5, 0.8, 0.9, 0.95, 0.99)),
  (Shape(768, 768, 768), (0.1, 0.5, 0.9)),
  (Shape(256, 256, 200), (0.3, 0.9)),
  (Shape(576, 64, 50), (0.5, 0.9)),
  (Shape(512, 1000, 1000), (0.3, 0.8)),
  (Shape(4096, 4096, 4096), (0.5, 0.9)),
)
_BATCHES = [1, 4, 16, 48, 64, 256, 1024]
_EFFORT = Effort(rounds=5, budget=0.5, limit=0.3)


Call = tuple[cost_model.Sizes, int, float]
"""Sizes, batch and seconds of a call."""

Measured = dict[str, list[Call]]
"""Calls by key of `cost_model.SECONDS`."""


def measure() -> Measured:
  """Times of every backend on random layers, interleaved as in all benchmarks."""
  measured: Measured = {}
  methods = _methods()
  layers = [(shape, sparsity) for shape, sparsities in _LAYERS for sparsity in sparsities]
  with progress("fit", step=0, total_steps=len(layers)) as show:
    for i, (shape, sparsity) in enumerate(layers):
      found: list[Measurement] = []
      layer = random_layer("x".join(map(str, shape)), shape, sparsity)
      measure_layer(layer, _BATCHES, methods, threads=0, effort=_EFFORT, done=found.append)
      for one in found:
        sizes = cost_model.Sizes(*shape, one.fan_in)
        for name in one.seconds:
          measured.setdefault(name, []).append((sizes, one.batch, one.median(name)))
      show(i + 1)
  return measured


def report(measured: Measured) -> str:
  """The rows of `cost_model.SECONDS`, how well they fit, and what a choice by them loses."""
  fitted, measured = fit_all(measured)
  rows = [rates_row(name, rates, measured[name]) for name, rates in fitted.items()]
  lines = ["SECONDS: dict[str, Rates] = {", *rows]
  lines.append("}")
  for target in (None, *(name for name in measured if name.startswith("cpu"))):
    names = [name for name in measured if name == target or not name.startswith("cpu")]
    lines.append(f"choosing among {', '.join(names)}: {_losses(measured, fitted, names)}")
  return "\n".join(lines)


def rates_row(name: str, rates: cost_model.Rates, calls: Sequence[Call]) -> str:
  """A row of `cost_model.SECONDS`, with how well it fits what was measured."""
  factors = [_estimate(name, rates, sizes, n) / seconds for sizes, n, seconds in calls]
  low, middle, high = np.percentile(factors, [10, 50, 90])
  numbers = ", ".join(f"{rate:.3g}" for rate in rates)
  fits = f"estimate / time: 10 % {low:.2f}, median {middle:.2f}, 90 % {high:.2f}"
  return f'  "{name}": Rates({numbers}),  # {fits}'


def _losses(
  measured: Measured, fitted: Mapping[str, cost_model.Rates], names: Sequence[str]
) -> str:
  """How often and how much the choice by estimates loses against the fastest, in words."""
  times: dict[tuple[cost_model.Sizes, int], dict[str, float]] = {}
  for name in names:
    for sizes, batch, seconds in measured[name]:
      if name != "structured" or sizes.num_active < sizes.out_features:  # else it is dense
        times.setdefault((sizes, batch), {})[name] = seconds
  losses = []
  for (sizes, batch), found in times.items():
    chosen = min(found, key=lambda name: _estimate(name, fitted[name], sizes, batch))
    best = min(found, key=lambda name: found[name])
    losses.append((found[chosen] / found[best], chosen, best, tuple(sizes), batch))
  losses.sort(reverse=True)
  over = sum(loss > 1.1 for loss, *_ in losses)
  worst = "; ".join(
    f"{loss:.2f} with {chosen} for {best} at {sizes}, batch {batch}"
    for loss, chosen, best, sizes, batch in losses[:4]
  )
  return f"over 1.10 in {over} of {len(losses)} calls; worst {worst}"


def _methods() -> dict[str, Baseline]:
  """The backends by their keys in `cost_model.SECONDS`, the native one on every CPU target."""
  found = baselines(("dense", "structured", "xla"))
  if BACKENDS["cpu"].is_available():
    for isa in ("avx512", "avx2", "generic"):
      try:
        library.set_isa(isa)
      except ValueError:  # the CPU does not have it
        continue
      found[f"cpu {isa}"] = native(isa)
  return found


def fit_all(measured: Measured) -> tuple[dict[str, cost_model.Rates], Measured]:
  """Constants of all backends; and the times without what slowed all backends of a cell alike.

  Whatever else the machine does slows down the backends that take turns on one layer and batch
  by a common factor, which says nothing about a choice among them. The factors are found together
  with the constants, their median over all cells being 1.
  """
  current = measured
  for _ in range(10):
    fitted = {name: fit(name, calls) for name, calls in current.items()}
    ratios: dict[tuple[cost_model.Sizes, int], list[float]] = {}
    for name, calls in measured.items():
      for sizes, n, t in calls:
        ratios.setdefault((sizes, n), []).append(t / _estimate(name, fitted[name], sizes, n))
    factors = {cell: float(np.median(values)) for cell, values in ratios.items()}
    usual = float(np.median(list(factors.values())))
    current = {
      name: [(sizes, n, t * usual / factors[sizes, n]) for sizes, n, t in calls]
      for name, calls in measured.items()
    }
  return fitted, current


def fit(name: str, measured: Sequence[Call]) -> cost_model.Rates:
  """Constants of one backend, none negative: least squares of the relative error.

  Args:
    name: a key of `cost_model.SECONDS`.
    measured: `(sizes, batch, seconds)` of calls.
  """
  terms: Any = [
    np.array(cost_model.terms(name, sizes, n)) / seconds for sizes, n, seconds in measured
  ]
  matrix = np.array(terms)
  scale = np.maximum(np.abs(matrix).max(0), 1e-30)  # terms differ by many orders of magnitude
  solution, _ = nnls(matrix / scale, np.ones(len(matrix)))
  return cost_model.Rates(*(float(rate) for rate in solution / scale))


def _estimate(name: str, rates: cost_model.Rates, sizes: cost_model.Sizes, batch: int) -> float:
  return sum(a * b for a, b in zip(rates, cost_model.terms(name, sizes, batch), strict=True))
