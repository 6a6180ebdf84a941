"""What follows the products on every backend: ablated neurons, bias, residual, activation."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

ACTIVATIONS: dict[str | None, Callable[[Array], Array]] = {
  None: lambda y: y,
  "relu": jax.nn.relu,
  "gelu": jax.nn.gelu,  # the tanh form, Flax's default
  "gelu_exact": partial(jax.nn.gelu, approximate=False),
  "silu": jax.nn.silu,
  "relu6": jax.nn.relu6,
  "hard_silu": jax.nn.hard_silu,
}
"""Activations that `condensed_matmul` applies, by name."""

COMMON = frozenset({None, "relu", "gelu"})
"""Those of them that the kernels of every backend know."""


def places_of(active: Array, num_neurons: int) -> Array:
  """Where each neuron `[N]` int32 is among the active ones `[A]`; A for the ablated."""
  places = jnp.full((num_neurons,), active.shape[0], jnp.int32)
  return places.at[active].set(jnp.arange(active.shape[0], dtype=jnp.int32))


def gather_neurons(y: Array, places: Array, *, axis: int = 0) -> Array:
  """`scatter_to_neurons` with `places_of` the active neurons, computed beforehand."""
  num_active, num_neurons = y.shape[axis], places.shape[0]
  if num_active == num_neurons:
    return y
  if num_active == 0:
    return jnp.zeros((*y.shape[:axis], num_neurons, *y.shape[axis + 1 :]), y.dtype)
  return jnp.take(y, places, axis=axis, mode="fill", fill_value=0)


def scatter_to_neurons(y: Array, active: Array, num_neurons: int, *, axis: int = 0) -> Array:
  """Puts active neurons in their places among all neurons, with zeros elsewhere.

  Args:
    y: any array with `A` neurons along the axis.
    active: `[A]` int32, ascending.
    num_neurons: `N`.
    axis: of the neurons.

  Returns:
    The array with `N` neurons along the axis. A gather: XLA on CPU scatters one row after the
    other. Behind a product `[B, A]` of up to some 64 rows, gathering along axis 1 took a third of
    the time that it takes along axis 0 between two transpositions.
  """
  return gather_neurons(y, places_of(active, num_neurons), axis=axis)


def active_first(active: Array, num_neurons: int) -> Array | None:
  """All neurons `[N]` int32, the active ones first; None if all are active."""
  if active.shape[0] == num_neurons:
    return None
  is_ablated = jnp.ones(num_neurons, bool).at[active].set(False)
  return jnp.argsort(is_ablated, stable=True).astype(jnp.int32)


def apply_epilogue(
  y: Array,
  bias: Array | None,
  activation: str | None,
  dtype: DTypeLike,
  residual: Array | None = None,
) -> Array:
  """Adds bias and residual, applies the activation, in float32, and rounds to the result's type.

  Args:
    y: `[..., N]` of any float type.
    bias: `[N]`, or None.
    activation: a name in `ACTIVATIONS`.
    dtype: of the result.
    residual: of y's shape, or None.
  """
  y = y.astype(jnp.float32)
  if bias is not None:
    y = y + bias.astype(jnp.float32).reshape((1,) * (y.ndim - 1) + (-1,))
  if residual is not None:
    y = y + residual.astype(jnp.float32)
  return ACTIVATIONS[activation](y).astype(dtype)
