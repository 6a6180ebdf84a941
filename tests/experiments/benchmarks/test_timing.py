"""The clock of the benchmarks and how comparisons are reported."""

import pytest

from experiments.benchmarks import quiet, timing
from experiments.benchmarks.comparison import (
  Comparison,
  compare,
  comparison_table,
  duration,
  results,
)
from tests.helpers import table_cells


def test_candidates_take_turns():
  calls = []
  candidates = {name: lambda name=name: calls.append(name) for name in "abc"}
  times = timing.interleave("turns", candidates, repeats=3)
  assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
  assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}


def test_candidates_may_have_fewer_rounds():
  calls = []
  candidates = {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}
  done = []
  times = timing.take_turns(candidates, rounds={"a": 3, "b": 1}, after_round=done.append)
  assert times == {"a": [1, 3, 4], "b": [2]} and done == [1, 2, 3]


def test_inputs_take_turns_and_warm_up_does_not_count():
  given = []
  timing.call_seconds(given.append, "abc", warm_up=0, spend=60, most=4)
  assert "".join(given) == "c" + "abca"
  given.clear()
  assert timing.call_seconds(given.append, "abc", warm_up=0, spend=0, most=4) < 60
  assert "".join(given) == "ca"


def test_comparisons_know_their_targets():
  row = Comparison("name", [3.0, 1.0, 2.0], {"a": [1.0]})
  assert (row.ratio, row.target, row.is_met) == (2.0, "", None)
  assert row._replace(at_most=2.0).is_met and not row._replace(at_most=1.9).is_met
  assert row._replace(at_least=2.0).is_met and not row._replace(at_least=2.1).is_met
  missed = row._replace(at_most=1.9)
  _, cells = table_cells(comparison_table([missed]))
  assert cells == ["name", "2.00 (1.50–2.50)", "at most 1.9: **missed**", "a 1 s"]
  (shown,) = results([missed], "this")["rows"]
  assert shown["ratio"] == 2.0 and shown["is_met"] is False and shown["seconds"] == {"a": [1.0]}
  assert results([missed], "this", every_round=False)["rows"][0]["seconds"] == {"a": 1.0}


def test_ratios_pair_rounds():
  times = {"a": [2.0, 9.0, 4.0], "b": [1.0, 3.0], "c": [5.0]}
  row = compare("a / b", times, "a", "b", at_least=2)
  assert row.ratios == [2.0, 3.0] and row.times.keys() == {"a", "b"} and row.is_met


@pytest.mark.parametrize(
  "seconds, text", [(2.5, "2.5 s"), (0.01234, "12.3 ms"), (1e-3, "1 ms"), (7.25e-6, "7.25 µs")]
)
def test_durations(seconds, text):
  assert duration(seconds) == text


def quiet_clock(monkeypatch, slowness):
  """A clock to which the machine is as slow as told, before and after each timing."""
  monkeypatch.setattr(quiet, "_WARM_UP_SECONDS", 0.0)
  clock = quiet.QuietClock()
  told = iter(slowness)
  monkeypatch.setattr(clock, "_slowness", lambda: next(told))
  return clock


def test_what_a_disturbed_machine_timed_is_timed_again(monkeypatch):
  clock = quiet_clock(monkeypatch, [1.0, 1.5, 1.3, 1.0, 1.0, 1.05])
  times = iter([0.5, 0.4, 0.3])
  assert clock.timers({"a": lambda: next(times)})["a"]() == 0.3
  assert (clock.repeated, clock.disturbed) == (2, 0)


def test_a_machine_that_stays_disturbed_gives_the_least_disturbed_time(monkeypatch):
  attempts = quiet._ATTEMPTS
  slowness = [1.5, 1.5] * (attempts - 2) + [1.2, 1.3] + [1.5, 1.5]
  clock = quiet_clock(monkeypatch, slowness)
  times = iter(range(attempts))
  assert clock.time(lambda: next(times)) == attempts - 2
  assert (clock.repeated, clock.disturbed) == (attempts - 1, 1)


def test_slowness_is_that_of_a_product_of_matrices(monkeypatch):
  monkeypatch.setattr(quiet, "_WARM_UP_SECONDS", 0.05)
  clock = quiet.QuietClock()
  assert 1.0 <= clock._slowness() < 1000.0


@pytest.mark.parametrize("calls", [3, 4, 5, 12])
def test_callers_that_take_turns_have_the_throughput_of_one(calls):
  """Eight share a core: one of them ends a call each second, and each of them every eight."""
  together = [[(8.0 * i + c - 7, 8.0 * i + c + 1) for i in range(calls)] for c in range(8)]
  assert timing.throughput([[(float(i), i + 1.0) for i in range(calls)]]) == 1
  assert timing.throughput(together) == pytest.approx(1)


def test_a_burst_at_the_end_of_each_caller_does_not_count_twice():
  """Two take turns of ten calls each, as the system lets them."""
  first = [(20.0 * n + i, 20.0 * n + i + 1) for n in range(5) for i in range(10)]
  second = [(start + 10, end + 10) for start, end in first]
  assert timing.throughput([first, second]) == pytest.approx(1, abs=0.15)


def test_every_caller_makes_two_calls_at_least():
  latencies, rate = timing.concurrent_calls([lambda: None] * 3, spend=0)
  assert len(latencies) >= 9 and rate > 0
