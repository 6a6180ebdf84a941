"""What all processes of a run must agree on: how they start, and the masks on every device."""

import collections
import json
import zlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import multihost_utils

from experiments.processes.sharding import AXIS, num_devices

Tree = TypeVar("Tree")

_NO, _YES, _FAILED = range(3)


def decide_on_process_0(decide: Callable[[], bool]) -> bool:
  """What process 0 decides, in every process.

  Args:
    decide: is called in process 0 only.

  Raises:
    ValueError: in the other processes, if `decide` has raised in process 0.
  """
  if jax.process_count() == 1:
    return decide()
  # The first message between processes has to come soon; later ones may take their time.
  multihost_utils.broadcast_one_to_all(np.int32(_NO))
  outcome = _FAILED
  try:
    if jax.process_index() == 0:
      outcome = _YES if decide() else _NO
  finally:  # so that the others do not wait for it
    outcome = int(multihost_utils.broadcast_one_to_all(np.int32(outcome)))
  if outcome == _FAILED:
    raise ValueError("Process 0 cannot go on: see its message.")
  return outcome == _YES


def broadcast_from_process_0(read: Callable[[], Tree | None], template: Tree) -> Tree | None:
  """What process 0 reads, in every process.

  Args:
    read: is called in process 0 only; returns a tree of arrays, or None.
    template: a tree of the same structure, shapes and dtypes.

  Raises:
    ValueError: in the other processes, if `read` has raised in process 0.
  """
  if jax.process_count() == 1:
    return read()
  tree: Tree | None = None

  def found():
    nonlocal tree
    tree = read()
    return tree is not None

  if not decide_on_process_0(found):
    return None
  leaves, structure = jax.tree.flatten(template)
  given = jax.tree.leaves(tree) if tree is not None else leaves
  received = [_broadcast(x, like) for x, like in zip(given, leaves, strict=True)]
  return jax.tree.unflatten(structure, received)


def check_same(tell: Callable[[], Mapping[str, Any]]) -> None:
  """Compares what processes go by; every process must call it.

  Args:
    tell: gives what must be the same everywhere, by its name for people; as JSON holds it. It is
      not called if there is one process only.

  Raises:
    ValueError: if something is not, in every process; it names them.
  """
  if jax.process_count() == 1:
    return
  facts = tell()
  numbers = [zlib.crc32(json.dumps(value, sort_keys=True).encode()) for value in facts.values()]
  found = np.asarray(multihost_utils.process_allgather(np.asarray(numbers, np.uint32)))
  differing = [
    f"the {name} (processes {', '.join(map(str, odd))})"
    for name, column in zip(facts, found.T, strict=True)
    if len(odd := np.flatnonzero(column != column[0]))
  ]
  if differing:
    raise ValueError(
      f"Not all processes have the same as process 0: {'; '.join(differing)}. They would train "
      "different networks. Start all by the same command, from copies of the same checkout, data "
      "set and environment."
    )


def _broadcast(value: Any, template: Any) -> np.ndarray:
  """An array of process 0, bit for bit: as bytes, since sums turn -0 into 0."""
  shape, dtype = template.shape, np.dtype(template.dtype)
  flat = np.ascontiguousarray(np.asarray(value, dtype)).reshape(-1).view(np.uint8)
  if not flat.size:
    return np.zeros(shape, dtype)
  return np.asarray(multihost_utils.broadcast_one_to_all(flat)).view(dtype).reshape(shape)


class StopSignal:
  """When to stop: at the same step in all processes, whichever of them was asked to.

  Each call of the training function takes the signal that its process has received and returns the
  largest of all. Reading that at once would let the devices wait for the host; it is read some
  calls later, which also keeps the host from running further ahead than that.
  """

  def __init__(self) -> None:
    # Several virtual devices starve XLA's pool of threads if more than one program is under way.
    on_cpu = jax.default_backend() == "cpu" and jax.local_device_count() > 1
    self._ahead = 0 if on_cpu else 2
    self._signals: collections.deque[Array] = collections.deque()

  def agreed(self, asked: int, signal: Array) -> int:
    """The signal to stop for after this call, 0 to go on.

    Args:
      asked: what was given to this call.
      signal: what it has returned.
    """
    self._signals.append(signal)
    oldest = None
    if len(self._signals) > self._ahead:
      oldest = jax.block_until_ready(self._signals.popleft())
    if jax.process_count() == 1:
      return asked
    return 0 if oldest is None else int(oldest)


def mask_checksum(masks: Any) -> Array:
  """A number by which different masks are told, `[]` uint32; 2**-32 of all differences escape.

  It is the sum of a hash of the position of every active weight, which costs no more than counting
  them; of integers, as patterns hold, of position and number.

  Args:
    masks: a tree of bool or integer arrays.
  """
  total = jnp.zeros((), jnp.uint32)
  for i, leaf in enumerate(jax.tree.leaves(masks)):
    position = jnp.arange(leaf.size, dtype=jnp.uint32)
    # Away from 0, which is its own hash: a weight there would not count.
    hashed = _mix(position + jnp.uint32((i + 1) * 0x9E3779B9 % 2**32))
    flat = leaf.reshape(-1)
    if leaf.dtype == jnp.bool_:
      hashed = jnp.where(flat, hashed, jnp.uint32(0))
    else:
      hashed = _mix(hashed ^ flat.astype(jnp.uint32))
    total += hashed.sum(dtype=jnp.uint32)
  return total


def _mix(x: Array) -> Array:
  """A bijection of 32-bit integers in which every bit depends on every other (lowbias32)."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
  x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
  return x ^ (x >> 16)


def check_same_masks(masks: Mapping[str, Any]) -> None:
  """Compares the masks of all devices of all processes; every process must call it.

  Args:
    masks: bool arrays by path, or patterns; on the devices, a copy on each (`replicate`).

  Raises:
    RuntimeError: if they are not the same everywhere; it names the devices.
  """
  if num_devices() == 1 or not masks:
    return
  found = np.asarray(_of_each_device(masks, np.zeros(jax.local_device_count())))
  if len(set(found.tolist())) > 1:
    common = np.argmax(np.bincount(np.unique(found, return_inverse=True)[1]))
    odd = np.flatnonzero(found != np.unique(found)[common])
    raise RuntimeError(
      f"The masks on the devices {odd.tolist()} of {len(found)} differ from those of the others. "
      "No checkpoint is written. The last one is sound: start again from it, and if it happens "
      "again, look at the hardware of those devices."
    )


# The second argument says on how many devices.
_of_each_device = jax.pmap(
  lambda masks, _: lax.all_gather(mask_checksum(masks), AXIS),
  axis_name=AXIS,
  in_axes=(None, 0),
  out_axes=None,
)
