"""What every engine gives."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Call = Callable[[], Any]
Arrays = tuple[np.ndarray, ...]


class Task(NamedTuple):
  """What an engine is made for.

  Attributes:
    network: a key of `cases.NETWORKS`.
    engine: a key of `cases.ENGINES`.
    sparsity: of the network.
    folder: of what was prepared, see `preparation`.
    threads: to use.
  """

  network: str
  engine: str
  sparsity: float
  folder: Path
  threads: int


class Engine(NamedTuple):
  """A network ready to be called.

  Attributes:
    prepare: from inputs to a call that computes their outputs and returns them when they are there,
      as NumPy arrays or something that `np.asarray` takes. Callers in several threads prepare each
      their own.
    num_bytes: of the weights, as far as the engine knows; else 0.
  """

  prepare: Callable[[Arrays], Call]
  num_bytes: int = 0
