"""Runs trained one after another, here or in worker processes with a share of the machine each.

A worker takes one run after the other and tells how far it is. If it dies, its run counts as
killed and another worker takes its place.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
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
from experiments.training.loop import train

Outcome = dict[str, Any] | Failure


class Watcher(Protocol):
  """Is told what the workers do."""

  def started(self, worker: int, config: ConfigDict) -> None:
    """A worker begins with a run."""

  def at(self, worker: int, step: int, total_steps: int, values: Mapping[str, Any]) -> None:
    """A worker has come to a step."""

  def warned(self, text: str) -> None:
    """A worker has a warning."""

  def ended(self, worker: int, workdir: Path, outcome: Outcome) -> None:
    """A worker is done with a run: results or a failure."""


def train_here(runs: Mapping[Path, ConfigDict], watcher: Watcher) -> None:
  """Trains one run after the other in this process.

  Raises:
    Interrupted: if a run was asked to stop.
  """
  for workdir, config in runs.items():
    watcher.started(0, config)
    show = lambda step, total, values: watcher.at(0, step, total, values)
    watcher.ended(0, workdir, _outcome(workdir, config, show))


def _outcome(
  workdir: Path, config: ConfigDict, show: Callable[[int, int, dict[str, Any]], None]
) -> Outcome:
  """Trains a run; returns its results, or what went wrong.

  Raises:
    Interrupted: if it was asked to stop.
  """

  @contextlib.contextmanager
  def show_progress(name: str, *, step: int, total_steps: int) -> Iterator[Show]:
    del name
    show(step, total_steps, {})
    yield lambda step, **values: show(step, total_steps, values)

  try:
    return train(config, workdir, show_progress=show_progress)
  except Interrupted:
    raise
  except Exception as error:
    return failure_of(error)
  finally:  # jax keeps compiled programs, and they their constants
    gc.collect()
    jax.clear_caches()


def train_in_processes(
  runs: Mapping[Path, ConfigDict], watcher: Watcher, *, jobs: int, cache_dir: Path
) -> None:
  """Trains runs in `jobs` processes, on CPU each with its share of the cores.

  Args:
    runs: configs by work directory, in order.
    watcher: is called in this process.
    jobs: how many at a time.
    cache_dir: of compiled programs, a folder in it for each process (jax does not write the
      entries of one atomically).

  Raises:
    Interrupted: after SIGINT or SIGTERM, once all workers have saved; `args[1]` is -1.
  """
  waiting = deque(runs.items())
  shares = shares_of_cores(jobs)
  workers: dict[int, _Worker] = {}
  received = 0
  with watch_signals() as interrupted:
    try:
      while workers or (waiting and not received):
        for index in range(jobs):
          if waiting and index not in workers and not received:
            workers[index] = _start(index, jobs, shares[index], cache_dir / str(index))
            _give(workers[index], *waiting.popleft(), watcher)
        wait([worker.connection for worker in workers.values()], timeout=0.2)
        if interrupted() and not received:
          received = interrupted()
          for worker in workers.values():
            worker.process.terminate()
        for index, worker in list(workers.items()):
          if not _listen(worker, watcher, stopping=bool(received)):
            worker.process.join()
            del workers[index]
          elif worker.workdir is None and waiting and not received:
            _give(worker, *waiting.popleft(), watcher)
          elif worker.workdir is None:
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
  """A process, and the directory of the run that it has."""

  def __init__(self, index: int, process: Any, connection: Connection):
    self.index, self.process, self.connection = index, process, connection
    self.workdir: Path | None = None


def _start(index: int, jobs: int, cores: list[int], cache_dir: Path) -> _Worker:
  context = multiprocessing.get_context("spawn")
  ours, theirs = context.Pipe()
  arguments = (theirs, jobs, cores, cache_dir)
  process = context.Process(target=_work, args=arguments, name=f"worker {index}", daemon=True)
  process.start()
  theirs.close()  # so that its end is noticed
  return _Worker(index, process, ours)


def _give(worker: _Worker, workdir: Path, config: ConfigDict, watcher: Watcher) -> None:
  worker.workdir = workdir
  with contextlib.suppress(OSError):  # it has died: _listen will see
    worker.connection.send((workdir, config.to_dict()))
  watcher.started(worker.index, config)


def _listen(worker: _Worker, watcher: Watcher, *, stopping: bool) -> bool:
  """Reads what a worker has sent; False if it has ended."""
  try:
    while worker.connection.poll():
      message = worker.connection.recv()
      if isinstance(message, _At):
        watcher.at(worker.index, *message)
      elif isinstance(message, str):
        watcher.warned(message)
      elif worker.workdir:
        workdir, worker.workdir = worker.workdir, None
        watcher.ended(worker.index, workdir, message)
  except (EOFError, OSError):
    worker.process.join()
    if worker.workdir and not stopping:
      error = Failure(
        f"The worker process ended with exit code {worker.process.exitcode}: killed from outside, "
        "or out of memory (fewer --jobs need less).",
        killed=True,
      )
      watcher.ended(worker.index, worker.workdir, error)
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
      workdir, values = connection.recv()
      with warnings.catch_warnings(record=True) as caught:  # they would tear the parent's display
        outcome = _outcome(workdir, ConfigDict(values).lock(), show)
      for warning in caught:
        if issubclass(warning.category, UserWarning):
          connection.send(str(warning.message))
      connection.send(outcome)
  connection.close()


def choose_jobs(jobs: int, num_runs: int) -> int:
  """How many processes: as asked, or what suits the device; never more than runs.

  On CPU as many as there are cores: one thread each, none of which waits for another. An
  accelerator is one process's.
  """
  if jobs < 0:
    raise ValueError(f"--jobs is {jobs}; it must be 0 (what suits the device) or more.")
  if not jobs:
    jobs = len(shares_of_cores(1)[0]) or os.cpu_count() or 1
    jobs = jobs if jax.default_backend() == "cpu" else 1
  return max(1, min(jobs, num_runs))
