"""Doing the next items' work while the present one is used, in a bounded background thread."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1
_STOP_SECONDS = 60.0


class _End(NamedTuple):
  """The last thing that the thread hands over: what went wrong, if anything did."""

  error: BaseException | None


def _as_it_is(item: Any) -> Any:
  return item


class Prefetch(Generic[T]):
  """An iterator that is ahead of its user by some items.

  To be used in a `with` statement, or closed: the thread and what it iterates over (a generator,
  say, with processes behind it) are then stopped. Errors of the thread are raised where the item
  would have come.

  Attributes:
    waited_seconds: how long the user has waited for items, all together.
  """

  def __init__(
    self, items: Iterator[Any], transfer_fn: Callable[[Any], T] = _as_it_is, *, size: int = 2
  ):
    """Starts the thread.

    Args:
      items: is iterated over, and closed if it can be, in the thread.
      transfer_fn: what to do with an item in the thread.
      size: finished items that may wait, at least 1; one more is being worked on.

    Raises:
      ValueError: if `size` is less than 1.
    """
    if size < 1:
      raise ValueError(f"size is {size}; it must be 1 or more.")
    self.waited_seconds = 0.0
    self._items, self._transfer_fn = items, transfer_fn
    self._ready: queue.Queue[T | _End] = queue.Queue(size)
    self._stop = threading.Event()
    self._end: _End | None = None
    self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
    self._thread.start()

  def __iter__(self) -> "Prefetch[T]":
    return self

  def __next__(self) -> T:
    if self._end is None:
      start = time.perf_counter()
      item = self._ready.get()
      self.waited_seconds += time.perf_counter() - start
      if not isinstance(item, _End):
        return item
      self._end = item
    if self._end.error is not None:
      raise self._end.error
    raise StopIteration

  def __enter__(self) -> "Prefetch[T]":
    return self

  def __exit__(self, *error: Any) -> None:
    self.close()

  def close(self) -> None:
    """Stops the thread and closes what it iterates over; there are no more items then."""
    self._stop.set()
    # A thread that hangs in a read that never ends is left behind; it ends with the process.
    self._thread.join(_STOP_SECONDS)
    self._end = self._end or _End(None)

  def _work(self) -> None:
    """Hands over all items, and at last how it ended."""
    error: BaseException | None = None
    try:
      try:
        for item in self._items:
          if not self._hand_over(self._transfer_fn(item)):
            break
      finally:
        if hasattr(self._items, "close"):
          self._items.close()
    except BaseException as raised:
      error = raised
    self._hand_over(_End(error))

  def _hand_over(self, item: T | _End) -> bool:
    """Waits until there is room; False if nobody wants the item any more."""
    while not self._stop.is_set():
      try:
        self._ready.put(item, timeout=_POLL_SECONDS)
      except queue.Full:
        continue
      return True
    return False
