"""Measures a layer at a batch size with every method: checked first, then timed in turns."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import srigl_jax as sx
from experiments.benchmarks.kernels.baselines import Baseline, Call
from experiments.benchmarks.kernels.layers import Layer
from experiments.benchmarks.timing import Times, call_seconds, quartiles, take_turns
from srigl_kernels import BACKENDS
from srigl_kernels.backends.cpu import library

NUM_INPUTS = 4
"""Inputs that rotate, so that a method does not find its own in the first-level cache."""

_MAX_TEMPORARY_BYTES = 2**28
_CHECKED_ROWS = 65  # the first; and the last one


class Effort(NamedTuple):
  """How much time measuring may take.

  Attributes:
    rounds: of each method.
    budget: seconds of a method at one batch size, above which it gets fewer rounds (at least 3).
    limit: seconds of one call, above which a method is left out.
    warm_up: seconds of calls before those that count, in each round.
    spend: seconds of calls that count in a round, at most `most` calls.
    most: see `spend`.
  """

  rounds: int = 15
  budget: float = 1.5
  limit: float = 0.5
  warm_up: float = 0.003
  spend: float = 0.01
  most: int = 20


class Measurement(NamedTuple):
  """Times of one layer at one batch size and one number of threads.

  Attributes:
    layer: its name.
    in_features: `I`.
    out_features: `N`.
    num_active: `A`.
    fan_in: `K`.
    sparsity: of the layer.
    batch: rows.
    threads: cores of the process.
    seconds: by method, the median call of every round.
    skipped: by method, why it was not timed.
    choice: what `backend="auto"` takes.
    reason: why.
  """

  layer: str
  in_features: int
  out_features: int
  num_active: int
  fan_in: int
  sparsity: float
  batch: int
  threads: int
  seconds: Times
  skipped: dict[str, str]
  choice: str
  reason: str

  def median(self, method: str) -> float:
    """Median seconds of a method that was timed."""
    return quartiles(self.seconds[method])[1]


def measure_layer(
  layer: Layer,
  batches: Sequence[int],
  methods: Mapping[str, Baseline],
  *,
  threads: int,
  effort: Effort,
  done: Callable[[Measurement], None],
) -> None:
  """Measures a layer at some batch sizes; `done` is given each measurement as it is made.

  Raises:
    RuntimeError: if a method computes something else.
  """
  calls = {name: method.make(layer) for name, method in methods.items() if not method.missing}
  skipped = {name: method.missing for name, method in methods.items() if method.missing}
  condensed = layer.condensed
  _use_isa(methods.get("cpu"))
  prepared = sx.prepare(condensed)
  rng = np.random.default_rng(0)
  for batch in sorted(batches):
    shape = (NUM_INPUTS, batch, condensed.in_features)
    xs = rng.standard_normal(shape, dtype=np.float32)
    seconds, too_slow = _measure(layer, xs, calls, methods, effort)
    skipped |= too_slow  # and slower with more rows
    calls = {name: call for name, call in calls.items() if name not in too_slow}
    _use_isa(methods.get("cpu"))
    choice, reason = sx.choose_backend(prepared, batch=batch)
    sizes = (*layer.shape, condensed.fan_in, layer.sparsity)
    done(Measurement(layer.name, *sizes, batch, threads, seconds, dict(skipped), choice, reason))


def _measure(
  layer: Layer,
  xs: np.ndarray,
  calls: Mapping[str, Call],
  methods: Mapping[str, Baseline],
  effort: Effort,
) -> tuple[Times, dict[str, str]]:
  """Seconds by method, and why a method was left out."""
  skipped: dict[str, str] = {}
  timed, rounds = {}, {}
  want, tolerance = expected(layer, xs[0])
  for name, call in calls.items():
    method = methods[name]
    temporary = method.temporary(layer) * xs.shape[1]
    if temporary > _MAX_TEMPORARY_BYTES:
      skipped[name] = f"its temporary would have {temporary / 2**20:.0f} MiB"
      continue
    inputs = [method.convert(x) for x in xs]
    _use_isa(method)
    if method.is_layer:
      check(name, call(inputs[0]), want, tolerance)
    once = call_seconds(call, inputs, warm_up=0, spend=0, most=1)
    if once > effort.limit:
      skipped[name] = f"a call takes {once:.2g} s at batch {xs.shape[1]}, above {effort.limit:g} s"
      continue
    timed[name] = _timer(method, call, inputs, effort)
    a_round = once + max(once, effort.warm_up) + max(once, effort.spend)
    rounds[name] = max(min(3, effort.rounds), min(effort.rounds, int(effort.budget / a_round)))
  return take_turns(timed, rounds=rounds), skipped


def _timer(method: Baseline, call: Call, inputs: list[Any], effort: Effort) -> Callable[[], float]:
  def timer() -> float:
    _use_isa(method)
    return call_seconds(call, inputs, warm_up=effort.warm_up, spend=effort.spend, most=effort.most)

  return timer


def _use_isa(method: Baseline | None) -> None:
  if method is not None and method.isa and BACKENDS["cpu"].is_available():
    library.set_isa(method.isa)


def expected(layer: Layer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Some rows of the result in float64, and how far float32 may be from it."""
  rows = x[_checked(len(x))].astype(np.float64)
  kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
  # Any order of summation errs by less than fan-in times the unit roundoff of these sums.
  return rows @ kernel + bias, 1e-5 * (np.abs(rows) @ np.abs(kernel) + np.abs(bias)) + 1e-30


def _checked(num_rows: int) -> list[int]:
  return [*range(min(_CHECKED_ROWS, num_rows)), num_rows - 1]


def check(name: str, result: Any, want: np.ndarray, tolerance: np.ndarray) -> None:
  """Compares some rows of a result with what `expected` says.

  Raises:
    RuntimeError: if they differ by more than the tolerance.
  """
  got = np.asarray(result)[_checked(len(result))]
  if got.shape != want.shape:
    raise RuntimeError(f"The method {name!r} has a result of another shape.")
  error = np.abs(got - want)
  if not np.all(error <= tolerance):
    worst = np.unravel_index((error - tolerance).argmax(), error.shape)
    raise RuntimeError(
      f"The method {name!r} computes something else: it errs by {error[worst]:.3g} where "
      f"{tolerance[worst]:.3g} is allowed."
    )
