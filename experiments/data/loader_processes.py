"""Worker processes that get items of a sequence, by grain, and end when they should."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any

from absl import flags

_ITEMS_AHEAD = 2  # finished items that wait in each process


@contextlib.contextmanager
def in_workers(items: Any, num_workers: int) -> Iterator[Iterator[Any]]:
  """Lets processes get items, which come in order; at the end of the context they are stopped.

  Args:
    items: has a length and gives items by index; every process gets a pickled copy. Large arrays
      in an item come back through shared memory.
    num_workers: the number of processes, at least 1.

  Returns:
    An iterator of all items. What is raised while getting one comes out of it; RuntimeError if a
    process dies.
  """
  # Imported here: in-memory data sets do without it.
  import grain

  if not flags.FLAGS.is_parsed():  # grain reads its flags, which only commands parse
    flags.FLAGS.mark_as_parsed()
  dataset = (
    grain.MapDataset.source(items)
    .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    .mp_prefetch(
      grain.MultiprocessingOptions(min(num_workers, len(items)), _ITEMS_AHEAD),
      worker_init_fn=_end_with_parent,
    )
  )
  with _signals_kept_from_children():
    iterator = iter(dataset)
    try:
      loaded = _explained(iterator)
      first = next(loaded)  # its threads, which start the processes, are there by now
    except BaseException:
      iterator.close()
      raise
  try:
    yield itertools.chain([first], loaded)
  finally:
    iterator.close()


def _explained(iterator: Iterator[Any]) -> Iterator[Any]:
  """The same, but saying what to do if a process dies of something that is no exception."""
  try:
    yield from iterator
  except RuntimeError as error:
    if "terminated unexpectedly" not in str(error):
      raise
    raise RuntimeError(
      f"A process that loads images has died: {error} Mostly memory has run out, main memory or "
      "the shared memory of /dev/shm (docker run --shm-size=8g gives more): give it more, or lower "
      "config.data.kwargs.num_workers."
    ) from error


@contextlib.contextmanager
def _signals_kept_from_children() -> Iterator[None]:
  """Processes started meanwhile do not hear SIGINT and SIGTERM.

  Terminals and schedulers send these to all processes at once. The training loop still wants a
  batch or two before it stops, and it stops the workers itself.
  """
  resource_tracker.ensure_running()  # it would unblock them if it had to be started later
  ours = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
  try:
    yield
  finally:
    signal.pthread_sigmask(signal.SIG_SETMASK, ours)


def _end_with_parent(worker: int, num_workers: int) -> None:
  """Ends this worker process if the one that started it is killed, instead of waiting for ever."""
  del worker, num_workers

  def watch(parent):
    parent.join()
    os._exit(1)

  if parent := multiprocessing.parent_process():
    threading.Thread(target=functools.partial(watch, parent), daemon=True).start()
