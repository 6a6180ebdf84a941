"""Where the tensors of an exported network lie: few arrays on the stack, used again and again."""

import math
from typing import NamedTuple

from srigl_jax.export.arithmetic import Plan
from srigl_jax.export.network import Layer, Network, Pool, Reshape, Step, as_image, sources

Pads = tuple[tuple[int, int], tuple[int, int]]
_NO_PADS: Pads = ((0, 0), (0, 0))


class Place(NamedTuple):
  """Where a tensor lies.

  Attributes:
    array: its name in C.
    pads: what stands around its image there, `((top, bottom), (left, right))`.
    image: `(height, width, channels)` without these.
  """

  array: str
  pads: Pads
  image: tuple[int, int, int]

  @property
  def row(self) -> int:
    """Numbers from one row to the next."""
    return (self.image[1] + sum(self.pads[1])) * self.image[2]

  @property
  def first(self) -> int:
    """The index of the image's first number."""
    return self.pads[0][0] * self.row + self.pads[1][0] * self.image[2]

  @property
  def size(self) -> int:
    """Of the array that it needs."""
    return (self.image[0] + sum(self.pads[0])) * self.row


class Memory(NamedTuple):
  """Where everything lies.

  Attributes:
    places: of every tensor; a reshaped one is where it was.
    copies: by step, where the copy of its input with pads lies, if it needs one.
    arrays: `(type, name, size)` of the arrays on the stack.
  """

  places: list[Place]
  copies: dict[int, Place]
  arrays: list[tuple[str, str, int]]


def allocate(plan: Plan, ctypes: list[str]) -> Memory:
  """Places tensors: an array is used again once nothing reads what it held.

  Args:
    plan: the network and its numbers.
    ctypes: of every tensor.
  """
  network = plan.network
  root = _roots(network)
  output = root[-1]
  last_use: dict[int, int] = {}
  for i, step in enumerate(network.steps):
    last_use.update({root[tensor]: i for tensor in sources(step)})
  slots: list[list] = []  # [type, size, step after which it is free]

  def take(ctype: str, size: int, begin: int, end: int) -> str:
    free = [slot for slot in slots if slot[0] == ctype and slot[2] < begin]
    if not free:
      slots.append(free_slot := [ctype, 0, -1])
      free = [free_slot]
    slot = max(free, key=lambda slot: (slot[1] >= size, -abs(slot[1] - size)))
    slot[1], slot[2] = max(slot[1], size), end
    return f"t{slots.index(slot)}"

  places = [Place("x", _NO_PADS, as_image(network.input_shape))]
  copies: dict[int, Place] = {}
  for i, step in enumerate(network.steps):
    pads = _pads(step)
    is_own = root[step.source] == step.source and len(network.readers(step.source)) == 1
    if pads != _NO_PADS and (step.source == 0 or not is_own):
      place = Place("", pads, as_image(network.shapes[step.source]))
      copies[i] = place._replace(array=take(ctypes[step.source], place.size, i, i))
    if isinstance(step, Reshape):
      before = places[step.source]
      places.append(Place(before.array, _NO_PADS, as_image(step.shape)))
      continue
    readers = network.readers(i + 1)
    asked = _pads(readers[0]) if len(readers) == 1 else _NO_PADS
    place = Place("", asked, as_image(step.shape))
    if (i + 1 == output and not plan.softmax) or (i + 1 == output and plan.name == "float32"):
      name = "y"
    else:
      name = take(ctypes[i + 1], place.size, i, last_use.get(i + 1, len(network.steps)))
    places.append(place._replace(array=name))
  arrays = [(slot[0], f"t{i}", slot[1]) for i, slot in enumerate(slots)]
  return Memory(places, copies, arrays)


def _roots(network: Network) -> list[int]:
  """For every tensor the one whose numbers it has, if it is a reshaped one."""
  root = [0]
  for i, step in enumerate(network.steps):
    root.append(root[step.source] if isinstance(step, Reshape) else i + 1)
  return root


def _pads(step: Step) -> Pads:
  return step.window.pads if isinstance(step, Layer | Pool) else _NO_PADS


def stack_bytes(memory: Memory) -> int:
  """What the arrays take on the stack, each aligned to 64 bytes at most."""
  widths = {"float": 4, "int8_t": 1, "int16_t": 2, "int32_t": 4}
  return sum(math.ceil(widths[ctype] * size / 64) * 64 for ctype, _, size in memory.arrays)
