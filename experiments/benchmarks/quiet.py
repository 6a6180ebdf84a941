"""Times candidates while a machine that others share is as fast as it can be.

A neighbour on the other thread of a core, say, slows down what is bound by vector units or caches
for seconds at a time: some programs by a sixth, others by a half, and no statistics of the system
show it. A product of matrices on all cores does.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np

_T = TypeVar("_T")

_SIDE = 768
_PRODUCTS = 5
_SLOWER = 1.12  # than the fastest product so far: undisturbed ones vary by a twelfth
_ATTEMPTS = 8
_PAUSE_SECONDS = 0.03  # NumPy's threads wait so long for more, and keep cores busy
_WARM_UP_SECONDS = 1.0


class QuietClock:
  """Repeats what is timed where the machine was disturbed before or after it.

  Attributes:
    repeated: timings that were thrown away.
    disturbed: timings that count although the machine was disturbed, as it was in all attempts.
  """

  def __init__(self) -> None:
    """Finds out how fast the machine is."""
    self.repeated = self.disturbed = 0
    self._matrix = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    self._best = float("inf")
    end = time.perf_counter() + _WARM_UP_SECONDS
    while time.perf_counter() < end:
      self._slowness()

  def timers(self, candidates: Mapping[str, Callable[[], _T]]) -> dict[str, Callable[[], _T]]:
    """The candidates by name, functions that time something, each as `time` calls it."""
    return {name: functools.partial(self.time, each) for name, each in candidates.items()}

  def time(self, candidate: Callable[[], _T]) -> _T:
    """What the candidate returns, of an undisturbed attempt, or of the least disturbed one."""
    found: list[tuple[float, _T]] = []
    while len(found) < _ATTEMPTS:
      before = self._slowness()
      result = candidate()
      found.append((max(before, self._slowness()), result))
      if found[-1][0] <= _SLOWER:
        break
    self.repeated += len(found) - 1
    slowness, result = min(found, key=lambda each: each[0])
    self.disturbed += slowness > _SLOWER
    return result

  def _slowness(self) -> float:
    """Time of a product over the least so far."""
    times = []
    for _ in range(_PRODUCTS):
      start = time.perf_counter()
      self._matrix @ self._matrix
      times.append(time.perf_counter() - start)
    time.sleep(_PAUSE_SECONDS)
    self._best = min(self._best, *times)
    return min(times) / self._best
