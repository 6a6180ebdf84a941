"""What a product costs on each backend: an estimate good enough to choose among them.

The time of a call is taken to be a sum over what it has to do, each at a constant rate:

    call + weights * W + products * W * B' + features * B * (I + N) + spread * B * N

`W` is the number of weights that the backend reads: `A * K` (cpu, xla), `A * I` (structured) or
`N * I` (dense). `B'` is the batch; the cpu backend's tiles round it up to a multiple of 16, but for
the kernel for up to 12 rows that it has on AVX-512. `spread` is for xla and structured where
neurons are ablated: they put the outputs of the others in their places in a pass of its own.

The constants in `SECONDS` are fitted to measured times of random layers of many shapes and
densities (`python -m kernels.benchmark --fit` measures, fits and prints them). They hold for one
machine; on another one it is their ratios that matter, which differ less than the times.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Sizes(NamedTuple):
  """Sizes of a layer.

  Attributes:
    in_features: `I`.
    out_features: `N`.
    num_active: `A`.
    fan_in: `K`.
  """

  in_features: int
  out_features: int
  num_active: int
  fan_in: int


class Rates(NamedTuple):
  """Constants of a backend, in seconds each."""

  call: float
  weights: float
  products: float
  features: float
  spread: float = 0.0


# 4 cores of an AMD EPYC (Zen 4) in a virtual machine, float32, whole jitted calls.
SECONDS: dict[str, Rates] = {
  "dense": Rates(2.17e-05, 6.71e-11, 7.02e-12, 1.45e-09, 0),
  "structured": Rates(2.11e-05, 8.69e-11, 5.79e-12, 1.82e-09, 0),
  "xla": Rates(4.79e-05, 8.1e-10, 2.39e-11, 2.33e-09, 3.61e-09),
  "cpu avx512": Rates(1.04e-05, 2.25e-11, 1.29e-11, 4.25e-10, 0),
  "cpu avx2": Rates(1.34e-05, 2.99e-11, 1.26e-11, 4.65e-10, 0),
  "cpu generic": Rates(1.12e-05, 0, 2.28e-11, 9.48e-10, 0),
}
"""By backend; of the native kernels by their CPU target, too."""

PORTABLE = ("xla", "structured", "dense")
"""Backends that need no native library."""

_SPREADING = ("xla", "structured")
_TILE_ROWS = 16
_WINDOW_ROWS = {"cpu avx512": 12}  # up to so many rows it has another kernel, row by row


def terms(name: str, sizes: Sizes, batch: int) -> Rates:
  """How much of everything a call does: what the constants of `SECONDS[name]` are multiplied by."""
  num_inputs, num_neurons, num_active, fan_in = sizes
  weights = {"structured": num_active * num_inputs, "dense": num_neurons * num_inputs}
  num_weights = weights.get(name, num_active * fan_in)
  rows = batch
  if name.startswith("cpu") and batch > _WINDOW_ROWS.get(name, 0):
    rows = _TILE_ROWS * math.ceil(batch / _TILE_ROWS)
  return Rates(
    call=1,
    weights=num_weights,
    products=num_weights * rows,
    features=batch * (num_inputs + num_neurons),
    spread=batch * num_neurons if name in _SPREADING and num_active < num_neurons else 0,
  )


def estimate(name: str, sizes: Sizes, batch: int) -> float:
  """Seconds that a call is expected to take.

  Args:
    name: a key of `SECONDS`.
    sizes: of the layer.
    batch: rows of the input.
  """
  return sum(a * b for a, b in zip(SECONDS[name], terms(name, sizes, batch), strict=True))


def rank(sizes: Sizes, batch: int, names: Sequence[str]) -> list[tuple[str, float]]:
  """Names of `SECONDS` with their estimates in seconds, the fastest first; ties in their order."""
  return sorted(((name, estimate(name, sizes, batch)) for name in names), key=lambda pair: pair[1])
