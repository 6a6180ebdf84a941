"""Which backend runs a layer: by what each is expected to take, and told why."""

import functools
import math
import numbers
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from srigl_kernels import cost_model, depthwise
from srigl_kernels.backends.cpu import library
from srigl_kernels.backends.cuda import library as cuda_library
from srigl_kernels.backends.grouped import group_size
from srigl_kernels.backends.registry import BACKENDS, is_traced
from srigl_kernels.format import Condensed
from srigl_kernels.layer_cache import is_concrete, remember
from srigl_kernels.matmul_precision import current_precision

ACCELERATORS = ("gpu", "tpu")
_EXACT = ("highest", "float32")  # settings under which products of float32 are not rounded
_FOLLOWING_PRECISION = ("dense", "structured", "cuda")
_ANY_BATCH = 64  # what a symbolic batch size stands for: every layout computes any
_BATCHES = tuple(2**i for i in range(12))  # what a layer is prepared for unless it is told


def names(
  condensed: Condensed,
  backend: str | Sequence[str],
  batch: int | Sequence[int] | None,
  gradients: bool,
  groups: int = 1,
) -> tuple[tuple[str, ...], bool]:
  """The backends to prepare for, and whether each call chooses the fastest of them."""
  if backend != "auto":
    return (backend,) if isinstance(backend, str) else tuple(backend), False
  if is_depthwise(condensed, groups):
    return ("dense",), not gradients
  batches = _BATCHES if batch is None else check_batch(batch)
  among = candidates(condensed, gradients)
  is_laid_out_in_jit = is_traced((condensed.indices, condensed.active) if gradients else condensed)
  if is_laid_out_in_jit and not {"cuda", "pallas"} & set(among):
    warn_of_unprepared_layer()
  best = lambda n: rank(condensed, n, among)[0][0]
  if gradients:
    return (best(max(batches)),), False
  found = dict.fromkeys(best(n) for n in batches)
  if "cpu" in among and cost_model.is_small(condensed.in_features, condensed.out_features):
    found["cpu"] = None  # for programs that are native otherwise: see `is_worth_staying_native`
  return tuple(found), True


def is_depthwise(condensed: Condensed, groups: int) -> bool:
  """Whether a layer in groups is a depthwise convolution that is best run densely: other backends
  would put together a patch of all channels, for neurons that read one.
  """
  shape = condensed.kernel_shape
  return groups > 1 and len(shape) > 2 and depthwise.is_depthwise(shape, groups)


def check_batch(batch: int | Sequence[int]) -> tuple[int, ...]:
  """One batch size or several, as a tuple; a ValueError unless all are whole numbers from 1 on."""
  sizes = tuple(batch) if isinstance(batch, Sequence) and not isinstance(batch, str) else (batch,)
  if not sizes or any(not isinstance(n, numbers.Integral) or n < 1 for n in sizes):
    raise ValueError(f"`batch` is {batch!r}; it must be a whole number of 1 or more, or several.")
  return tuple(map(int, sizes))


def expected_batch(batch: Any) -> int:
  """The batch that a call is taken to have: its own, unless `jax.export` leaves that open."""
  return max(batch, 1) if isinstance(batch, int) else _ANY_BATCH


def candidates(condensed: Condensed, gradients: bool = False) -> list[str]:
  """The backends among which `prepare` chooses; warns if the native one is not installed."""
  dense = ["structured", "dense"] if condensed.num_active < condensed.out_features else ["dense"]
  reads = (condensed.indices, condensed.active) if gradients else condensed
  is_concrete = not is_traced(reads)
  if jax.default_backend() not in ACCELERATORS:
    if BACKENDS["cpu"].is_available() and is_concrete:
      return ["cpu", *dense, "xla"]
    if jax.default_backend() == "cpu" and not library.is_available():
      _warn_of_no_cpu_library()
    return [*dense, "xla"]
  names = [*dense, _accelerated(is_concrete)]
  is_grouped = not is_traced(condensed.indices) and group_size(condensed) is not None
  return [*names, "grouped"] if is_grouped and is_concrete else names


def _accelerated(is_concrete: bool) -> str:
  """CUDA C++ kernels where they can run, else Pallas, else plain XLA; each step down warns once."""
  if jax.default_backend() == "gpu":
    if BACKENDS["cuda"].is_available():
      return "cuda"
    _warn_of_no_cuda(cuda_library.why_not() or "")
  pallas = BACKENDS["pallas"]
  if pallas.is_available() and (is_concrete or pallas.packs_traced()):
    return "pallas"
  if not pallas.is_available():
    _warn_of_no_pallas()
  return "xla"


def choose(condensed: Condensed, batch: int) -> tuple[str, str]:
  """The backend for a layer that is not prepared, and why."""
  if is_concrete(condensed):
    among = remember(condensed, ("candidates", jax.default_backend()), candidates)
    group = remember(condensed, "group size", group_size) if "grouped" in among else None
    name = rank(condensed, batch, among, group)[0][0]
    return name, f"its layout is made once; {expectation(condensed, batch, among, group)}"
  if jax.default_backend() == "gpu" and BACKENDS["pallas"].is_available():
    return (
      "pallas",
      "the layer is traced and not prepared, and these kernels read it nearly as it is",
    )
  return (
    "xla",
    "the layer is traced and not prepared, and this layout is cheap to make in every call",
  )


def rank(
  condensed: Condensed, batch: int, names: Sequence[str], group: int | None = None
) -> list[tuple[str, float]]:
  """Backends with the seconds that they are expected to take, the fastest first.

  Args:
    condensed: the layer, which may be traced.
    batch: rows of x.
    names: of the backends.
    group: neurons of a group, for the grouped backend; found in the layer by default.
  """
  keys = {_key(name, condensed): name for name in names}
  if not all(map(cost_model.is_known, keys)):
    # Nothing is known of this device: gather where so few weights are left that it won on CPU, too.
    gather = 32 * condensed.fan_in <= condensed.in_features
    first = sorted(names, key=lambda name: (name == "xla") != gather)
    return [(name, math.nan) for name in first]
  if group is None and "grouped" in names:
    group = group_size(condensed)
  sizes = cost_model.Sizes(
    condensed.in_features,
    condensed.out_features,
    condensed.num_active,
    condensed.fan_in,
    group or 1,
  )
  return [(keys[key], seconds) for key, seconds in cost_model.rank(sizes, batch, list(keys))]


def fastest(condensed: Condensed, batch: Any, layouts: Mapping[str, Any]) -> str:
  """The one of several layouts that is expected to be fastest.

  Args:
    condensed: the layer, which may be traced.
    batch: rows of x, which may be symbolic.
    layouts: by backend.
  """
  group = layouts["grouped"].group_size if "grouped" in layouts else None
  return rank(condensed, expected_batch(batch), list(layouts), group)[0][0]


def _key(name: str, condensed: Condensed) -> str:
  """What `cost_model.SECONDS` calls a backend here."""
  device = jax.default_backend()
  if device == "cpu":
    if name != "cpu":
      return name
    # What later targets add to AVX-512 makes products of 16 bits faster still.
    isa, _, more = library.isa().partition("_")
    is_int8 = condensed.scales is not None and condensed.rounds_inputs
    return f"cpu {isa} int8" if more and is_int8 else f"cpu {isa}"
  dtype = condensed.values.dtype.name
  is_exact = current_precision() in _EXACT
  exact = " highest" if dtype == "float32" and is_exact and name in _FOLLOWING_PRECISION else ""
  return f"{name} {device} {dtype}{exact}"


def is_worth_staying_native(condensed: Condensed, backend: str, batch: int) -> bool:
  """Whether the native kernels take little longer than a backend: less than going over to XLA.

  Args:
    condensed: the layer.
    backend: that was chosen for it.
    batch: rows of x.
  """
  seconds = dict(rank(condensed, batch, ["cpu", backend]))
  return backend == "cpu" or not seconds["cpu"] - seconds[backend] > cost_model.HANDOVER


def expectation(
  condensed: Condensed, batch: int, names: Sequence[str], group: int | None = None
) -> str:
  """What was expected of some backends, in words; arguments as for `rank`."""
  ranked = rank(condensed, batch, names, group)
  if math.isnan(ranked[0][1]):
    return f"a rule of thumb: fan-in {condensed.fan_in} of {condensed.in_features} inputs"
  times = ", ".join(f"{name} {1e6 * seconds:.3g} us" for name, seconds in ranked)
  return f"expected times at batch {batch}: {times}"


@functools.cache
def _warn_of_no_cuda(reason: str) -> None:
  """Warns once per process."""
  warnings.warn(
    f"The CUDA kernels cannot be used ({reason}), so condensed layers run on Pallas' kernels.",
    stacklevel=5,
  )


@functools.cache
def _warn_of_no_pallas() -> None:
  """Warns once per process."""
  warnings.warn(
    "This jax has no Pallas kernels for the device, so condensed layers run on plain XLA, many "
    "times slower.",
    stacklevel=5,
  )


@functools.cache
def _warn_of_no_cpu_library() -> None:
  """Warns once per process."""
  warnings.warn(
    f"The native CPU kernels cannot be used: {library.why_unavailable()}. Condensed layers run on "
    "plain XLA instead, several times slower. Reinstall srigl-jax on a machine with a C++ "
    "compiler: its build makes them (in a checkout, `pip install -e .`).",
    stacklevel=4,
  )


@functools.cache
def warn_of_unprepared_layer() -> None:
  """Warns once per process."""
  warnings.warn(
    "A condensed layer whose arrays are traced is laid out in every call, which makes it about as "
    "slow as a dense one. Call `prepare(condensed)` outside of jit and pass what it returns; with "
    "`prepare(condensed, gradients=True)` its values may change.",
    stacklevel=4,
  )
