"""The metrics of a network on a task's test examples, on one device."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.data import InputPipeline
from experiments.tasks import Task


def evaluate(model: nnx.Module, task: Task, pipeline: InputPipeline) -> dict[str, float]:
  """What a test of the network records: `loss`, the task's score and others, by name.

  Args:
    model: the network, as trained or condensed.
    task: for its metrics.
    pipeline: of the data set.
  """
  graphdef, state = nnx.split(model)

  @jax.jit
  def sums_of(state: Any, device_data: Any, batch: Any) -> Any:
    inputs, targets, valid = pipeline.test_inputs(device_data, batch)
    module: Any = nnx.merge(graphdef, state)
    outputs = pipeline.test_outputs(module, inputs)
    return task.test_sums(outputs, targets, valid), valid.sum(dtype=jnp.float32)

  device_data = jax.device_put(pipeline.device_data)
  found = [jax.device_get(sums_of(state, device_data, batch)) for batch in pipeline.test_batches()]
  count = sum(count for _, count in found)
  means = {
    name: np.asarray(sum(sums[name] for sums, _ in found), np.float64) / count
    for name in found[0][0]
  }
  return task.finish(means)


def some_inputs(pipeline: InputPipeline) -> Any:
  """The inputs of a test batch."""
  batches = pipeline.test_batches()
  batch = next(iter(batches))
  pipeline.close()
  arrays = {name: jnp.asarray(array) for name, array in batch.items()}
  return pipeline.test_inputs(jax.device_put(pipeline.device_data), arrays)[0]
