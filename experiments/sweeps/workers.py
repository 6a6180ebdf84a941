"""Several packs of runs at a time, each worker process with its share of the machine.

A worker takes one pack after the other and tells how far it is. If it dies, its runs count as
killed and another takes its place.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
from absl import logging
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.progress import Show
from experiments.processes.signals import Interrupted, stop_with_parent, watch_signals
from experiments.sweeps.failures import Failure, failure_of
from experiments.train import train_pack

Pack = Mapping[Path, ConfigDict]


class Watcher(Protocol):
  """Is told what the workers do."""

  def started(self, worker: int, pack: Pack) -> None:
    """A worker begins with a pack."""

  def at(self, worker: int, step: int, total_steps: int, values: Mapping[str, Any]) -> None:
    """A worker has come to a step."""

  def warned(self, text: str) -> None:
    """A worker has a warning."""

  def ended(self, worker: int, outcomes: Mapping[Path, dict[str, Any] | Failure]) -> None:
    """A worker is done with a pack: results or failures."""


def train_here(packs: Sequence[Pack], watcher: Watcher) -> None:
  """Trains one pack after the other in this process.

  Raises:
    Interrupted: if a pack was asked to stop.
  """
  for pack in packs:
    watcher.started(0, pack)
    show = lambda step, total, values: watcher.at(0, step, total, values)
    outcomes = train_pack(pack, show_progress=_reports(show))
    watcher.ended(0, {workdir: failure_of(outcome) for workdir, outcome in outcomes.items()})
    _forget()


def _forget() -> None:
  """Gives the memory of a pack back: jax keeps compiled programs, and they their constants."""
  gc.collect()
  jax.clear_caches()


def train_in_processes(
  packs: Sequence[Pack], watcher: Watcher, *, jobs: int, cache_dir: Path
) -> None:
  """Trains packs in `jobs` processes, on CPU each with its share of the cores.

  Args:
    packs: in order.
    watcher: is called in this process.
    jobs: how many at a time.
    cache_dir: of compiled programs, a folder in it for each process (jax does not write the
      entries of one atomically).

  Raises:
    Interrupted: after SIGINT or SIGTERM, once all workers have saved; `args[1]` is -1.
  """
  waiting = deque(packs)
  shares = shares_of_cores(jobs)
  workers: dict[int, _Worker] = {}
  received = 0
  with watch_signals() as interrupted:
    try:
      while workers or (waiting and not received):
        for index in range(jobs):
          if waiting and index not in workers and not received:
            workers[index] = _start(index, jobs, shares[index], cache_dir / str(index))
            _give(workers[index], waiting.popleft(), watcher)
        wait([worker.connection for worker in workers.values()], timeout=0.2)
        if interrupted() and not received:
          received = interrupted()
          for worker in workers.values():
            worker.process.terminate()
        for index, worker in list(workers.items()):
          if not _listen(worker, watcher, stopping=bool(received)):
            worker.process.join()
            del workers[index]
          elif worker.pack is None and waiting and not received:
            _give(worker, waiting.popleft(), watcher)
          elif worker.pack is None:
            worker.connection.close()  # it ends when there is nothing to read
            worker.process.join()
            del workers[index]
    finally:
      for worker in workers.values():
        worker.process.kill()
        worker.process.join()
  if received:
    raise Interrupted(received, -1)


def shares_of_cores(jobs: int) -> list[list[int]]:
  """The cores of each of `jobs` processes; none are named where the system has no affinity."""
  if not hasattr(os, "sched_getaffinity"):
    return [[] for _ in range(jobs)]
  cores = sorted(os.sched_getaffinity(0))
  if jobs >= len(cores):
    return [[cores[i % len(cores)]] for i in range(jobs)]
  bounds = [i * len(cores) // jobs for i in range(jobs + 1)]
  return [cores[a:b] for a, b in itertools.pairwise(bounds)]


class _Worker:
  """A process, and the pack that it has."""

  def __init__(self, index: int, process: Any, connection: Connection):
    self.index, self.process, self.connection = index, process, connection
    self.pack: Pack | None = None


def _start(index: int, jobs: int, cores: list[int], cache_dir: Path) -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  arguments = (theirs, jobs, cores, cache_dir)
  process = context.Process(target=_work, args=arguments, name=f"worker {index}", daemon=True)
  process.start()
  theirs.close()  # so that its end is noticed
  return _Worker(index, process, ours)


def _give(worker: _Worker, pack: Pack, watcher: Watcher) -> None:
  worker.pack = pack
  with contextlib.suppress(OSError):  # it has died: _listen will see
    worker.connection.send({workdir: config.to_dict() for workdir, config in pack.items()})
  watcher.started(worker.index, pack)


def _listen(worker: _Worker, watcher: Watcher, *, stopping: bool) -> bool:
  """Reads what a worker has sent; False if it has ended."""
  try:
    while worker.connection.poll():
      message = worker.connection.recv()
      if isinstance(message, _At):
        watcher.at(worker.index, *message)
      elif isinstance(message, str):
        watcher.warned(message)
      else:
        worker.pack = None
        watcher.ended(worker.index, message)
  except (EOFError, OSError):
    worker.process.join()
    if worker.pack and not stopping:
      error = Failure(
        f"The worker process ended with exit code {worker.process.exitcode}: killed from outside, "
        "or out of memory (fewer --jobs need less).",
        killed=True,
      )
      watcher.ended(worker.index, dict.fromkeys(worker.pack, error))
    return False
  return True


# ---- in the worker's process -------------------------------------------------------------------


class _At(NamedTuple):
  step: int
  total_steps: int
  values: dict[str, Any]


def _work(connection: Connection, jobs: int, cores: list[int], cache_dir: Path) -> None:
  """Trains what comes through the connection, until it is closed or a signal comes."""
  if hasattr(os, "setpgrp"):
    os.setpgrp()  # Ctrl-C is the parent's, who passes it on
  stop_with_parent()
  if cores:
    os.sched_setaffinity(0, cores)  # before jax starts its threads
  os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / jobs:.3f}")  # on GPU
  logging.set_verbosity(logging.ERROR)
  cli.use_compile_cache(cache_dir)

  def show(step: int, total_steps: int, values: dict[str, Any]) -> None:
    try:
      connection.send(_At(step, total_steps, values))
    except OSError:  # the parent is gone
      os.kill(os.getpid(), signal.SIGTERM)

  with watch_signals() as interrupted, contextlib.suppress(EOFError, OSError, Interrupted):
    while not interrupted():
      if not connection.poll(0.2):
        continue
      pack = {workdir: ConfigDict(values).lock() for workdir, values in connection.recv().items()}
      with warnings.catch_warnings(record=True) as caught:  # they would tear the parent's display
        outcomes = train_pack(pack, show_progress=_reports(show))
      for warning in caught:
        if issubclass(warning.category, UserWarning):
          connection.send(str(warning.message))
      connection.send({workdir: failure_of(outcome) for workdir, outcome in outcomes.items()})
      del outcomes
      _forget()
  connection.close()


def _reports(show: Callable[[int, int, dict[str, Any]], None]) -> Callable[..., Any]:
  """What `train_pack` shows its progress with."""

  @contextlib.contextmanager
  def progress(name: str, *, step: int, total_steps: int) -> Iterator[Show]:
    del name
    show(step, total_steps, {})
    yield lambda step, **values: show(step, total_steps, values)

  return progress


def choose_jobs(jobs: int, num_packs: int) -> int:
  """How many processes: as asked, or what suits the device; never more than packs.

  On CPU as many as there are cores: one thread each, none of which waits for another
  (`experiments.benchmark_packing` measures it). An accelerator is one process's.
  """
  if jobs < 0:
    raise ValueError(f"--jobs is {jobs}; it must be 0 (what suits the device) or more.")
  if not jobs:
    jobs = len(shares_of_cores(1)[0]) or os.cpu_count() or 1
    jobs = jobs if jax.default_backend() == "cpu" else 1
  return max(1, min(jobs, num_packs))
