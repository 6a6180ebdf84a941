"""Native convolution and gradients of a layer in training, whose pattern is an operand.

The kernels sort what they read of the layer in every call, which costs little beside the pixels of
a batch. Like those of `training`, they check sizes, active neurons and every index, and fail the
call with INVALID_ARGUMENT; that indices ascend is not checked, and gradients in the values are
wrong where they do not. They compute in float32, in an order that does not depend on the number of
threads; activations in bfloat16 are cast.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.batching import map_calls
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.pattern import Pattern


def runs(geometry: Geometry) -> bool:
  """Whether the kernels have such convolutions: with one or two spatial axes, in one group."""
  return len(geometry.kernel_size) <= 2 and geometry.groups == 1


def forward(x: Array, values: Array, pattern: Pattern, geometry: Geometry) -> Array:
  """The convolution `[B, *S_out, N]` of `x` `[B, *S, C]`; zeros for ablated neurons."""
  size = geometry.output_size(x.shape[1:-1])
  shape = (x.shape[0], *size, pattern.out_features)
  y = _call(library.CONV_FORWARD, shape, geometry, (x,), values, *_arrays(pattern))
  return y.astype(x.dtype)


def input_gradient(
  g: Array, values: Array, pattern: Pattern, geometry: Geometry, size: tuple[int, ...]
) -> Array:
  """Gradient `[B, *size, C]` in the images, from `g` `[B, *S_out, N]` in the outputs."""
  shape = (g.shape[0], *size, pattern.kernel_shape[-2])
  dx = _call(library.CONV_INPUT_GRADIENT, shape, geometry, (g,), values, *_arrays(pattern))
  return dx.astype(g.dtype)


def values_gradient(g: Array, x: Array, pattern: Pattern, geometry: Geometry) -> Array:
  """Gradient `[C]` float32 in the values, 0 where not in use."""
  shape = (pattern.capacity,)
  return _call(library.CONV_VALUES_GRADIENT, shape, geometry, (g, x), *_arrays(pattern))


def _arrays(pattern: Pattern) -> tuple[Array, Array, Array]:
  return pattern.indices, pattern.active, pattern.sizes


def _call(
  handler: str,
  shape: tuple[int, ...],
  geometry: Geometry,
  images: tuple[Array, ...],
  *layer: Array,
) -> Array:
  """Calls the handler, with one spatial axis as the second of two; under vmap in a loop."""
  library.require()
  rank = len(geometry.kernel_size)
  numbers = lambda axes, missing: np.array([missing] * (2 - rank) + list(axes), np.int64)
  attributes = {
    "kernel": numbers(geometry.kernel_size, 1),
    "strides": numbers(geometry.strides, 1),
    "dilation": numbers(geometry.dilation, 1),
    "padding": numbers(geometry.padding, (0, 0)).reshape(-1),
  }
  flat = lambda shape: (shape[0], *[1] * (2 - rank), *shape[1:]) if len(shape) > 1 else shape
  result = jax.ShapeDtypeStruct(flat(shape), jnp.float32)

  @jax.custom_batching.custom_vmap
  def call(*arguments: Array) -> Array:
    return jax.ffi.ffi_call(handler, result)(*arguments, **attributes)

  @call.def_vmap
  def rule(axis_size: int, batched: Any, *arguments: Array) -> Any:
    return map_calls(call, batched, arguments), True

  images = tuple(a.astype(jnp.float32).reshape(flat(a.shape)) for a in images)
  return call(*images, *layer).reshape(shape)
