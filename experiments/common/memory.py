"""Memory that a process holds and does not need."""

import ctypes
import functools
import gc
import sys
from collections.abc import Callable

import jax

_WORTH_IT = 1 << 26  # bytes of arrays; collecting all garbage takes 0.3 s


def give_back_memory() -> None:
  """Gives memory that is not needed back to the system, where the C library can (glibc's).

  A compiler leaves hundreds of megabytes, freed, but in pieces that large arrays do not fit into.
  And Flax leaves arrays in reference cycles: what a network was made of would stay for a while.
  Where all arrays are small, nothing is done.
  """
  if sum(x.nbytes for x in jax.live_arrays()) > _WORTH_IT:
    gc.collect()
    _trim()(0)


@functools.cache
def _trim() -> Callable[[int], int]:
  if sys.platform != "linux":
    return lambda pad: 0
  return getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)
