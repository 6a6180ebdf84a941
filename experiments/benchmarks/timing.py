"""The clock of all benchmarks: candidates for the same work, timed in turns.

A machine drifts (other programs, heat, clock rates). So candidates take turns round by round, the
order rotating, and what is compared is their times within a round. Nothing is subtracted.
"""

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.progress import progress

Times = dict[str, list[float]]


def seconds(run: Callable[[], Any]) -> float:
  """Time of one call, until every array that it returns is there."""
  import jax  # here: processes without jax use this clock too

  return elapsed(lambda: jax.block_until_ready(run()))


def elapsed(run: Callable[[], Any]) -> float:
  """Time of one call that returns when its result is there."""
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def take_turns(
  candidates: Mapping[str, Callable[[], float]],
  *,
  rounds: int | Mapping[str, int],
  after_round: Callable[[int], None] = lambda _: None,
) -> Times:
  """Lets candidates measure themselves in turns, the order rotating from round to round.

  Args:
    candidates: functions by name that return the seconds they took.
    rounds: at least 1; of each candidate if they differ, the first rounds then being all of them's.
    after_round: is given the number of rounds done.

  Returns:
    Seconds by name, one for each round.
  """
  names = list(candidates)
  limits = {name: rounds if isinstance(rounds, int) else rounds[name] for name in names}
  times: Times = {name: [] for name in names}
  for i in range(max(limits.values(), default=0)):
    first = i % len(names)
    for name in names[first:] + names[:first]:
      if i < limits[name]:
        times[name].append(candidates[name]())
    after_round(i + 1)
  return times


def interleave(name: str, candidates: Mapping[str, Callable[[], Any]], *, repeats: int) -> Times:
  """Times candidates in turns, after a round to warm up.

  Args:
    name: of the comparison, for the progress that is shown.
    candidates: functions by name; what they return is waited for.
    repeats: rounds, at least 1.

  Returns:
    Seconds by name, one for each round.
  """
  timed = {name: functools.partial(seconds, run) for name, run in candidates.items()}
  with progress(name, step=0, total_steps=repeats) as show:
    show(0, state="warming up")
    for time_once in timed.values():
      time_once()
    return take_turns(timed, rounds=repeats, after_round=show)


def call_seconds(
  call: Callable[[Any], Any], inputs: Sequence[Any], *, warm_up: float, spend: float, most: int
) -> float:
  """Median time of a call among calls in a row, for calls too short to be timed one by one.

  Args:
    call: what to time; it returns when its result is there.
    inputs: are given to the calls in turn, so that none finds its input in a cache by luck.
    warm_up: seconds of calls that come before and do not count, at least one call.
    spend: seconds of calls that count, at least one call.
    most: calls that count at most.
  """
  end = time.perf_counter() + warm_up
  call(inputs[-1])
  while time.perf_counter() < end:
    for x in inputs:
      call(x)
  times: list[float] = []
  end = time.perf_counter() + spend
  while not times or (len(times) < most and time.perf_counter() < end):
    x = inputs[len(times) % len(inputs)]
    start = time.perf_counter()
    call(x)
    times.append(time.perf_counter() - start)
  return quartiles(times)[1]


def concurrent_calls(
  calls: Sequence[Callable[[], Any]], *, spend: float
) -> tuple[list[float], float]:
  """Callers that each call as fast as they can, at the same time.

  Args:
    calls: of each caller; a call returns when its result is there.
    spend: seconds in which calls begin; longer, until each caller has made two, and another one.

  Returns:
    Seconds of every call, and calls per second: see `throughput`.
  """
  start_together = threading.Barrier(len(calls))
  spans: list[list[tuple[float, float]]] = [[] for _ in calls]

  def caller(call: Callable[[], Any], mine: list[tuple[float, float]]) -> None:
    call()
    start_together.wait()
    end, is_last = time.perf_counter() + spend, False
    while not is_last:
      start = time.perf_counter()
      is_last = start >= end and min(map(len, spans)) > 1
      call()
      mine.append((start, time.perf_counter()))

  threads = [threading.Thread(target=caller, args=each) for each in zip(calls, spans, strict=True)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return [end - start for mine in spans for start, end in mine], throughput(spans)


def throughput(spans: Sequence[Sequence[tuple[float, float]]]) -> float:
  """Calls per second of all callers together while all of them are calling.

  That is from where each has ended a call until the first ends its last. Calls that run on at the
  end are then made up for by those that ran on at the beginning; counted from when all callers
  start, or to each caller's own last end, there would be fewer or more than there are.

  Args:
    spans: of each caller, when its calls began and ended, in seconds; two or more.
  """
  begin = max(mine[0][1] for mine in spans)
  until = min(mine[-1][1] for mine in spans)
  return sum(begin < end <= until for mine in spans for _, end in mine) / (until - begin)


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
  """Lower quartile, median and upper quartile."""
  low, middle, high = np.percentile(np.asarray(values), [25, 50, 75])
  return float(low), float(middle), float(high)
