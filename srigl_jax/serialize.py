"""Condensed layers in one safetensors file, read back without trust in what it holds.

The file is an ordinary safetensors file of the arrays `LAYER/values`, `LAYER/indices`,
`LAYER/active` and, where there is one, `LAYER/bias`. Its header's `__metadata__` has one entry,
`srigl_jax`, a JSON object:

    {"version": 1, "layers": {LAYER: {"kernel_shape": [..], "neuron_axes": [..]}}, "metadata": {}}

A file of a whole model holds the arrays of its other layers as well, under their own names. Its
version is 2, and a list of these names stands in the object as `arrays`.

Loading decodes JSON and numbers and runs no code. What a file may cost is bounded: the header by
`MAX_HEADER_BYTES`, everything else by the size of the file.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import save

from srigl_kernels.format import Condensed, check_condensed, make_condensed

VERSIONS = (1, 2)
"""Of the format, without and with further arrays; a file of any other is refused."""

MAX_HEADER_BYTES = 8 * 2**20
"""Limit on the header, which holds all names, shapes and metadata."""

_KEY = "srigl_jax"
_FIELDS = ("values", "indices", "active", "bias")
_DTYPES = {
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(jnp.bfloat16),
  "U16": np.dtype(np.uint16),
  "I32": np.dtype(np.int32),
  "BOOL": np.dtype(np.bool_),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "I16": np.dtype(np.int16),
  "U32": np.dtype(np.uint32),
}


class CondensedFile(NamedTuple):
  """What a file holds.

  Attributes:
    layers: condensed layers by name.
    arrays: further arrays by name.
    metadata: as given to `save_condensed`.
  """

  layers: dict[str, Condensed]
  arrays: dict[str, Array]
  metadata: dict[str, Any]


def save_condensed(
  path: str | os.PathLike[str],
  layers: Mapping[str, Condensed],
  metadata: Mapping[str, Any] | None = None,
  *,
  arrays: Mapping[str, Any] | None = None,
  overwrite: bool = False,
) -> None:
  """Writes layers, or all of a model, to a file: complete under its name, or not at all.

  Args:
    path: the file, by custom ending in `.safetensors`; its folder must exist.
    layers: concrete layers by name. Names are not empty.
    metadata: anything JSON can hold, returned by `load_condensed`: the run's configuration,
      commit, accuracy, and what else belongs to the model.
    arrays: what else the model needs by name, such as dense kernels and the statistics of batch
      norms (`split_condensed` gives them): float32, bfloat16, bool or integers of up to 32 bits.
    overwrite: whether an existing file may be replaced.

  Raises:
    FileExistsError: if the file exists, unless `overwrite`.
    ValueError: if a layer is not valid, a weight is infinite or NaN, an array's type or name
      cannot be kept, the metadata is not JSON, or the header would exceed `MAX_HEADER_BYTES`.
  """
  path = Path(path)
  tensors: dict[str, np.ndarray] = {}
  described: dict[str, Any] = {}
  for name, layer in layers.items():
    if not isinstance(name, str) or not name:
      raise ValueError(f"Layer names must be non-empty strings, not {name!r}.")
    try:
      check_condensed(layer)
      _check_weights(layer)
    except ValueError as error:
      raise ValueError(f"Layer {name!r} cannot be saved: {error}") from error
    described[name] = {
      "kernel_shape": list(layer.kernel_shape),
      "neuron_axes": list(layer.neuron_axes),
    }
    fields = {field: getattr(layer, field) for field in _FIELDS}
    tensors |= {f"{name}/{k}": np.ascontiguousarray(v) for k, v in fields.items() if v is not None}
  about = {"version": 1, "layers": described, "metadata": dict(metadata or {})}
  if arrays:
    _add_arrays(tensors, arrays)
    about |= {"version": 2, "arrays": list(arrays)}
  try:
    text = json.dumps(about, allow_nan=False)
    same = json.loads(text) == about
  except (TypeError, ValueError) as error:
    raise ValueError(f"`metadata` must be JSON: {error}") from error
  if not same:
    raise ValueError("`metadata` must be JSON: keys must be strings, sequences lists.")
  data = save(tensors, metadata={_KEY: text})
  header_bytes = int.from_bytes(data[:8], "little")
  if header_bytes > MAX_HEADER_BYTES:
    raise ValueError(f"The header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read.")
  _write(path, data, overwrite=overwrite)


def load_condensed(path: str | os.PathLike[str]) -> tuple[dict[str, Condensed], dict[str, Any]]:
  """Reads the layers that `save_condensed` wrote; see `load_condensed_file`.

  Args:
    path: the file.

  Returns:
    `(layers, metadata)`, the layers in the order in which they were given.
  """
  file = load_condensed_file(path)
  return file.layers, file.metadata


def load_condensed_file(path: str | os.PathLike[str]) -> CondensedFile:
  """Reads what `save_condensed` wrote, checking every size, index and weight.

  Args:
    path: the file.

  Returns:
    `(layers, arrays, metadata)`, in the order in which they were given.

  Raises:
    ValueError: if the file is not exactly what `save_condensed` writes, or holds an index out of
      range, or a weight that is infinite or NaN. The message names the file and the fault.
    OSError: if it cannot be read.
  """
  data = Path(path).read_bytes()
  try:
    return _parse(data)
  except ValueError as error:
    raise ValueError(f"{os.fspath(path)!r} is no valid file of condensed layers: {error}") from None


def _add_arrays(tensors: dict[str, np.ndarray], arrays: Mapping[str, Any]) -> None:
  """Adds arrays that are no layers' to what a file will hold."""
  for name, value in arrays.items():
    if not isinstance(name, str) or not name:
      raise ValueError(f"Array names must be non-empty strings, not {name!r}.")
    if name in tensors or name == "__metadata__":
      raise ValueError(f"An array cannot be called {name!r}: the name is taken. Rename the array.")
    array = np.asarray(value)
    if array.dtype not in _DTYPES.values():
      raise ValueError(
        f"Array {name!r} has type {array.dtype}, which a file cannot hold: convert it to one of "
        f"{', '.join(dtype.name for dtype in _DTYPES.values())}."
      )
    try:
      _check_finite(array, "values")
    except ValueError as error:
      raise ValueError(f"Array {name!r} cannot be saved: {error}") from error
    tensors[name] = np.ascontiguousarray(array).reshape(array.shape)


def _write(path: Path, data: bytes, *, overwrite: bool) -> None:
  """Writes a file beside and renames it."""
  if path.exists() and not overwrite:
    raise FileExistsError(f"{str(path)!r} exists; overwrite=True replaces it.")
  handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(beside, 0o666 & ~mask)  # mkstemp's own are private
    os.replace(beside, path)
  except BaseException:
    os.unlink(beside)
    raise


def _parse(data: bytes) -> CondensedFile:
  header, body = _split(data)
  about = _about(header.pop("__metadata__", None))
  arrays = _arrays(header, body)
  others = {}
  for name in about.get("arrays", ()):
    if name not in arrays:
      raise ValueError(f"array {name!r} is missing.")
    others[name] = jnp.asarray(arrays.pop(name))
    try:
      _check_finite(others[name], "values")
    except ValueError as error:
      raise ValueError(f"array {name!r}: {error}") from None
  layers = {}
  for name, description in about["layers"].items():
    found = {field: arrays.pop(f"{name}/{field}", None) for field in _FIELDS}
    try:
      layers[name] = _layer(found, description)
    except ValueError as error:
      raise ValueError(f"layer {name!r}: {error}") from None
  if arrays:
    raise ValueError(f"array {next(iter(arrays))!r} belongs to no layer.")
  return CondensedFile(layers, others, about["metadata"])


def _split(data: bytes) -> tuple[dict[str, Any], memoryview]:
  """The decoded header, and the bytes that follow it."""
  if len(data) < 8:
    raise ValueError(f"it has {len(data)} bytes, fewer than the length of a header takes.")
  size = int.from_bytes(data[:8], "little")
  if size > MAX_HEADER_BYTES:
    raise ValueError(
      f"its header claims {size} bytes; at most {MAX_HEADER_BYTES} are read (a pickle or other "
      "kind of file also looks like this)."
    )
  if size > len(data) - 8:
    raise ValueError(f"its header claims {size} bytes, but only {len(data) - 8} follow.")
  header = _json(data[8 : 8 + size], "its header")
  return _object(header, "its header"), memoryview(data)[8 + size :]


def _about(metadata: Any) -> dict[str, Any]:
  """The decoded description of the layers."""
  metadata = _object(metadata, "__metadata__", {_KEY})
  if not isinstance(metadata[_KEY], str):
    raise ValueError(f"{_KEY} in __metadata__ must be a string.")
  about = _object(_json(metadata[_KEY].encode(errors="surrogatepass"), _KEY), _KEY)
  version = about.get("version")
  if type(version) is not int or version not in VERSIONS:
    raise ValueError(
      f"its format version is {version!r}; this version of srigl_jax reads "
      f"{' and '.join(map(str, VERSIONS))}."
    )
  _object(about, _KEY, {"version", "layers", "metadata"} | ({"arrays"} if version > 1 else set()))
  names = about.get("arrays", [])
  if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
    raise ValueError("arrays must be a list of names.")
  if len(set(names)) != len(names):
    raise ValueError("arrays names an array twice.")
  for name, description in _object(about["layers"], "layers").items():
    _object(description, f"the description of layer {name!r}", {"kernel_shape", "neuron_axes"})
    if not name:
      raise ValueError("a layer has an empty name.")
  _object(about["metadata"], "metadata")
  return about


def _arrays(header: dict[str, Any], body: memoryview) -> dict[str, np.ndarray]:
  """The arrays by name, from entries that must cover the bytes once, without gap or overlap."""
  arrays, spans = {}, []
  for name, entry in header.items():
    entry = _object(entry, f"the entry of {name!r}", {"dtype", "shape", "data_offsets"})
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in _DTYPES:
      raise ValueError(f"{name!r} has type {entry['dtype']!r}, not one of {', '.join(_DTYPES)}.")
    dtype, shape = _DTYPES[entry["dtype"]], _sizes(entry["shape"], f"the shape of {name!r}")
    offsets = _sizes(entry["data_offsets"], f"the offsets of {name!r}")
    num_bytes = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= len(body):
      raise ValueError(f"{name!r} lies at {offsets}, outside of the {len(body)} bytes of arrays.")
    if offsets[1] - offsets[0] != num_bytes:
      raise ValueError(
        f"{name!r} of type {entry['dtype']} and shape {shape} needs {num_bytes} bytes, but its "
        f"offsets are {offsets}."
      )
    spans.append(offsets)
    little = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    part = body[slice(*offsets)]
    if dtype.kind == "b" and np.any(np.frombuffer(part, np.uint8) > 1):
      raise ValueError(f"{name!r} of type BOOL holds a byte that is neither 0 nor 1.")
    arrays[name] = np.frombuffer(part, little).astype(dtype).reshape(shape)
  end = 0
  for span in sorted(spans):
    if span[0] != end:
      raise ValueError(f"arrays overlap or leave a gap at byte {min(end, span[0])}.")
    end = span[1]
  if end != len(body):
    raise ValueError(f"{len(body) - end} bytes follow the last array.")
  return arrays


def _layer(arrays: dict[str, Any], description: dict[str, Any]) -> Condensed:
  missing = [field for field in _FIELDS[:3] if arrays[field] is None]
  if missing:
    raise ValueError(f"its {missing[0]} are missing.")
  shape = _sizes(description["kernel_shape"], "kernel_shape")
  axes = _sizes(description["neuron_axes"], "neuron_axes")
  check_condensed(Condensed(**arrays, kernel_shape=shape, neuron_axes=axes))  # types, too
  layer = make_condensed(**arrays, kernel_shape=shape, neuron_axes=axes)
  _check_weights(layer)
  return layer


def _check_weights(layer: Condensed) -> None:
  for field in ("values", "bias"):
    if getattr(layer, field) is not None:
      _check_finite(getattr(layer, field), field)


def _check_finite(array: Any, name: str) -> None:
  if not np.isfinite(np.asarray(array, np.float32)).all():
    raise ValueError(f"its {name} are not all finite.")


def _json(text: bytes, what: str) -> Any:
  """Decodes JSON, refusing what JSON leaves open: repeated keys, NaN, other encodings."""

  def unique(pairs):
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
      raise ValueError("a key occurs twice")
    return dict(pairs)

  def constant(name):
    raise ValueError(f"{name} is no number of JSON")

  try:
    return json.loads(text.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{what} is not JSON as written by save_condensed: {error}.") from None


def _object(value: Any, what: str, keys: set[str] | None = None) -> dict[str, Any]:
  """The value, if it is a JSON object with exactly these keys."""
  if not isinstance(value, dict) or (keys is not None and set(value) != keys):
    wanted = "" if keys is None else f" with the keys {', '.join(sorted(keys))}"
    raise ValueError(f"{what} must be an object{wanted}.")
  return value


def _sizes(value: Any, what: str) -> tuple[int, ...]:
  """The value as a tuple, if it is a short list of integers from 0 to 2**53."""
  fits = isinstance(value, list) and len(value) <= 32
  if not fits or any(type(n) is not int or not 0 <= n <= 2**53 for n in value):
    raise ValueError(f"{what} must be a list of non-negative integers.")
  return tuple(value)
