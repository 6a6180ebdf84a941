"""What a domain brings to the training loop."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax import Array

from experiments.data import InputPipeline
from experiments.workdir.scores import Score

Sums = dict[str, Array]
"""Metrics by name, summed over examples: to be divided by their number."""


def _as_numbers(means: dict[str, np.ndarray]) -> dict[str, float]:
  return {name: float(mean) for name, mean in means.items()}


class Task(NamedTuple):
  """Data, networks, a loss and metrics that go together; functions, and all that the loop asks.

  `data` below is what `load` returns: it has `num_train` and `num_test`, and is the task's own
  besides. `outputs` are what a network makes of inputs, `targets` what the pipeline gives beside
  the inputs. `B` is the number of examples, of one device.

  Attributes:
    load: `(name, data_dir=None, **kwargs) -> data`, of `config.data`.
    shapes: `data -> {argument: value}`, plain numbers or tuples of them: what every network of the
      task is told of its inputs and outputs.
    build: `(name, rngs=..., dtype=..., **shapes, **kwargs) -> module`, of `config.model`. It is
      called as `module(inputs, train=..., rngs=...)`.
    inputs: `(shapes, B) -> inputs` of so many examples, as a pytree of `jax.ShapeDtypeStruct`.
    pipeline: `(data, batch_size=..., eval_batch_size=..., seed=...) -> InputPipeline`.
    loss: `(outputs, targets) -> (loss, sums)` of a batch in training: the mean of the examples'
      losses `[]` float32, and `[]` float32 sums of `train_metrics`.
    train_metrics: names of these sums.
    test_sums: `(outputs, targets, valid) -> sums` of a test batch, `loss` among them; examples
      that are not `valid` `[B]` count nothing. A sum may be an array.
    score: which metric of tests decides what is better.
    unit: what an example is, in the plural.
    finish: from the means over all test examples to what is recorded: plain numbers by name.
    stages: `data -> number`, parts of equal length that training has one after the other, such as
      the tasks of continual learning: 1 for most. Where there are more, `pipeline` is also given
      `total_steps`, methods that have an argument `stages` are told, and tests fall on their ends.
  """

  load: Callable[..., Any]
  shapes: Callable[[Any], dict[str, Any]]
  build: Callable[..., nnx.Module]
  inputs: Callable[[Mapping[str, Any], int], Any]
  pipeline: Callable[..., InputPipeline]
  loss: Callable[[Any, Any], tuple[Array, Sums]]
  train_metrics: tuple[str, ...]
  test_sums: Callable[[Any, Any, Array], Sums]
  score: Score
  unit: str = "examples"
  finish: Callable[[dict[str, np.ndarray]], dict[str, float]] = _as_numbers
  stages: Callable[[Any], int] = lambda data: 1


def count_of(batch: Any) -> int:
  """How many examples the arrays of a batch have."""
  return int(jax.tree.leaves(batch)[0].shape[0])
