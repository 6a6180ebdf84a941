"""The devices of a run, those of all its processes together, and how arrays come to lie on them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

Batch = dict[str, np.ndarray]
"""Examples of a step: arrays `[B, ...]` by name, in the host's memory."""

AXIS = "devices"
"""Name of the axis of all devices in what `jax.pmap` runs."""


def num_devices() -> int:
  """How many devices share a batch."""
  return jax.local_device_count() * jax.process_count()


def mean_over_devices(tree: Any) -> Any:
  """The mean of every array over all devices, within what runs on them under `AXIS`.

  Of one device that is the array itself, and XLA would copy it.
  """
  return jax.lax.pmean(tree, AXIS) if num_devices() > 1 else tree


def replicate(tree: Any) -> Any:
  """Puts a copy of every array on each local device, as one array without a device axis."""
  return jax.device_put(tree, _sharding(PartitionSpec()))


def shard_batches(batches: Sequence[Batch], max_steps: int) -> dict[str, jax.Array]:
  """Puts each local device's part of the batches of some steps on it.

  Args:
    batches: this process's parts of at most `max_steps` batches, arrays `[B, ...]` by name.
    max_steps: steps that there is room for; what is not used is 0.

  Returns:
    `[D, max_steps, B / D, ...]` by name, with `D` local devices: what `jax.pmap` takes without
    moving it.

  Raises:
    ValueError: if `B` cannot be divided.
  """
  count, num_steps = jax.local_device_count(), len(batches)

  def join(*parts):
    size, *shape = parts[0].shape
    _check_divides("A batch", size, count)
    # A single batch is only looked at differently, which costs nothing.
    whole = parts[0][None] if len(parts) == 1 else np.stack(parts)
    whole = np.moveaxis(whole.reshape(num_steps, count, size // count, *shape), 1, 0)
    if num_steps < max_steps:
      room = np.zeros((count, max_steps - num_steps, *whole.shape[2:]), whole.dtype)
      whole = np.concatenate([whole, room], axis=1)
    return whole

  return jax.device_put(jax.tree.map(join, *batches), _sharding(PartitionSpec(AXIS)))


def put_on_devices(batch: Batch) -> dict[str, jax.Array]:
  """Divides a single batch among the local devices, in order: `shard_batches` without steps.

  Returns:
    Arrays `[D, B / D, ...]` by name, each device holding its part.

  Raises:
    ValueError: if `B` cannot be divided.
  """
  count = jax.local_device_count()
  for name, array in batch.items():
    _check_divides(repr(name), len(array), count)
  parts = {name: array.reshape(count, -1, *array.shape[1:]) for name, array in batch.items()}
  return jax.device_put(parts, _sharding(PartitionSpec(AXIS)))


def _check_divides(what: str, size: int, count: int) -> None:
  if size % count:
    raise ValueError(
      f"{what} has {size} examples in this process, which {count} devices cannot share: give a "
      "batch size that is a multiple of the number of all devices."
    )


def _sharding(spec: PartitionSpec) -> NamedSharding:
  return NamedSharding(Mesh(np.asarray(jax.local_devices()), (AXIS,)), spec)
