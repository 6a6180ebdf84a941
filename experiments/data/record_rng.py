"""Random numbers of one image in one epoch, whoever draws them and in whatever order."""

from collections.abc import Callable

import numpy as np

Draw = Callable[[], float]
"""Gives the next random number, uniform in `[0, 1)`."""


def record_rng(seed: int, epoch: int, record: int) -> Draw:
  """Starts the random numbers of a record in an epoch.

  They come from the raw output of Philox, a stream that numpy promises to keep; the counter's
  upper half separates records from each other and from the order of the epoch
  (`batch_order.epoch_order`), which uses the same key.

  Args:
    seed: of the run, `0 <= seed < 2**64`.
    epoch: counted from 0.
    record: index of the image in its split.
  """
  key = np.array([seed, epoch], np.uint64)
  philox = np.random.Philox(key=key, counter=np.array([0, 0, 0, record + 1], np.uint64))
  return lambda: (int(philox.random_raw()) >> 11) * 2.0**-53


def below(draw: Draw, stop: int) -> int:
  """Draws an integer from `0` to `stop - 1`."""
  return int(draw() * stop)


def between(draw: Draw, low: float, high: float) -> float:
  """Draws a number from `[low, high)`."""
  return low + (high - low) * draw()
