"""What every engine gives: calls that train a case, or do a part of a training step."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

STEP, UPDATE_STEP = "step", "update step"
FORWARD, DX, DVALUES, BACKWARD, OPTIMIZER = "forward", "dx", "dvalues", "backward", "optimizer"
PARTS = (FORWARD, DX, DVALUES, BACKWARD, OPTIMIZER)

LEARNING_RATE = 1e-3  # of Adam, everywhere


class Engine(NamedTuple):
  """A case in training.

  Attributes:
    calls: by name, `STEP` and what else the engine can time by itself. A call returns when its
      result is there; a step returns the loss before it.
    state_bytes: of parameters, pattern or masks, moments and gradients.
    before_update: makes the next step one that updates the topology; None if there is none.
    prepare: by name of a call, what to do before each call without timing it.
  """

  calls: Mapping[str, Callable[[], Any]]
  state_bytes: int
  before_update: Callable[[], None] | None = None
  prepare: Mapping[str, Callable[[], None]] = {}
