"""The condensed product by the native CPU kernels: packs layers, and calls the library.

Numbers: weights and indices are exact unless `pack` is told otherwise, sums are float32. The order
of summation depends on target, batch size and pattern, not on the number of threads. Sums of 8-bit
products are exact, the same on every target, up to 2**24 (519 of the largest); beyond, targets
without VNNI round them as float32. Products of 16 bits, where inputs are rounded to bfloat16, are
of bfloat16 or, where that is faster, of float16 at a power of two as scale, with 11 bits in place
of 8 and sums of 16 products in float16; other targets do not round the inputs. Inf or NaN in
an input reaches every neuron that uses this input; on AVX-512, at small batch sizes and in layers
that are nearly dense, it may also turn neurons that do not use it into NaN (as a dense product
would), because packets are padded with zero weights. In a convolution of 8 bits it may turn all
outputs of its image into NaN.
"""

import ctypes
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels import epilogue
from srigl_kernels.backends.cpu import library
from srigl_kernels.batching import in_one_call
from srigl_kernels.quantized import Quantized

ACTIVATIONS = {name: number for number, name in enumerate(epilogue.ACTIVATIONS)}
"""Activations the kernel applies, all of them, and how it calls them."""

_VALUE_TYPES = (np.dtype(np.float32), np.dtype(jnp.bfloat16), np.dtype(np.int8))
_FLOAT16, _FLOAT32 = 2, 3  # of the dot types
# Beyond, so many places in the steps are empty that tiles, which have none, are faster.
_MOST_DOT_BYTES_OF_WEIGHT = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """A condensed layer as the kernels read it; made by `pack`.

  A pattern is a byte string that kernels check in every call: whatever it holds, no memory out of
  bounds is read or written. Kernels read it in place, so it must not be cast or reordered.

  Attributes:
    tile_pattern: `[bytes]` uint8, the weights' places for batches of any size.
    tile_values: `[weights]` float32, bfloat16 or int8, the weights in that order.
    window_pattern: `[bytes]` uint8, the same for small batches; empty where no kernel reads it.
    window_values: `[weights and padding]`, of the type of `tile_values`.
    dot_pattern: `[bytes]` uint8, weights and places for products of 8 or 16 bits, or the dense
      weights of active neurons; or empty.
    scales: `[N]` float32, of int8 weights; else empty.
    input_range: `[2]` float32, or empty: see `Condensed`.
    in_features: inputs of the layer.
    out_features: neurons of the layer, ablated ones included.
    is_quantized: whether inputs are rounded to 8 bits.
  """

  tile_pattern: Array
  tile_values: Array
  window_pattern: Array
  window_values: Array
  dot_pattern: Array
  scales: Array
  input_range: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})
  is_quantized: bool = dataclasses.field(default=False, metadata={"static": True})


def pack(
  values: Any,
  indices: Any,
  active: Any,
  in_features: int,
  out_features: int,
  *,
  exact: bool = True,
  scales: Any = None,
  input_range: Any = None,
  rounds_inputs: bool = False,
) -> Packed:
  """Packs a condensed layer for the kernels: once, where it is made or loaded, outside of jit.

  Args:
    values: `[A, K]` float32, bfloat16 or int8, the weights of the active neurons.
    indices: `[A, K]` integers, the input of each weight; ascending in each row.
    active: `[A]` integers, the active neurons, ascending.
    in_features: inputs of the layer.
    out_features: neurons of the layer, ablated ones included.
    exact: False lets the kernel for small batches on AVX-512 put the place of a float32 weight into
      its lowest five bits, so that it reads a fifth less. It then computes with weights that differ
      from these by up to 2**-19 of their size, next to the smallest and largest float32 by more.
      Nothing changes for zeros, other kernels, other types, or a layer that holds Inf or NaN.
    scales: `[A]` float32, of int8 weights.
    input_range: `[2]` float32 or None, as of `Condensed`.
    rounds_inputs: whether products may be of inputs rounded as the weights are.

  Raises:
    ValueError: if the arrays are not such a layer; every index is checked.
    RuntimeError: if the library is not there.
  """
  native = library.require()
  values = np.ascontiguousarray(values)
  if values.ndim != 2 or np.shape(indices) != values.shape or np.shape(active) != values.shape[:1]:
    raise ValueError(
      "`values`, `indices` and `active` must have the shapes (A, K), (A, K) and (A,), not "
      f"{values.shape}, {np.shape(indices)} and {np.shape(active)}."
    )
  if values.dtype not in _VALUE_TYPES or (values.dtype == np.int8) != (scales is not None):
    raise ValueError(
      f"`values` must be float32 or bfloat16, or int8 with scales, not {values.dtype}."
    )
  columns, neurons = library.as_int32("indices", indices), library.as_int32("active", active)
  scales = None if scales is None else np.asarray(scales, np.float32)
  has_windows = library.isa().startswith("avx512")
  is_quantized = rounds_inputs and values.dtype == np.int8
  windows = 0 if not has_windows or is_quantized else 1 if exact else 2
  sizes = (*values.shape, in_features, out_features)
  arguments = columns.ctypes.data, neurons.ctypes.data
  message = ctypes.create_string_buffer(256)
  half = rounds_inputs and not is_quantized and native.srigl_half_dot_type() == _FLOAT16
  result = native.srigl_pack_layer(
    values.ctypes.data, *arguments, _VALUE_TYPES.index(values.dtype), *sizes, windows, half,
    message, len(message),
  )  # fmt: skip
  dtypes = (np.dtype(np.uint8), values.dtype, np.dtype(np.uint8), values.dtype)
  arrays = library.take_packed(native, result, message.value.decode(), dtypes)
  tile_pattern, tile_values, window_pattern, window_values = map(jnp.asarray, arrays)
  dots = np.zeros(0, np.uint8)
  if values.size and (rounds_inputs or values.dtype == np.float32):
    dots = _pack_dots(native, values, scales, arguments, sizes)
  out_scales = np.ones(out_features if scales is not None else 0, np.float32)
  if scales is not None:
    out_scales[neurons] = scales
  return Packed(
    tile_pattern=tile_pattern,
    tile_values=tile_values,
    window_pattern=window_pattern,
    window_values=window_values,
    dot_pattern=jnp.asarray(dots),
    scales=jnp.asarray(out_scales),
    input_range=jnp.zeros(0) if input_range is None else jnp.asarray(input_range, jnp.float32),
    in_features=int(in_features),
    out_features=int(out_features),
    is_quantized=is_quantized,
  )


def _pack_dots(native, values, scales, arguments, sizes) -> np.ndarray:
  """The dot pattern for the target in use; empty where it has none, or tiles are faster."""
  nothing = np.zeros(0, np.uint8)
  if values.dtype == np.int8:
    dot_type, raw = 0, values
  elif values.dtype == np.float32:
    dense = native.srigl_dense_share() * sizes[2]
    if not library.isa().startswith("avx512") or values.shape[1] < dense:
      return nothing
    dot_type, raw, scales = _FLOAT32, values, np.ones(len(values), np.float32)
  else:
    dot_type, raw = native.srigl_half_dot_type(), values
    if dot_type < 0:
      return nothing
    if dot_type == _FLOAT16:  # each neuron's largest weight between 1/2 and 1
      exact = values.astype(np.float32)
      # Scales and their inverses are normal numbers: XLA's threads take others for 0.
      exponents = np.frexp(np.abs(exact).max(axis=1))[1].clip(-126, 126)
      raw = np.ldexp(exact, -exponents[:, None]).astype(np.float16)
      scales = np.ldexp(np.float32(1), exponents)
    else:
      scales = np.ones(len(values), np.float32)
  raw, scales = np.ascontiguousarray(raw), np.ascontiguousarray(scales, np.float32)
  message = ctypes.create_string_buffer(256)
  result = native.srigl_pack_dots(
    raw.ctypes.data, *arguments, scales.ctypes.data, dot_type, *sizes, message, len(message)
  )
  dtypes = (np.dtype(np.uint8),) * 4
  dots = library.take_packed(native, result, message.value.decode(), dtypes)[0]
  return dots if dots.size <= _MOST_DOT_BYTES_OF_WEIGHT * values.size else nothing


def matmul(
  x: Array | Quantized,
  packed: Packed,
  bias: Array | None = None,
  activation: str | None = None,
  residual: Array | Quantized | None = None,
  output_range: Array | None = None,
) -> Any:
  """`y[..., active[a]] = activation(sum_j values[a, j] * x[..., indices[a, j]] + bias + residual)`.

  Works under jit, vmap, scan, pmap and shard_map. Has no derivative of its own.

  Args:
    x: `[..., I]` float32 or bfloat16, any leading dimensions; or in 8 bits, by the layer's range.
    packed: the layer.
    bias: `[N]` or None; the output of an ablated neuron is the activation of its bias.
    activation: a name in `ACTIVATIONS`.
    residual: `[..., N]` or None.
    output_range: `[2]`, what the result is to be quantized by, or None.

  Returns:
    `[..., N]` of x's type, in float32 or in 8 bits; sums, bias, residual and activation are in
    float32.

  Raises:
    ValueError: if shapes, types or the activation do not fit.
    RuntimeError: if the library is not there.
  """
  library.require()
  x = x if isinstance(x, Quantized) else jnp.asarray(x)
  if len(x.shape) < 1 or x.shape[-1] != packed.in_features:
    raise ValueError(f"`x` must have shape (..., {packed.in_features}), not {x.shape}.")
  if not isinstance(x, Quantized) and x.dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(f"`x` must be float32 or bfloat16, not {x.dtype}.")
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  bias = jnp.zeros(0) if bias is None else jnp.asarray(bias)
  if bias.shape not in ((packed.out_features,), (0,)):
    raise ValueError(f"`bias` must have shape ({packed.out_features},), not {bias.shape}.")
  call = _batched_call(ACTIVATIONS[activation], packed.out_features)
  return with_rows(call, x, packed, bias, residual, output_range)


def with_rows(
  call: Any,
  x: Array | Quantized,
  packed: Packed,
  bias: Array,
  residual: Array | Quantized | None,
  output_range: Array | None,
) -> Any:
  """What `call(rows, packed, bias, residual_range, output_range)` gives.

  Its `rows` are `(x, scales of x, residual, scales of that)`: arrays of float32 without scales, or
  of 8 bits; None for what is not given.
  """
  nothing = jnp.zeros(0)
  parts: list[Array | None] = []
  ranges = []
  for rows in (x, residual):
    if isinstance(rows, Quantized):
      parts += [rows.integers, rows.scales]
      ranges.append(rows.range)
    else:
      parts += [None if rows is None else rows.astype(jnp.float32), None]
      ranges.append(nothing)
  y, scales = call(tuple(parts), packed, bias.astype(jnp.float32), ranges[1], output_range)
  if output_range is not None:
    return Quantized(y, scales, output_range)
  return y if isinstance(x, Quantized) else y.astype(x.dtype)


def row_operands(inputs: Any, residual_range: Array, output_range: Array | None) -> list[Array]:
  """What handlers take for the residual, and for rows in 8 bits, empty where there is nothing."""
  _, x_scales, residual, residual_scales = inputs
  given = (residual, x_scales, residual_scales, residual_range, output_range)
  return [jnp.zeros(0) if a is None else a for a in given]


def row_results(shape: tuple[int, ...], output_range: Array | None) -> tuple[Any, Any]:
  """What handlers return: the result, and the scales of its rows if it is in 8 bits."""
  is_quantized = output_range is not None
  dtype = jnp.uint8 if is_quantized else jnp.float32
  scales = shape[:-1] if is_quantized else (0,)
  return jax.ShapeDtypeStruct(shape, dtype), jax.ShapeDtypeStruct(scales, jnp.float32)


def as_rows(scales: Array, y: Array, output_range: Array | None) -> Array:
  """The scales of a result's rows; empty ones have its leading axes, too, for vmap to map them."""
  return jnp.zeros((*y.shape[:-1], 0)) if output_range is None else scales


@functools.cache
def _batched_call(activation: int, out_features: int) -> Any:

  def call(inputs, packed: Packed, bias: Array, residual_range, output_range) -> Any:
    x = inputs[0]
    results = row_results((*x.shape[:-1], out_features), output_range)
    y, scales = jax.ffi.ffi_call(library.MATMUL, results)(
      x, packed.tile_pattern, packed.tile_values, packed.window_pattern, packed.window_values,
      packed.dot_pattern, bias, packed.scales, packed.input_range,
      *row_operands(inputs, residual_range, output_range),
      activation=np.int64(activation), quantized=packed.is_quantized,
    )  # fmt: skip
    return y, as_rows(scales, y, output_range)

  return in_one_call(call)
