"""The native CPU kernels: finds and loads the library, packs layers, calls it through `jax.ffi`.

The library holds kernels for several CPU targets and chooses one when it is first used: "avx512"
(with F, BW, VL, DQ), "avx2" (with FMA) or "generic"; the environment variable `SRIGL_ISA` forces
one. `SRIGL_KERNELS_LIB` names another library file, or the folder that holds one.

Numbers: weights and indices are exact unless `pack` is told otherwise, sums are float32. The order
of summation depends on target, batch size and pattern, not on the number of threads. Inf or NaN in
an input reaches every neuron that uses this input; on AVX-512, at small batch sizes, it may also
turn neurons that do not use it into NaN (as a dense product would), because packets are padded with
zero weights.
"""

import ctypes
import dataclasses
import functools
import importlib
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.batching import map_calls

ACTIVATIONS = {None: 0, "relu": 1, "gelu": 2}
"""Activations the kernel applies, and how it calls them; gelu is the tanh form, as in Flax."""

_FILE = "libsrigl_cpu.so"

# Handlers of the library.
MATMUL = "srigl_condensed_matmul"
CONV = "srigl_condensed_conv"
INPUT_GRADIENT = "srigl_input_gradient"
VALUES_GRADIENT = "srigl_values_gradient"
PACK_VALUES = "srigl_pack_values"


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


def is_available() -> bool:
  """True when the library was found and loaded."""
  return _library() is not None


def isa() -> str:
  """Name of the CPU target in use: "generic", "avx2" or "avx512".

  Raises:
    RuntimeError: if the library is not there.
  """
  return require().srigl_isa().decode()


def set_isa(name: str) -> None:
  """Uses another CPU target from now on, in this process.

  Raises:
    ValueError: if the name is unknown or the CPU does not support the target.
    RuntimeError: if the library is not there.
  """
  if not require().srigl_set_isa(name.encode()):
    raise ValueError(f"CPU target {name!r} is unknown, or this CPU does not support it.")


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
  library = require()
  values = np.ascontiguousarray(values)
  if values.ndim != 2 or np.shape(indices) != values.shape or np.shape(active) != values.shape[:1]:
    raise ValueError(
      "`values`, `indices` and `active` must have the shapes (A, K), (A, K) and (A,), not "
      f"{values.shape}, {np.shape(indices)} and {np.shape(active)}."
    )
  is_bfloat16 = values.dtype == jnp.bfloat16
  if not is_bfloat16 and values.dtype != np.float32:
    raise ValueError(f"`values` must be float32 or bfloat16, not {values.dtype}.")
  columns, neurons = as_int32("indices", indices), as_int32("active", active)
  message = ctypes.create_string_buffer(256)
  windows = 0 if isa() != "avx512" else 1 if exact else 2
  result = library.srigl_pack(
    values.ctypes.data, columns.ctypes.data, neurons.ctypes.data, is_bfloat16, *values.shape,
    in_features, out_features, windows, message, len(message),
  )  # fmt: skip
  dtypes = (np.dtype(np.uint8), values.dtype, np.dtype(np.uint8), values.dtype)
  arrays = take_packed(library, result, message.value.decode(), dtypes)
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
  require()
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
      MATMUL, jax.ShapeDtypeStruct((*x.shape[:-1], out_features), jnp.float32)
    )(
      x, packed.tile_pattern, packed.tile_values, packed.window_pattern, packed.window_values, bias,
      activation=np.int64(activation),
    )  # fmt: skip

  return map_call(call)


def map_call(function: Callable[[Array, Packed, Array], Array]) -> Any:
  """Gives `(x, packed, bias) -> y` a rule for vmap: if only x is batched this is one call (x has
  any leading axes), else a loop of calls.
  """
  call = jax.custom_batching.custom_vmap(function)

  @call.def_vmap
  def rule(axis_size: int, batched: Any, x: Array, packed: Packed, bias: Array) -> Any:
    if not any(jax.tree.leaves(batched[1:])):
      return call(x, packed, bias), True
    return map_calls(call, batched, (x, packed, bias)), True

  return call


def take_packed(
  library: Any, result: int | None, message: str, dtypes: Sequence[np.dtype]
) -> list[np.ndarray]:
  """Copies four arrays out of what the library packed, and frees that.

  Raises:
    ValueError: with the message, if there is no result.
  """
  if not result:
    raise ValueError(f"Cannot pack this layer: {message}.")
  try:
    sizes = (ctypes.c_int64 * 4)()
    library.srigl_pack_sizes(result, sizes)
    arrays = [
      np.empty(size // dtype.itemsize, dtype) for size, dtype in zip(sizes, dtypes, strict=True)
    ]
    library.srigl_pack_copy(result, (ctypes.c_void_p * 4)(*(a.ctypes.data for a in arrays)))
  finally:
    library.srigl_pack_free(result)
  return arrays


def as_int32(name: str, array: Any) -> np.ndarray:
  """The integers as int32, contiguous; a ValueError where they are not, or do not fit."""
  array = np.asarray(array)
  if not np.issubdtype(array.dtype, np.integer):
    raise ValueError(f"`{name}` must be integers, not {array.dtype}.")
  if array.size and not -1 <= array.min() <= array.max() < 2**31:
    raise ValueError(f"`{name}` must lie in 0..2**31 - 1.")
  return np.ascontiguousarray(array, np.int32)


def require() -> Any:
  """The library.

  Raises:
    RuntimeError: if it is not there.
  """
  library = _library()
  if library is None:
    raise RuntimeError(
      f"The native CPU kernels ({_FILE}) are not installed: `pip install .` in the repository "
      "builds them, given a C++ compiler; or set SRIGL_KERNELS_LIB to the library."
    )
  jax.ffi.register_ffi_target(CONV, jax.ffi.pycapsule(library.srigl_condensed_conv), platform="cpu")
  return library


@functools.cache
def _library() -> Any:
  """The loaded library with its handlers registered, or None when there is none."""
  for path in _candidates():
    if path.is_file():
      try:
        return _load(path)
      except AttributeError as error:  # it lacks a function
        raise OSError(f"{path} is of another version than this package: reinstall.") from error
  return None


def _candidates() -> list[pathlib.Path]:
  override = os.environ.get("SRIGL_KERNELS_LIB")
  if override:
    path = pathlib.Path(override)
    return [path / _FILE if path.is_dir() else path]
  # An editable install keeps the library in site-packages, the sources elsewhere.
  package = importlib.import_module("srigl_kernels")
  folders = [pathlib.Path(folder) for folder in package.__path__]
  folders += [pathlib.Path(folder) / package.__name__ for folder in sys.path]
  return [folder / _FILE for folder in folders]


def _load(path: pathlib.Path) -> Any:
  library = ctypes.CDLL(str(path))
  pointer, int32, int64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
  library.srigl_isa.restype = ctypes.c_char_p
  library.srigl_set_isa.argtypes = [ctypes.c_char_p]
  library.srigl_pack.restype = pointer
  library.srigl_pack.argtypes = [
    pointer, pointer, pointer, int32, int64, int64, int64, int64, int32, ctypes.c_char_p, int64,
  ]  # fmt: skip
  library.srigl_pack_sizes.argtypes = [pointer, pointer]
  library.srigl_pack_copy.argtypes = [pointer, pointer]
  library.srigl_pack_free.argtypes = [pointer]
  library.srigl_pack_training.restype = pointer
  library.srigl_pack_training.argtypes = [
    pointer, pointer, int64, int64, int64, int64, ctypes.c_char_p, int64,
  ]  # fmt: skip
  for name in (MATMUL, CONV, INPUT_GRADIENT, VALUES_GRADIENT, PACK_VALUES):
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
  return library
