"""Tables of what was measured, and the rows that have targets."""

from collections.abc import Iterator, Sequence

from experiments.benchmarks.comparison import Comparison, compare, duration
from experiments.benchmarks.serving.cases import (
  CALLERS,
  CONTENTION,
  ENGINES,
  OURS,
  RIVALS,
  SPARSITIES,
  TARGETS,
)
from experiments.benchmarks.serving.measurement import Measurement, key, split
from experiments.benchmarks.timing import quartiles
from experiments.common.markdown import markdown_table

_BITS = {32: "float32", 16: "16 bits", 8: "int8"}


def comparisons(measured: Sequence[Measurement]) -> Iterator[Comparison]:
  """The rows that have targets: the best of the rivals over the best of ours, round by round."""
  for target in TARGETS:
    for one in (one for one in measured if one.network == target.network):
      for batch, goal in target.goals.items():
        ours = best(one, batch, [key(name) for name in OURS if _has(name, target.ours)])
        theirs = best(one, batch, [name for name in RIVALS if _has(name, target.theirs)])
        if ours is not None and theirs is not None:
          words = " or ".join(_BITS[bits] for bits in target.theirs)
          mine = "" if target.ours == target.theirs else _said(target.ours)
          name = f"{one.network}, batch {batch}{mine}: best rival in {words} / condensed"
          name = name.replace(" in float32 or 16 bits or int8", "")
          yield compare(name, one.seconds[batch], theirs, ours, at_least=goal)
  for one in measured:
    yield from _contention(one)


def best(one: Measurement, batch: int, engines: Sequence[str]) -> str | None:
  """The fastest of some engines by its median; None if none was timed."""
  found = {name: one.median(batch, name) for name in engines}
  timed = {name: seconds for name, seconds in found.items() if seconds is not None}
  return min(timed, key=timed.__getitem__) if timed else None


def times_table(measured: Sequence[Measurement]) -> str:
  """Time of a call by network, batch and engine, and how it compares."""
  names = [*RIVALS]
  names += [key("condensed", s) for s in SPARSITIES] + [key(n) for n in OURS if n != "condensed"]
  names = [
    n for n in names if any(n in times for one in measured for times in one.seconds.values())
  ]
  cell = lambda seconds: "" if seconds is None else duration(seconds)
  rows = []
  for one in measured:
    for batch in one.seconds:
      times = [cell(one.median(batch, name)) for name in names]
      rows.append([one.network, batch, *times, _ratio(one, batch, (32,)), _ratio(one, batch)])
  header = ["network", "batch", *map(_title, names), "float32: best / condensed", "best / best"]
  return markdown_table(header, rows)


def errors_table(measured: Sequence[Measurement]) -> str:
  """The error of the engines that do not compute in float32, by network."""
  names = [n for n in (*RIVALS, *map(key, OURS)) if ENGINES[split(n)[0]].bits < 32]
  names = [name for name in names if any(name in one.errors for one in measured)]
  cell = lambda one, name: f"{one.errors[name]:.1e}" if name in one.errors else ""
  rows = [[one.network, *(cell(one, name) for name in names)] for one in measured]
  return markdown_table(["error / largest output", *map(_title, names)], rows)


def callers_table(measured: Sequence[Measurement]) -> str:
  """What several callers at once get."""
  header = ["network at batch 1", "engine"]
  header += [f"{n} caller{'s' * (n > 1)}: p50, p99, calls/s" for n in CALLERS]
  rows = []
  for one in measured:
    for engine, by_count in one.callers.items():
      cells = []
      for count in CALLERS:
        p50, p99, rate = (quartiles(by_count[count][what])[1] for what in ("p50", "p99", "rate"))
        cells.append(f"{duration(p50)}, {duration(p99)}, {rate:,.4g}")
      rows.append([one.network, _title(engine), *cells])
  return markdown_table(header, rows, align="llrrr")


def skipped(measured: Sequence[Measurement]) -> str:
  """What was left out and why, a line for each reason."""
  reasons: dict[tuple[str, str], list[str]] = {}
  for one in measured:
    for name, reason in one.skipped.items():
      reasons.setdefault((name, reason), []).append(one.network)
  return "\n".join(
    f"{_title(name)} left out, {reason}: {'; '.join(networks)}."
    for (name, reason), networks in reasons.items()
  )


def _contention(one: Measurement) -> Iterator[Comparison]:
  """Calls per second of several callers over those of one."""
  for engine in map(key, OURS):
    by_count = one.callers.get(engine, {})
    for count in (n for n in by_count if n > 1):
      pairs = zip(by_count[count]["rate"], by_count[1]["rate"], strict=True)
      name = f"{one.network}, batch 1, {_title(engine)}: calls/s of {count} callers / of 1"
      yield Comparison(name, [a / b for a, b in pairs], {}, at_least=CONTENTION)


def _has(engine: str, bits: Sequence[int]) -> bool:
  return ENGINES[engine].bits in bits


def _said(bits: Sequence[int]) -> str:
  return ", ours in " + " or ".join(_BITS[b] for b in bits) if len(bits) < len(_BITS) else ""


def _ratio(one: Measurement, batch: int, bits: Sequence[int] = tuple(_BITS)) -> str:
  theirs = best(one, batch, [name for name in RIVALS if _has(name, bits)])
  ours = best(one, batch, [key(name) for name in OURS if _has(name, bits)])
  if theirs is None or ours is None:
    return ""
  return f"{compare('', one.seconds[batch], theirs, ours).ratio:.2f}"


def _title(name: str) -> str:
  engine, sparsity = split(name)
  if engine not in ENGINES:
    return name
  title = ENGINES[engine].title
  return f"{title} {100 * sparsity:g} %" if engine in OURS else title
