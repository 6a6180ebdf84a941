"""The pattern of a layer that trains in condensed form: flat, of fixed shapes, its sizes data.

Shape letters: `C` connections that the layer may have (its budget), `I` inputs, `N` neurons. Of the
`C` entries the first `A * K` are in use: entry e is a connection of the active neuron number
`e // K`. `A` (active neurons) and `K` (their fan-in) change in training, the shapes do not.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax

_Carry = TypeVar("_Carry")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """Which input each connection of a layer reads, and which neuron it belongs to.

  Attributes:
    indices: `[C]` of type `index_dtype(in_features)`; ascending in each neuron, 0 if unused.
    active: `[N]` int32, the active neurons, ascending, then N for each of the others.
    sizes: `[2]` int32, `(A, K)`, with `A * K <= C`.
    kernel_shape: shape of the dense kernel, `(I, N)` for a Dense layer.
    neuron_axes: which of its axes index the neurons; the others are inputs.
  """

  indices: Array
  active: Array
  sizes: Array
  kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  neuron_axes: tuple[int, ...] = dataclasses.field(default=(1,), metadata={"static": True})

  @property
  def in_features(self) -> int:
    """Number of inputs `I` of a neuron when dense."""
    return math.prod(n for a, n in enumerate(self.kernel_shape) if a not in self.neuron_axes)

  @property
  def capacity(self) -> int:
    """Connections that the layer may have, `C`."""
    return self.indices.shape[-1]

  @property
  def out_features(self) -> int:
    """Neurons of the layer, `N`, ablated ones included."""
    return self.active.shape[-1]

  @property
  def num_active(self) -> Array:
    """Active neurons `A`, `[]` int32."""
    return self.sizes[0]

  @property
  def fan_in(self) -> Array:
    """Connections `K` of each active neuron, `[]` int32."""
    return self.sizes[1]

  @property
  def num_entries(self) -> Array:
    """Entries in use, `A * K`, `[]` int32."""
    return self.sizes[0] * self.sizes[1]


def entry_neurons(pattern: Pattern, entries: Array) -> Array:
  """The neuron of each entry, int32; N for an entry that is not in use."""
  row = entries // jnp.maximum(pattern.fan_in, 1)
  neurons = pattern.active.at[row].get(mode="clip")
  return jnp.where(entries < pattern.num_entries, neurons, pattern.out_features)


def for_entries(
  pattern: Pattern,
  first: Array | int,
  num_neurons: int,
  step: Callable[[Array, Array, _Carry], _Carry],
  carry: _Carry,
) -> _Carry:
  """Calls `step(entries, neurons, carry) -> carry` for all entries of consecutive neurons.

  Args:
    pattern: of the layer; its indices are not read.
    first: the first of the neurons.
    num_neurons: how many.
    step: is given `[S]` int32 entries and their neurons, counted from `first`. Entries that are
      none of these neurons' come with the neuron `num_neurons`: to be dropped.
    carry: what the first call is given.
  """
  start, end = pattern.fan_in * jnp.searchsorted(
    pattern.active, jnp.asarray([first, first + num_neurons], jnp.int32)
  ).astype(jnp.int32)
  # As many at once as there are in so many neurons on average, so that one call mostly does.
  size = max(64, -(-pattern.capacity * num_neurons // pattern.out_features))

  def body(state: tuple[Array, _Carry]) -> tuple[Array, _Carry]:
    start, carry = state
    entries = start + lax.iota(jnp.int32, size)
    neurons = jnp.where(entries < end, entry_neurons(pattern, entries) - first, num_neurons)
    return start + size, step(entries, neurons, carry)

  return lax.while_loop(lambda state: state[0] < end, body, (start, carry))[1]


def dense_rows(values: Array, pattern: Pattern, first: Array | int, num_neurons: int) -> Array:
  """The dense weights `[num_neurons, I]` of consecutive neurons, zeros where none is stored."""

  def place(entries: Array, neurons: Array, rows: Array) -> Array:
    inputs = pattern.indices.at[entries].get(mode="clip").astype(jnp.int32)
    weights = values.at[entries].get(mode="clip")
    return rows.at[neurons, inputs].set(weights, mode="drop")

  rows = jnp.zeros((num_neurons, pattern.in_features), values.dtype)
  return for_entries(pattern, first, num_neurons, place, rows)


def check_call(x: Any, pattern: Any) -> None:
  """Raises a ValueError unless x is an array, or like one, and the pattern is one."""
  if not hasattr(x, "dtype"):
    raise ValueError(f"`x` must be an array, not a {type(x).__name__}.")
  if not isinstance(pattern, Pattern):
    raise ValueError(
      f"A pattern is needed, from srigl_jax.init_patterns(key, allocation), not a "
      f"{type(pattern).__name__}."
    )
