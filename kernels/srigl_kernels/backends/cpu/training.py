"""Native product and gradients of a layer in training, whose pattern is an operand.

The kernels read values and indices as they are stored: nothing is packed, so a topology update
costs them nothing. They check the sizes, the active neurons and every index, and fail the call with
INVALID_ARGUMENT, never reading or writing out of bounds; that indices ascend is not checked, and
where they do not, input gradients are wrong.

Numbers: sums are float32, in an order that depends on target, batch size and pattern, not on the
number of threads. Activations may be float32 or bfloat16, and are rounded once, at the end.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.batching import map_calls
from srigl_kernels.pattern import Pattern


def is_available() -> bool:
  """Whether jax runs on CPU and the native library was found."""
  return jax.default_backend() == "cpu" and library.is_available()


def forward(x: Array, values: Array, pattern: Pattern) -> Array:
  """The product `[B, N]` of `x` `[B, I]`, float32 or bfloat16; zeros for ablated neurons."""
  library.require()
  y = jax.ShapeDtypeStruct((x.shape[0], pattern.out_features), x.dtype)
  bias = jnp.zeros(0)
  return _call(library.TRAINING_FORWARD, y, x, values, *_arrays(pattern), bias)


def input_gradient(g: Array, values: Array, pattern: Pattern) -> Array:
  """Gradient `[B, I]` in the inputs, from `g` `[B, N]` in the outputs, float32 or bfloat16."""
  library.require()
  dx = jax.ShapeDtypeStruct((g.shape[0], pattern.in_features), g.dtype)
  return _call(library.TRAINING_INPUT_GRADIENT, dx, g, values, *_arrays(pattern))


def values_gradient(g: Array, x: Array, pattern: Pattern) -> Array:
  """Gradient `[C]` float32 in the values, 0 where not in use; g `[B, N]` and x `[B, I]` alike."""
  library.require()
  dvalues = jax.ShapeDtypeStruct((pattern.capacity,), jnp.float32)
  return _call(library.TRAINING_VALUES_GRADIENT, dvalues, g, x, *_arrays(pattern))


def _arrays(pattern: Pattern) -> tuple[Array, Array, Array]:
  return pattern.indices, pattern.active, pattern.sizes


def _call(handler: str, result: jax.ShapeDtypeStruct, *arguments: Array) -> Array:
  """Calls the handler; under vmap in a loop."""

  @jax.custom_batching.custom_vmap
  def call(*arguments: Array) -> Array:
    return jax.ffi.ffi_call(handler, result)(*arguments)

  @call.def_vmap
  def rule(axis_size: int, batched: Any, *arguments: Array) -> Any:
    return map_calls(call, batched, arguments), True

  return call(*arguments)
