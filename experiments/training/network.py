"""What an engine makes of a config: the network, what trains it, and its first state."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.processes.sharding import AXIS
from experiments.tasks import Task
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


def network_builder(
  config: ConfigDict,
  task: Task,
  shapes: dict[str, Any],
  kwargs: dict[str, Any],
  *,
  shared_statistics: bool = True,
) -> Callable[[nnx.Rngs], nnx.Module]:
  """A function that builds the dense network of a config from its source of parameters.

  Args:
    config: see `configs/base.py`.
    task: what the domain brings.
    shapes: what networks are told of the data.
    kwargs: arguments of the network, in place of the config's.
    shared_statistics: whether devices share batch statistics, if the config says so; a network
      that does so runs under `jax.pmap` only.
  """

  def build_fn(rngs: nnx.Rngs) -> nnx.Module:
    model = task.build(config.model.name, rngs=rngs, dtype=config.model.dtype, **shapes, **kwargs)
    if shared_statistics and config.train.sync_batch_norm:
      models.layers.share_batch_statistics(model, AXIS)
    return model

  return build_fn
