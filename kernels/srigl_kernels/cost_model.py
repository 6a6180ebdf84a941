"""What a product costs on each backend: an estimate good enough to choose among them.

The time of a call is taken to be a sum over what it has to do, each at a constant rate:

    call + weights * W + products * W * B' + features * B * (I + N) + scatter * B * N + rows * B'

`W` is the number of weights that the backend reads: `A * I` (structured), `N * I` (dense) or, of
all others, `A * K`; of the cpu backend on AVX-512, whose products are dense where that is faster,
at most `DENSE_SHARE` of `A * I`. `B'` is the batch; the cpu backend's tiles round it up to a
multiple of 16, but for the kernel for up to 12 rows that it has on AVX-512; of grouped it is the
batch over the size of a group, in units of 16. `scatter` is for backends that put the outputs of
active neurons in their places in a pass of its own, where neurons are ablated.

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
    group_size: neurons that share their inputs, for the grouped backend.
  """

  in_features: int
  out_features: int
  num_active: int
  fan_in: int
  group_size: int = 1


class Rates(NamedTuple):
  """Constants of a backend, in seconds each."""

  call: float
  weights: float
  products: float
  features: float
  scatter: float = 0.0
  rows: float = 0.0


# 4 cores of an AMD EPYC (Zen 4) in a virtual machine, float32, whole jitted calls.
SECONDS: dict[str, Rates] = {
  "dense": Rates(2.17e-05, 6.71e-11, 7.02e-12, 1.45e-09, 0),
  "structured": Rates(2.11e-05, 8.69e-11, 5.79e-12, 1.82e-09, 0),
  "xla": Rates(4.79e-05, 8.1e-10, 2.39e-11, 2.33e-09, 3.61e-09),
  "cpu avx512": Rates(1.04e-05, 2.25e-11, 1.29e-11, 4.25e-10, 0),
  # With AVX512-VNNI, estimated: a third of the time of float32 for a product.
  "cpu avx512 int8": Rates(1.04e-05, 1.1e-11, 4.3e-12, 4.25e-10, 0),
  "cpu avx2": Rates(1.34e-05, 2.99e-11, 1.26e-11, 4.65e-10, 0),
  "cpu generic": Rates(1.12e-05, 0, 2.28e-11, 9.48e-10, 0),
}

# Small layers, within a program of products with what surrounds them in a network: there XLA fuses
# what surrounds a dense product, and a call of native code costs a microsecond and a half. On two
# cores of an Intel Xeon; `python -m kernels.benchmark --fit --small` measures them.
SMALL: dict[str, Rates] = {
  "dense": Rates(1.79e-06, 3.43e-11, 8.51e-12, 3.16e-10, 0, 1.45e-08),
  "structured": Rates(1.94e-06, 2.09e-11, 9.03e-12, 4.55e-10, 5.89e-10, 0),
  "xla": Rates(1e-05, 2.76e-9, 2.39e-11, 2.36e-09, 3.61e-09),
  "cpu avx512": Rates(1.55e-06, 8.62e-11, 1.78e-11, 2.72e-10, 0, 3.57e-08),
  "cpu avx512 int8": Rates(1.55e-06, 4.3e-11, 5.9e-12, 2.72e-10, 0, 3.57e-08),  # likewise
}
SMALL_WEIGHTS, SMALL_ROWS = 2**17, 512
"""Up to so many weights when dense, and with up to so many rows, a layer is small.

With more rows what surrounds a product costs memory, fused or not: that of ResNet-50's first
layers, 25,088 rows of 64 and 256 channels at batch 8, took XLA longer than the products.
"""


def is_small(in_features: int, out_features: int, batch: int = 1) -> bool:
  """Whether a layer of these sizes is small, for so many rows."""
  return in_features * out_features <= SMALL_WEIGHTS and batch <= SMALL_ROWS


LEAST_GAIN = 1.1
"""A small layer leaves the dense product for what is expected to gain more than a tenth.

So far the estimates of small layers are off: of the 192 layers to which they are fitted, 8 would be
slower than dense by more than a tenth without it, the worst by a third, and 4 are with it.
"""

LEAST_GAIN_ON_GPU = 1.2
"""The same on GPUs, of layers of any size: the estimates are off by about as much."""

HANDOVER = 2e-5
"""Seconds lost where native kernels and products of XLA follow each other.

What one of them hands to its threads the other waits for. A program of native kernels alone, some
microseconds long, is run by XLA at once; with a single product of XLA it took tens of microseconds
more.
"""

# One NVIDIA H200, device time within a program: fitted to experiments/results/gpu_kernels*.json, of
# float32 gathering to the faster of two versions of the kernel. `grouped`, `structured` and `xla`
# were measured in few cases. What blocks of threads take to bring x to shared memory, most where
# there are many inputs and few neurons, is not in the model: it may err by a third there.
#
# No TPU was at hand: estimates from published figures; to be replaced by what
# `python -m kernels.benchmark --fit` prints.
# TPU v5e: 0.82 TB/s, 197 TFLOP/s in bfloat16, which is what products of float32 are rounded to,
# but for "highest", six of them; vector operations as in `pallas.tpu`.
SECONDS |= {
  "dense gpu float32": Rates(5.89e-06, 8.63e-13, 6.53e-15, 1.23e-12),
  "dense gpu float32 highest": Rates(8.38e-06, 9.62e-13, 2.88e-14, 8.92e-12),
  "dense gpu bfloat16": Rates(5.03e-06, 5.31e-13, 9.28e-16, 9.67e-13),
  "structured gpu float32": Rates(6.4e-06, 8.63e-13, 9.65e-14, 0),
  "structured gpu float32 highest": Rates(6.4e-06, 9.62e-13, 1.13e-13, 0),
  "structured gpu bfloat16": Rates(6.1e-06, 5.31e-13, 1.13e-13, 0),
  "cuda_gather gpu float32": Rates(3.66e-06, 2.43e-12, 2.93e-13, 1.26e-11, 0, 1.2e-08),
  "cuda_gather gpu bfloat16": Rates(3.32e-06, 1.8e-12, 2.23e-13, 1.54e-12, 0, 5.23e-08),
  "cuda_tiles gpu float32": Rates(6.59e-06, 5.05e-12, 2.1e-14, 0, 0, 9.81e-08),
  "cuda_tiles gpu float32 highest": Rates(8.31e-06, 3.77e-12, 4.85e-14, 0, 0, 9.67e-08),
  "cuda_tiles gpu bfloat16": Rates(6.67e-06, 3.66e-12, 9.81e-15, 0, 0, 8.78e-08),
  "pallas gpu float32": Rates(3.47e-06, 3.77e-12, 3.72e-13, 0, 0, 1.6e-07),
  "pallas gpu bfloat16": Rates(4.46e-06, 2.39e-12, 2.84e-13, 0, 0, 7.1e-08),
  "grouped gpu float32": Rates(2.58e-05, 6.99e-12, 0, 2.03e-11),
  "grouped gpu bfloat16": Rates(2.09e-05, 1.68e-12, 1.1e-14, 1.41e-11),
  "xla gpu float32": Rates(4.67e-4, 3e-12, 2.5e-12, 1.5e-12, 3e-12),
  "xla gpu bfloat16": Rates(4.67e-4, 2.2e-12, 2e-12, 7.5e-13, 1.5e-12),
  "dense tpu float32": Rates(2e-6, 6.1e-12, 1.7e-14, 6.1e-12),
  "dense tpu float32 highest": Rates(2e-6, 6.1e-12, 1e-13, 6.1e-12),
  "dense tpu bfloat16": Rates(2e-6, 3e-12, 1.7e-14, 3e-12),
  "structured tpu float32": Rates(2e-6, 6.1e-12, 1.7e-14, 6.1e-12, 1.2e-11),
  "structured tpu float32 highest": Rates(2e-6, 6.1e-12, 1e-13, 6.1e-12, 1.2e-11),
  "structured tpu bfloat16": Rates(2e-6, 3e-12, 1.7e-14, 3e-12, 6e-12),
  "pallas tpu float32": Rates(4e-6, 1.8e-11, 4e-12, 6.1e-12, 1.2e-11),
  "pallas tpu bfloat16": Rates(4e-6, 9.2e-12, 4e-12, 3e-12, 6e-12),
  "grouped tpu float32": Rates(4e-6, 6.1e-12, 6e-13, 1.2e-11, 1.2e-11),
  "grouped tpu bfloat16": Rates(4e-6, 3e-12, 3e-13, 6e-12, 6e-12),
  "xla tpu float32": Rates(2e-4, 1.2e-11, 1e-11, 6.1e-12, 1.2e-11),
  "xla tpu bfloat16": Rates(2e-4, 9e-12, 1e-11, 3e-12, 6e-12),
}

PORTABLE = ("xla", "structured", "dense")
"""Backends that need no native library."""

DENSE_SHARE = 0.55
"""What a dense product of the cpu backend takes, over one that has the same number of weights."""
_INT8_DENSE_SHARE = 0.3  # of 8 bits

_KERNELS = {"cuda": ("cuda_gather", "cuda_tiles")}  # of a backend, the fastest of which is taken
_SCATTERING = ("xla", "structured")
_FUSED_ON_GPU = ("pallas", "grouped")
_GROUP_SIZE = 16  # that the constants of the grouped backend are for
_TILE_ROWS = 16
_WINDOW_ROWS = {"cpu avx512": 12}  # up to so many rows it has another kernel, row by row


def terms(name: str, sizes: Sizes, batch: int) -> Rates:
  """How much of everything a call does: what the constants of `SECONDS[name]` are multiplied by."""
  num_inputs, num_neurons, num_active, fan_in, group_size = sizes
  backend = name.partition(" ")[0]
  weights = {"structured": num_active * num_inputs, "dense": num_neurons * num_inputs}
  num_weights = weights.get(backend, num_active * fan_in)
  if name.startswith("cpu avx512"):
    share = _INT8_DENSE_SHARE if name.endswith("int8") else DENSE_SHARE
    num_weights = min(num_weights, math.ceil(share * num_active * num_inputs))
  rows: float = batch
  if name.startswith("cpu") and not name.endswith("int8") and batch > _WINDOW_ROWS.get(name, 0):
    rows = _TILE_ROWS * math.ceil(batch / _TILE_ROWS)
  if backend == "grouped":
    rows *= _GROUP_SIZE / max(group_size, 1)  # its products share what they read
  scatters = backend in _SCATTERING or (backend in _FUSED_ON_GPU and " gpu " not in name)
  return Rates(
    call=1,
    weights=num_weights,
    products=(num_active * num_inputs if backend == "cuda_tiles" else num_weights) * rows,
    features=batch * (num_inputs + num_neurons),
    scatter=batch * num_neurons if scatters and num_active < num_neurons else 0,
    rows=rows,
  )


def estimate(name: str, sizes: Sizes, batch: int) -> float:
  """Seconds that a call is expected to take.

  Args:
    name: a key of `SECONDS`, or that of a backend which has several kernels.
    sizes: of the layer.
    batch: rows of the input.
  """
  backend, _, rest = name.partition(" ")
  if backend in _KERNELS:
    return fastest_kernel(backend, rest, sizes, batch)[1]
  small = name in SMALL and is_small(sizes.in_features, sizes.out_features, batch)
  rates = SMALL[name] if small else SECONDS[name]
  return sum(a * b for a, b in zip(rates, terms(name, sizes, batch), strict=True))


def fastest_kernel(backend: str, how: str, sizes: Sizes, batch: int) -> tuple[str, float]:
  """The kernel of a backend that has several, by what is before the device in `SECONDS`, and its
  seconds.

  Args:
    backend: its name.
    how: the device, the type, and `highest` where products are not rounded.
    sizes: of the layer.
    batch: rows of the input.
  """
  found = []
  for kernel in _KERNELS[backend]:
    key = f"{kernel} {how}"
    known = key if key in SECONDS else key.removesuffix(" highest")  # it rounds nothing anyway
    found.append((kernel, estimate(known, sizes, batch)))
  return min(found, key=lambda pair: pair[1])


def is_known(name: str) -> bool:
  """Whether `estimate` takes a name."""
  backend, _, rest = name.partition(" ")
  names = [f"{kernel} {rest}".removesuffix(" highest") for kernel in _KERNELS.get(backend, ())]
  return all(each in SECONDS for each in names or [name])


def rank(sizes: Sizes, batch: int, names: Sequence[str]) -> list[tuple[str, float]]:
  """Names of `SECONDS` with their estimates in seconds, the one to take first.

  That is the fastest; of small layers and on GPUs dense, unless another gains `LEAST_GAIN` or
  `LEAST_GAIN_ON_GPU`. Ties are in the order of the names.
  """
  margin = LEAST_GAIN if is_small(sizes.in_features, sizes.out_features, batch) else 1.0
  if any(" gpu " in name for name in names):
    margin = LEAST_GAIN_ON_GPU
  estimates = [(name, estimate(name, sizes, batch)) for name in names]
  is_dense = lambda name: name.partition(" ")[0] == "dense"
  return sorted(estimates, key=lambda pair: pair[1] * (1.0 if is_dense(pair[0]) else margin))
