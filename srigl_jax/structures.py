"""Sparsity structures: which sets of weights hold the same number of connections.

A structure is one value. Everything that depends on it takes that value: `allocate` for budgets,
`init_masks` for the first masks, `srigl_update` for the next ones.
"""

import dataclasses
import math
import numbers
from typing import Any

from srigl_jax.layers import Layer


@dataclasses.dataclass(frozen=True)
class Unstructured:
  """Any weights of a layer: only their number is fixed."""

  block_size = None


@dataclasses.dataclass(frozen=True)
class ConstantFanIn:
  """The same number of connections for every active neuron, block of inputs or group of neurons.

  N:M sparsity is `ConstantFanIn(block_size=m)` with `fan_in=n`.

  Attributes:
    block_size: M, for a constant fan-in in every block of M consecutive inputs of a neuron; must
      divide the inputs of each sparse layer. None: one block of all inputs. Blocks follow the
      order of the `[I, N]` view: for convolutions (window row, window column, input channel).
    group_size: consecutive neurons that share their inputs (and are ablated together), so that
      their weights form dense blocks; 1: each neuron has its own. A layer whose neurons are no
      multiple of it has groups of their greatest common divisor: 10 classes and 16 make groups
      of 2.

  Raises:
    ValueError: if a size is not a whole number from 1 on.
  """

  block_size: int | None = None
  group_size: int = 1

  def __post_init__(self) -> None:
    for name, size in (("block_size", self.block_size), ("group_size", self.group_size)):
      if (size is not None or name == "group_size") and (
        not isinstance(size, numbers.Integral) or size < 1
      ):
        raise ValueError(
          f"{name} is {size!r}; it must be a whole number, 1 or more"
          + (", or None for one block of all inputs." if name == "block_size" else ".")
        )

  def num_blocks(self, layer: Layer) -> int:
    """Blocks that the inputs of each neuron of a layer fall into.

    Raises:
      ValueError: if the inputs are no multiple of `block_size`.
    """
    if self.block_size is None:
      return 1
    if layer.dense_fan_in % self.block_size:
      raise ValueError(
        f"Layer {layer.path!r} of shape {layer.shape} has {layer.dense_fan_in} inputs to each "
        f"neuron, no multiple of block_size={self.block_size}. Choose a block_size that divides "
        "them, or keep all such layers dense with "
        f"sparse=all_but(inputs_multiple_of={self.block_size})."
      )
    return layer.dense_fan_in // self.block_size

  def num_in_group(self, layer: Layer) -> int:
    """Neurons of a layer that share their inputs."""
    return math.gcd(layer.num_neurons, self.group_size)


Structure = Unstructured | ConstantFanIn

STRUCTURES: dict[str, Structure] = {
  "constant_fan_in": ConstantFanIn(),
  "unstructured": Unstructured(),
}
"""Structures by the names that configs give them."""


def n_of_m(n: int, m: int) -> ConstantFanIn:
  """The structure of n connections in each block of m inputs, which `fan_in=n` completes.

  Raises:
    ValueError: unless n and m are whole numbers with `1 <= n <= m`.
  """
  if not all(isinstance(x, numbers.Integral) for x in (n, m)) or not 1 <= n <= m:
    raise ValueError(
      f"n is {n!r} and m is {m!r}: n connections in each block of m inputs need whole numbers with "
      "1 <= n <= m, such as 2 and 4."
    )
  return ConstantFanIn(block_size=m)


def _whole(size: str) -> int | str:
  return int(size) if size.isdecimal() else size


def as_structure(given: Structure | str) -> Structure:
  """A structure from itself or from the text that stands for it in a config.

  Args:
    given: a structure, a name in `STRUCTURES`, or `"constant_fan_in"` with sizes, as in
      `"constant_fan_in:group_size=16"` or `"constant_fan_in:block_size=4,group_size=2"`.

  Raises:
    ValueError: if it is none of these.
  """
  if isinstance(given, Structure):
    return given
  name, _, sizes = given.partition(":") if isinstance(given, str) else ("", "", "")
  options = dict(option.partition("=")[::2] for option in sizes.split(",") if option)
  try:
    structure: Any = STRUCTURES[name]
    return dataclasses.replace(structure, **{key: _whole(size) for key, size in options.items()})
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"structure is {given!r}; it must be Unstructured(), ConstantFanIn(block_size=..., "
      f"group_size=...), or one of {tuple(STRUCTURES)}, the first with sizes if need be: "
      "'constant_fan_in:group_size=16'."
    ) from error
