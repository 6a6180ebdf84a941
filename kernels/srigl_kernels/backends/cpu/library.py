"""The native CPU kernels: finds, loads and registers the library.

The library holds kernels for several CPU targets and chooses one when it is first used: "generic",
"avx2" (with FMA), "avx512" (with F, BW, VL, DQ), and what adds to that products of 8 and 16 bits:
"avx512_vnni" (with VBMI), "avx512_bf16" and "avx512_fp16". The environment variable `SRIGL_ISA`
forces one. `SRIGL_KERNELS_LIB` names another library file, or the folder that holds one.
"""

import ctypes
import functools
import importlib
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

_FILE = "libsrigl_cpu.so"
_INTERFACE = 8  # of `srigl_interface`

# Handlers of the library.
MATMUL = "srigl_condensed_matmul"
CONV = "srigl_condensed_conv"
INPUT_GRADIENT = "srigl_input_gradient"
VALUES_GRADIENT = "srigl_values_gradient"
PACK_VALUES = "srigl_pack_values"
TRAINING_FORWARD = "srigl_training_forward"
TRAINING_INPUT_GRADIENT = "srigl_training_input_gradient"
TRAINING_VALUES_GRADIENT = "srigl_training_values_gradient"
CONV_FORWARD = "srigl_sparse_conv_forward"
CONV_INPUT_GRADIENT = "srigl_sparse_conv_input_gradient"
CONV_VALUES_GRADIENT = "srigl_sparse_conv_values_gradient"
UPDATE_TOPOLOGY = "srigl_update_topology"
ATTENTION = "srigl_attention"
DEPTHWISE_CONV = "srigl_depthwise_conv"
TILED_CONV = "srigl_tiled_conv"
TILED_MAX_POOL = "srigl_tiled_max_pool"
_HANDLERS = (
  *(MATMUL, CONV, INPUT_GRADIENT, VALUES_GRADIENT, PACK_VALUES),
  *(TRAINING_FORWARD, TRAINING_INPUT_GRADIENT, TRAINING_VALUES_GRADIENT),
  *(CONV_FORWARD, CONV_INPUT_GRADIENT, CONV_VALUES_GRADIENT),
  UPDATE_TOPOLOGY,
  ATTENTION,
  DEPTHWISE_CONV,
  TILED_CONV,
  TILED_MAX_POOL,
)

_POINTER, _INT32, _INT64 = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
# Other functions of the library: what each returns, and its arguments.
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
  "srigl_interface": (_INT32, []),
  "srigl_isa": (ctypes.c_char_p, []),
  "srigl_set_isa": (_INT32, [ctypes.c_char_p]),
  "srigl_pack_layer": (
    _POINTER,
    [*[_POINTER] * 3, _INT32, *[_INT64] * 4, *[_INT32] * 2, ctypes.c_char_p, _INT64],
  ),
  "srigl_half_dot_type": (_INT32, []),
  "srigl_dense_share": (ctypes.c_double, []),
  "srigl_pack_dots": (
    _POINTER,
    [*[_POINTER] * 4, _INT32, *[_INT64] * 4, ctypes.c_char_p, _INT64],
  ),
  "srigl_pack_training": (
    _POINTER,
    [*[_POINTER] * 2, *[_INT64] * 4, ctypes.c_char_p, _INT64],
  ),
  "srigl_pack_sizes": (None, [_POINTER, _POINTER]),
  "srigl_pack_copy": (None, [_POINTER, _POINTER]),
  "srigl_pack_free": (None, [_POINTER]),
}


def is_available() -> bool:
  """Whether the library was found and loaded."""
  return _library()[0] is not None


def why_unavailable() -> str:
  """Why there is no library, in a sentence without its full stop; empty if there is one."""
  return _library()[1]


def isa() -> str:
  """Name of the CPU target in use, such as "avx512"; the module lists them.

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
  library, problem = _library()
  if library is None:
    raise RuntimeError(
      f"The native CPU kernels cannot be used: {problem}. `pip install .` in the repository builds "
      "them, given a C++ compiler; or set SRIGL_KERNELS_LIB to the library."
    )
  return library


@functools.cache
def _library() -> tuple[Any, str]:
  """The loaded library with its handlers registered, or None and the problem."""
  for path in _candidates():
    if path.is_file():
      try:
        library = ctypes.CDLL(str(path))
      except OSError as error:
        return None, f"{path} does not load ({error})"
      missing = [name for name in (*_HANDLERS, *_FUNCTIONS) if not hasattr(library, name)]
      if missing:
        return None, f"{path} is of another version than this package, it lacks {missing[0]}"
      if library.srigl_interface() != _INTERFACE:
        return None, f"{path} is of another version than this package"
      return _register(library), ""
  return None, f"{_FILE} is not installed"


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


def _register(library: Any) -> Any:
  for name, (result, arguments) in _FUNCTIONS.items():
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
  for name in _HANDLERS:
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform="cpu")
  return library
