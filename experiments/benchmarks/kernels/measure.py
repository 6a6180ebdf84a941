"""Measures a layer at a batch size with every method: checked first, then timed in turns."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import srigl_jax as sx
from experiments.benchmarks.kernels.baselines import Call, Peer
from experiments.benchmarks.kernels.layers import Layer
from experiments.benchmarks.timing import Times, call_seconds, quartiles, take_turns
from srigl_kernels import BACKENDS
from srigl_kernels.backends.cpu import library

_NUM_INPUTS = 4  # rotate, so that a method does not find its input in the first-level cache
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


class Cell(NamedTuple):
  """What was measured of one layer at one batch size and one number of threads.

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
  batches: list[int],
  peers: Mapping[str, Peer],
  *,
  threads: int,
  effort: Effort,
  done: Callable[[Cell], None],
) -> None:
  """Measures a layer at some batch sizes; `done` is given each cell when it is there."""
  calls = {name: peer.make(layer) for name, peer in peers.items() if not peer.missing}
  skipped = {name: peer.missing for name, peer in peers.items() if peer.missing}
  _use_isa(peers.get("cpu"))
  prepared = sx.prepare(layer.condensed)
  rng = np.random.default_rng(0)
  for batch in sorted(batches):
    shape = (_NUM_INPUTS, batch, layer.condensed.in_features)
    xs = rng.standard_normal(shape, dtype=np.float32)
    seconds, too_slow = _measure(layer, xs, calls, peers, effort)
    # What is too slow now is slower with more rows.
    skipped |= too_slow
    calls = {name: call for name, call in calls.items() if name not in too_slow}
    _use_isa(peers.get("cpu"))
    choice, reason = sx.choose_backend(prepared, batch=batch)
    condensed = layer.condensed
    done(
      Cell(
        layer.name,
        condensed.in_features,
        condensed.out_features,
        condensed.num_active,
        condensed.fan_in,
        layer.sparsity,
        batch,
        threads,
        seconds,
        dict(skipped),
        choice,
        reason,
      )
    )


def _measure(
  layer: Layer,
  xs: np.ndarray,
  calls: Mapping[str, Call],
  peers: Mapping[str, Peer],
  effort: Effort,
) -> tuple[Times, dict[str, str]]:
  """Seconds by method, and why a method was left out."""
  skipped: dict[str, str] = {}
  timed, rounds = {}, {}
  want, tolerance = _expected(layer, xs[0])
  for name, call in calls.items():
    temporary = peers[name].temporary(layer) * xs.shape[1]
    if temporary > _MAX_TEMPORARY_BYTES:
      skipped[name] = f"its temporary would have {temporary / 2**20:.0f} MiB"
      continue
    inputs = [peers[name].convert(x) for x in xs]
    _use_isa(peers[name])
    check(name, call(inputs[0]), want, tolerance)
    once = call_seconds(call, inputs, warm_up=0, spend=0, most=1)
    if once > effort.limit:
      skipped[name] = f"a call takes {once:.2g} s at batch {xs.shape[1]}, above {effort.limit:g} s"
      continue
    timed[name] = _timer(peers[name], call, inputs, effort)
    a_round = once + max(once, effort.warm_up) + max(once, effort.spend)
    rounds[name] = max(min(3, effort.rounds), min(effort.rounds, int(effort.budget / a_round)))
  return take_turns(timed, rounds=rounds), skipped


def _timer(peer: Peer, call: Call, inputs: list[Any], effort: Effort) -> Callable[[], float]:
  def timer() -> float:
    _use_isa(peer)
    return call_seconds(call, inputs, warm_up=effort.warm_up, spend=effort.spend, most=effort.most)

  return timer


def _use_isa(peer: Peer | None) -> None:
  if peer is not None and peer.isa and BACKENDS["cpu"].is_available():
    library.set_isa(peer.isa)


def _expected(layer: Layer, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Some rows of the result in float64, and how far float32 may be from it."""
  rows = x[_checked(len(x))].astype(np.float64)
  kernel, bias = layer.kernel.astype(np.float64), layer.bias.astype(np.float64)
  # Any order of summation errs by less than fan-in times the unit roundoff of these sums.
  return rows @ kernel + bias, 1e-5 * (np.abs(rows) @ np.abs(kernel) + np.abs(bias)) + 1e-30


def _checked(num_rows: int) -> list[int]:
  return [*range(min(_CHECKED_ROWS, num_rows)), num_rows - 1]


def check(name: str, result: Any, want: np.ndarray, tolerance: np.ndarray) -> None:
  """Compares some rows of a result with what they should be.

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
