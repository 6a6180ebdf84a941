"""The condensed product by the native CPU kernels: packs layers, and calls the library.

Numbers: weights and indices are exact unless `pack` is told otherwise, sums are float32. The order
of summation depends on target, batch size and pattern, not on the number of threads. Inf or NaN in
an input reaches every neuron that uses this input; on AVX-512, at small batch sizes, it may also
turn neurons that do not use it into NaN (as a dense product would), because packets are padded with
zero weights.
"""

import ctypes
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.batching import in_one_call

ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2}
"""Activations the kernel applies, and how it calls them; gelu is the tanh form, as in Flax."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """A condensed layer as the kernels read it; made by `pack`.

  A pattern is a byte string that kernels check in every call: whatever it holds, no memory out of
  bounds is read or written. Kernels read it in place, so it must not be cast or reordered.

  Attributes:
    tile_pattern: `[bytes]` uint8, the weights' places for batches of any size.
    tile_values: `[weights]` float32 or bfloat16, the weights in that order.
    window_pattern: `[bytes]` uint8, the same for small batches; empty where no kernel reads it.
    window_values: `[weights and padding]`, of the type of `tile_values`.
    in_features: inputs of the layer.
    out_features: neurons of the layer, ablated ones included.
  """

  tile_pattern: Array
  tile_values: Array
  window_pattern: Array
  window_values: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})


def pack(
  values: Any,
  indices: Any,
  active: Any,
  in_features: int,
  out_features: int,
  *,
  exact: bool = True,
) -> Packed:
  """Packs a condensed layer for the kernels: once, where it is made or loaded, outside of jit.

  Args:
    values: `[A, K]` float32 or bfloat16, the weights of the active neurons.
    indices: `[A, K]` integers, the input of each weight; ascending in each row.
    active: `[A]` integers, the active neurons, ascending.
    in_features: inputs of the layer.
    out_features: neurons of the layer, ablated ones included.
    exact: False lets the kernel for small batches on AVX-512 put the place of a float32 weight into
      its lowest five bits, so that it reads a fifth less. It then computes with weights that differ
      from these by up to 2**-19 of their size, next to the smallest and largest float32 by more.
      Nothing changes for zeros, other kernels, bfloat16, or a layer that holds Inf or NaN.

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
  is_bfloat16 = values.dtype == jnp.bfloat16
  if not is_bfloat16 and values.dtype != np.float32:
    raise ValueError(f"`values` must be float32 or bfloat16, not {values.dtype}.")
  columns, neurons = library.as_int32("indices", indices), library.as_int32("active", active)
  message = ctypes.create_string_buffer(256)
  windows = 0 if library.isa() != "avx512" else 1 if exact else 2
  result = native.srigl_pack(
    values.ctypes.data, columns.ctypes.data, neurons.ctypes.data, is_bfloat16, *values.shape,
    in_features, out_features, windows, message, len(message),
  )  # fmt: skip
  dtypes = (np.dtype(np.uint8), values.dtype, np.dtype(np.uint8), values.dtype)
  arrays = library.take_packed(native, result, message.value.decode(), dtypes)
  tile_pattern, tile_values, window_pattern, window_values = map(jnp.asarray, arrays)
  return Packed(
    tile_pattern=tile_pattern,
    tile_values=tile_values,
    window_pattern=window_pattern,
    window_values=window_values,
    in_features=int(in_features),
    out_features=int(out_features),
  )


def matmul(
  x: Array, packed: Packed, bias: Array | None = None, activation: str | None = None
) -> Array:
  """`y[..., active[a]] = activation(sum_j values[a, j] * x[..., indices[a, j]] + bias)`.

  Works under jit, vmap, scan, pmap and shard_map. Has no derivative of its own.

  Args:
    x: `[..., I]` float32 or bfloat16, any leading dimensions.
    packed: the layer.
    bias: `[N]` or None; the output of an ablated neuron is the activation of its bias.
    activation: a name in `ACTIVATIONS`.

  Returns:
    `[..., N]` of x's type; sums, bias and activation are in float32.

  Raises:
    ValueError: if shapes, types or the activation do not fit.
    RuntimeError: if the library is not there.
  """
  library.require()
  x = jnp.asarray(x)
  if x.ndim < 1 or x.shape[-1] != packed.in_features:
    raise ValueError(f"`x` must have shape (..., {packed.in_features}), not {x.shape}.")
  if x.dtype not in (jnp.float32, jnp.bfloat16):
    raise ValueError(f"`x` must be float32 or bfloat16, not {x.dtype}.")
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  bias = jnp.zeros(0) if bias is None else jnp.asarray(bias)
  if bias.shape not in ((packed.out_features,), (0,)):
    raise ValueError(f"`bias` must have shape ({packed.out_features},), not {bias.shape}.")
  y = _batched_call(ACTIVATIONS[activation], packed.out_features)(
    x.astype(jnp.float32), packed, bias.astype(jnp.float32)
  )
  return y.astype(x.dtype)


@functools.cache
def _batched_call(activation: int, out_features: int) -> Any:

  def call(x: Array, packed: Packed, bias: Array) -> Array:
    return jax.ffi.ffi_call(
      library.MATMUL, jax.ShapeDtypeStruct((*x.shape[:-1], out_features), jnp.float32)
    )(
      x, packed.tile_pattern, packed.tile_values, packed.window_pattern, packed.window_values, bias,
      activation=np.int64(activation),
    )  # fmt: skip

  return in_one_call(call)
