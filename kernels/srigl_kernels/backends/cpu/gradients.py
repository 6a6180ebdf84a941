"""Native gradients of the condensed product, and layers whose values change.

A layer that is trained is packed without its values: `pack` keeps the pattern, that of the
transpose, and for either the order of its values, which `with_values` puts into place in every
call. The gradient in the values comes in the layer's own order and needs no pattern but the
layer's.

Numbers: sums are float32, in an order that depends on target, batch size and pattern, not on the
number of threads. Gradients in bfloat16 are rounded once, at the end.
"""

import ctypes
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends import xla
from srigl_kernels.backends.cpu import library
from srigl_kernels.backends.cpu.matmul import Packed
from srigl_kernels.batching import in_a_loop, in_one_call
from srigl_kernels.format import Condensed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """The pattern of a condensed layer as the kernels read it, for training; made by `pack`.

  As in `matmul.Packed`, whatever a pattern holds, no memory out of bounds is read or written. All
  shapes follow from those of the layer.

  Attributes:
    tile_pattern: `[bytes]` uint8, the places of the weights.
    tile_order: `[A * K]` int32, which of the layer's values, flat, stands where in that pattern.
    transposed_pattern: `[bytes]` uint8, the places in the transpose, of which `A` are inputs.
    transposed_order: `[A * K]` int32.
    in_features: inputs of the layer.
    out_features: neurons of the layer, ablated ones included.
  """

  tile_pattern: Array
  tile_order: Array
  transposed_pattern: Array
  transposed_order: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})


def pack(condensed: Condensed) -> Pattern:
  """Packs the pattern of a layer: once, outside of jit. The values are not read.

  Args:
    condensed: the layer; its indices and active neurons are concrete.

  Raises:
    ValueError: if these are not such as `Condensed` says; every index is checked.
    RuntimeError: if the library is not there.
  """
  native = library.require()
  indices = library.as_int32("indices", condensed.indices)
  active = library.as_int32("active", condensed.active)
  features = condensed.in_features, condensed.out_features
  message = ctypes.create_string_buffer(256)
  result = native.srigl_pack_training(
    indices.ctypes.data, active.ctypes.data, *indices.shape, *features, message, len(message)
  )
  dtypes = (np.dtype(np.uint8), np.dtype(np.int32)) * 2
  arrays = library.take_packed(native, result, message.value.decode(), dtypes)
  tiles, tile_order, transposed, transposed_order = map(jnp.asarray, arrays)
  return Pattern(tiles, tile_order, transposed, transposed_order, *features)


def with_values(layout: Pattern | Packed, values: Array) -> Packed:
  """What `matmul` reads: a pattern gets the values `[A, K]`; a packed layer keeps its own."""
  if isinstance(layout, Packed):
    return layout
  library.require()
  none = jnp.zeros(0, jnp.uint8)  # no windows: they serve the smallest batches only
  no_scales = jnp.zeros(0)
  return Packed(
    tile_pattern=layout.tile_pattern,
    tile_values=_pack_values(values, layout.tile_order),
    window_pattern=none,
    window_values=none.astype(values.dtype),
    dot_pattern=none,
    scales=no_scales,
    input_range=no_scales,
    in_features=layout.in_features,
    out_features=layout.out_features,
  )


def input_gradient(g: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.input_gradient`; a packed layer does not have the transpose and is left to that.

  Works under jit, vmap, scan, pmap and shard_map, as all of these functions.
  """
  if isinstance(layout, Packed):
    return xla.input_gradient(g, condensed)
  library.require()
  packed = _pack_values(condensed.values, layout.transposed_order)
  call = _input_gradient_call(condensed.in_features)
  dx = call(g.astype(jnp.float32), layout.transposed_pattern, packed, condensed.active)
  return dx.astype(g.dtype)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.values_gradient`."""
  library.require()
  call = _values_gradient_call(condensed.fan_in)
  dvalues = call(
    g.astype(jnp.float32), x.astype(jnp.float32), layout.tile_pattern, condensed.active
  )
  return dvalues.astype(condensed.values.dtype)


@in_a_loop
def _pack_values(values: Array, order: Array) -> Array:
  """`values.reshape(-1)[order]`. On four busy cores XLA took 1.6 times as long for its gather."""
  call = jax.ffi.ffi_call(library.PACK_VALUES, jax.ShapeDtypeStruct(order.shape, values.dtype))
  return call(values, order)


@functools.cache
def _input_gradient_call(in_features: int) -> Any:
  """The call; under vmap a batched g is one call, anything else a loop of calls."""

  @in_one_call
  def call(g: Array, pattern: Array, packed: Array, active: Array) -> Array:
    dx = jax.ShapeDtypeStruct((*g.shape[:-1], in_features), jnp.float32)
    return jax.ffi.ffi_call(library.INPUT_GRADIENT, dx)(g, pattern, packed, active)

  return call


@functools.cache
def _values_gradient_call(fan_in: int) -> Any:
  """The call; under vmap a loop of calls, as every example has a gradient of its own."""

  @in_a_loop
  def call(g: Array, x: Array, pattern: Array, active: Array) -> Array:
    dvalues = jax.ShapeDtypeStruct((*active.shape, fan_in), jnp.float32)
    return jax.ffi.ffi_call(library.VALUES_GRADIENT, dvalues)(g, x, pattern, active)

  return call
