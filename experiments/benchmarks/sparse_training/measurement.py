"""Trains a case with every engine at the same time, in turns."""

import functools
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.sparse_training.cases import Case
from experiments.benchmarks.sparse_training.engine import STEP
from experiments.benchmarks.sparse_training.worker import ENGINES, Worker, why_missing
from experiments.benchmarks.timing import Times, quartiles, take_turns
from experiments.common.progress import progress

_TOLERANCE = 1e-3  # relative, of losses


class Measurement(NamedTuple):
  """What engines need for a case.

  Attributes:
    case: what is trained.
    seconds: by engine, then by call: of every round.
    state_bytes: by engine; parameters, pattern or masks, moments and gradients.
    peak_bytes: by engine; the most memory of its process in a few steps and a topology update.
    skipped: by engine, why it was left out.
  """

  case: Case
  seconds: dict[str, Times]
  state_bytes: dict[str, int]
  peak_bytes: dict[str, int]
  skipped: dict[str, str]

  def median(self, engine: str, call: str = STEP) -> float | None:
    """Median seconds of a call; None if it was not timed."""
    times = self.seconds.get(engine, {}).get(call)
    return quartiles(times)[1] if times else None


def measure(
  case: Case,
  engines: Sequence[str],
  cores: list[int],
  *,
  rounds: int,
  only: Sequence[str] = (),
) -> Measurement:
  """Measures one case.

  Args:
    case: what to train.
    engines: keys of `ENGINES`; those that cannot be used are skipped.
    cores: that there are.
    rounds: of each call.
    only: the calls to time; all that an engine has by default.

  Raises:
    RuntimeError: if condensed training does something else than training with masks.
  """
  skipped = {name: why_missing(name) for name in engines if case.kind in ENGINES[name].kinds}
  usable = [name for name, reason in skipped.items() if not reason]
  skipped = {name: reason for name, reason in skipped.items() if reason}
  skipped |= (too_large := _too_large(case, usable))
  about: dict[str, dict[str, Any]] = {}
  with ExitStack() as stack:
    workers = {
      name: stack.enter_context(closing(Worker(name, case, cores)))
      for name in usable
      if name not in too_large
    }
    for name, worker in workers.items():
      try:
        about[name] = worker.answer()
      except ChildProcessError as error:
        skipped[name] = str(error)
    check_losses(case, {name: each["losses"] for name, each in about.items()})
    calls = {
      (name, call): functools.partial(workers[name].seconds, call)
      for name in about
      for call in about[name]["calls"]
      if not only or call in only
    }
    with progress(case.name, step=0, total_steps=rounds) as show:
      show(0)
      timers = {f"{name}/{call}": timer for (name, call), timer in calls.items()}
      for timer in timers.values():  # compiles, and warms up
        timer()
      times = take_turns(timers, rounds=rounds, after_round=show)
  seconds: dict[str, Times] = {}
  for name, call in calls:
    seconds.setdefault(name, {})[call] = times[f"{name}/{call}"]
  of_all = lambda what: {name: each[what] for name, each in about.items()}
  return Measurement(case, seconds, of_all("state_bytes"), of_all("peak_bytes"), skipped)


def check_losses(case: Case, losses: dict[str, list[float]]) -> None:
  """Compares the losses of the two engines that should do the same.

  Raises:
    RuntimeError: if they do not.
  """
  if {"masked", "condensed"} <= set(losses):
    for step, (a, b) in enumerate(zip(losses["masked"], losses["condensed"], strict=True)):
      if not abs(a - b) <= _TOLERANCE * abs(a):
        raise RuntimeError(
          f"{case.name}: at step {step} the loss is {a:g} with masks, but {b:g} condensed."
        )


def _too_large(case: Case, engines: Sequence[str]) -> dict[str, str]:
  """The engines for which there is not enough memory beside the smaller ones."""
  if case.kind not in ("mlp", "head"):
    return {}
  left, found = 0.8 * _available_bytes(), {}
  connections = sum(n * case.fan_in(i) for i, n in case.layers.values())
  needs = {
    name: 4 * ENGINES[name].copies * (connections if ENGINES[name].is_sparse else case.num_weights)
    for name in engines
  }
  for name in sorted(engines, key=needs.__getitem__):
    if needs[name] > left:
      found[name] = f"it would take some {needs[name] / 1e9:.3g} GB of memory"
    else:
      left -= needs[name]
  return found


def _available_bytes() -> float:
  path = Path("/proc/meminfo")
  if not path.exists():
    return float("inf")
  lines = dict(line.split(":", 1) for line in path.read_text(encoding="utf-8").splitlines())
  return 1024 * float(lines["MemAvailable"].split()[0])
