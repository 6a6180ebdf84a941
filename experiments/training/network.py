"""What an engine makes of a config: the network, what trains it, and its first state."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx

import srigl_jax as sx
from experiments import models
from experiments.training.engines import Engine, TrainState


class Model(NamedTuple):
  """The network of a run.

  Attributes:
    kwargs: its arguments; those of the config, unless the method has narrowed it.
    apply: see `models.functional`.
    module: `(params, model_state) -> module`, as it is trained.
    macs: multiply-accumulates for one example of each dense layer.
    share_of_weights: its weights relative to those of the config's; less than 1 if narrowed.
    share_of_macs: the same of multiply-accumulates.
  """

  kwargs: dict[str, Any]
  apply: models.Apply
  module: Callable[[Any, Any], nnx.Module]
  macs: dict[str, int]
  share_of_weights: float = 1.0
  share_of_macs: float = 1.0


class Network(NamedTuple):
  """A network at the start of a run.

  Attributes:
    model: the network.
    engine: what trains it.
    state: at step 0.
    leaves: what sparse training does to each parameter; None if it does nothing.
  """

  model: Model
  engine: Engine
  state: TrainState
  leaves: sx.Plan | None = None
