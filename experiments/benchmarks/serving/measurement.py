"""Serves a network with every engine at the same time, in turns."""

import functools
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.quiet import QuietClock
from experiments.benchmarks.serving.cases import (
  CALLERS,
  ENGINES,
  OURS,
  TWIN_SPARSITY,
)
from experiments.benchmarks.serving.engine import Task
from experiments.benchmarks.serving.jax_engines import why_not
from experiments.benchmarks.serving.preparation import prepare
from experiments.benchmarks.serving.worker import Server
from experiments.benchmarks.timing import Times, quartiles, take_turns
from experiments.common.progress import progress


class Measurement(NamedTuple):
  """How fast engines serve a network. Condensed engines are named with their sparsity, `name@0.9`.

  Attributes:
    network: its name.
    seconds: by batch, then by engine: of every round.
    errors: by engine: of the outputs of one example, over the largest.
    callers: by engine, then by number of callers at once: `p50`, `p99`, `rate` of each round.
    skipped: by engine, why it was left out.
    repeated: timings that were made again because the machine was disturbed, see `quiet`.
    disturbed: timings that count although it was.
  """

  network: str
  seconds: dict[int, Times]
  errors: dict[str, float]
  callers: dict[str, dict[int, dict[str, list[float]]]]
  skipped: dict[str, str]
  repeated: int = 0
  disturbed: int = 0

  def median(self, batch: int, engine: str) -> float | None:
    """Median seconds of a call; None if it was not timed."""
    times = self.seconds.get(batch, {}).get(engine)
    return quartiles(times)[1] if times else None


def key(engine: str, sparsity: float = TWIN_SPARSITY) -> str:
  """An engine's name in a measurement."""
  return f"{engine}@{sparsity:g}" if engine in OURS else engine


def split(name: str) -> tuple[str, float]:
  """The engine and the sparsity of a name in a measurement."""
  engine, _, sparsity = name.partition("@")
  return engine, float(sparsity or TWIN_SPARSITY)


def why_missing(engine: str) -> str:
  """Why an engine cannot be used, empty if it can."""
  missing = [name for name in ENGINES[engine].needs if importlib.util.find_spec(name) is None]
  if missing:
    return f"{missing[0]} is not installed"
  return why_not(ENGINES[engine].precision) if engine in OURS else ""


def measure(
  name: str,
  engines: Sequence[str],
  cores: list[int],
  *,
  folder: Path,
  batches: Sequence[int],
  sparsities: Sequence[float],
  rounds: int,
  caller_rounds: int = 0,
  spend: float = 1.0,
) -> Measurement:
  """Measures one network.

  Args:
    name: a key of `NETWORKS`.
    engines: keys of `ENGINES`; those that cannot be used are skipped.
    cores: that there are.
    folder: for files that are made once, see `preparation`.
    batches: of each call.
    sparsities: of the condensed network in float32; in fewer bits it has that of the dense twin.
    rounds: of each call.
    caller_rounds: rounds of several callers at once, at batch 1; none if 0.
    spend: seconds of each of these.
  """
  reasons = {engine: why_missing(engine) for engine in engines}
  skipped = {engine: reason for engine, reason in reasons.items() if reason}
  usable = [engine for engine in engines if engine not in skipped]
  folder = folder / "".join(c if c.isalnum() else "_" for c in name)
  with progress(f"{name}: files", step=0, total_steps=1) as show:
    show(0)
    prepare(name, folder, sparsities, usable)
    show(1)
  tasks = dict(_tasks(name, usable, sparsities, folder, len(cores)))
  errors: dict[str, float] = {}
  seconds: dict[int, Times] = {}
  with ExitStack() as stack:
    servers = {k: stack.enter_context(closing(Server(task, cores))) for k, task in tasks.items()}
    with progress(f"{name}: engines", step=0, total_steps=len(servers)) as show:
      for i, (engine, server) in enumerate(list(servers.items())):
        show(i, starting=engine)
        try:
          errors[engine] = server.answer()["error"]
        except ChildProcessError as error:
          skipped[engine] = str(error)
          del servers[engine]
    clock = QuietClock()
    for batch in batches:
      timers = {k: functools.partial(server.seconds, batch) for k, server in servers.items()}
      with progress(f"{name}, batch {batch}", step=0, total_steps=rounds) as show:
        show(0)
        for timer in timers.values():  # compiles, and warms up
          timer()
        seconds[batch] = take_turns(clock.timers(timers), rounds=rounds, after_round=show)
    callers = _measure_callers(name, servers, caller_rounds, spend, clock)
  return Measurement(name, seconds, errors, callers, skipped, clock.repeated, clock.disturbed)


def _tasks(
  name: str, engines: Sequence[str], sparsities: Sequence[float], folder: Path, threads: int
) -> Iterator[tuple[str, Task]]:
  for engine in engines:
    every = sparsities if engine == "condensed" else (TWIN_SPARSITY,)
    for sparsity in every:
      yield key(engine, sparsity), Task(name, engine, sparsity, folder, threads)


def _measure_callers(
  name: str, servers: dict[str, Server], rounds: int, spend: float, clock: QuietClock
) -> dict[str, dict[int, dict[str, list[float]]]]:
  found: dict[str, dict[int, dict[str, list[float]]]] = {}
  counts = [n for n in CALLERS if rounds]
  chosen = {k: server for k, server in servers.items() if split(k)[1] == TWIN_SPARSITY}
  with progress(f"{name}, callers", step=0, total_steps=max(1, rounds)) as show:
    for i in range(rounds):
      for engine, server in chosen.items():
        for count in counts:  # in a row, as they are compared with each other
          asked = {"batch": 1, "callers": count, "spend": spend}
          answer = clock.time(functools.partial(server.ask, asked))
          row = found.setdefault(engine, {}).setdefault(count, {k: [] for k in answer})
          for what, value in answer.items():
            row[what].append(value)
      show(i + 1)
  return found


def as_json(one: Measurement) -> dict[str, Any]:
  """For the results file, every round."""
  return one._asdict()


def from_json(found: dict[str, Any]) -> Measurement:
  """What `as_json` made, read from a file."""
  by_int = lambda entry: {int(k): x for k, x in entry.items()}
  callers = {engine: by_int(each) for engine, each in found["callers"].items()}
  return Measurement(**found | {"seconds": by_int(found["seconds"]), "callers": callers})
