"""Condensed layers in one safetensors file, read back without trust in what it holds.

The file is an ordinary safetensors file of the arrays `LAYER/values`, `LAYER/indices`,
`LAYER/active` and, where there is one, `LAYER/bias`. Its header's `__metadata__` has one entry,
`srigl_jax`, a JSON object:

    {"version": 1, "layers": {LAYER: {"kernel_shape": [..], "neuron_axes": [..]}}, "metadata": {}}

Loading decodes JSON and numbers and runs no code. What a file may cost is bounded: the header by
`MAX_HEADER_BYTES`, everything else by the size of the file.
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save

from srigl_kernels.format import Condensed, check_condensed, make_condensed

VERSION = 1
"""Of the format; a file of any other is refused."""

MAX_HEADER_BYTES = 8 * 2**20
"""Limit on the header, which holds all names, shapes and metadata."""

_KEY = "srigl_jax"
_FIELDS = ("values", "indices", "active", "bias")
_DTYPES = {
  "F32": np.dtype(np.float32),
  "BF16": np.dtype(jnp.bfloat16),
  "U16": np.dtype(np.uint16),
  "I32": np.dtype(np.int32),
}


def save_condensed(
  path: str | os.PathLike[str],
  layers: Mapping[str, Condensed],
  metadata: Mapping[str, Any] | None = None,
  *,
  overwrite: bool = False,
) -> None:
  """Writes layers to a file: complete under its name, or not at all.

  Args:
    path: the file, by custom ending in `.safetensors`; its folder must exist.
    layers: concrete layers by name. Names are not empty.
    metadata: anything JSON can hold, returned by `load_condensed`: the run's configuration,
      commit, accuracy, and what else belongs to the model.
    overwrite: whether an existing file may be replaced.

  Raises:
    FileExistsError: if the file exists, unless `overwrite`.
    ValueError: if a layer is not valid, a weight is infinite or NaN, the metadata is not JSON, or
      the header would exceed `MAX_HEADER_BYTES`.
  """
  path = Path(path)
  tensors: dict[str, np.ndarray] = {}
  described: dict[str, Any] = {}
  for name, layer in layers.items():
    if not isinstance(name, str) or not name:
      raise ValueError(f"Layer names must be non-empty strings, not {name!r}.")
    try:
      check_condensed(layer)
      _check_finite(layer)
    except ValueError as error:
      raise ValueError(f"Layer {name!r} cannot be saved: {error}") from error
    described[name] = {
      "kernel_shape": list(layer.kernel_shape),
      "neuron_axes": list(layer.neuron_axes),
    }
    arrays = {field: getattr(layer, field) for field in _FIELDS}
    tensors |= {f"{name}/{k}": np.ascontiguousarray(v) for k, v in arrays.items() if v is not None}
  about = {"version": VERSION, "layers": described, "metadata": dict(metadata or {})}
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
  """Reads what `save_condensed` wrote, checking every size, index and weight.

  Args:
    path: the file.

  Returns:
    `(layers, metadata)`, the layers in the order in which they were given.

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


def _parse(data: bytes) -> tuple[dict[str, Condensed], dict[str, Any]]:
  header, body = _split(data)
  about = _about(header.pop("__metadata__", None))
  arrays = _arrays(header, body)
  layers = {}
  for name, description in about["layers"].items():
    found = {field: arrays.pop(f"{name}/{field}", None) for field in _FIELDS}
    try:
      layers[name] = _layer(found, description)
    except ValueError as error:
      raise ValueError(f"layer {name!r}: {error}") from None
  if arrays:
    raise ValueError(f"array {next(iter(arrays))!r} belongs to no layer.")
  return layers, about["metadata"]


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
  if type(version) is not int or version != VERSION:
    raise ValueError(
      f"its format version is {version!r}; this version of srigl_jax reads {VERSION}."
    )
  _object(about, _KEY, {"version", "layers", "metadata"})
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
    arrays[name] = np.frombuffer(body[slice(*offsets)], little).astype(dtype).reshape(shape)
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
  _check_finite(layer)
  return layer


def _check_finite(layer: Condensed) -> None:
  for field in ("values", "bias"):
    array = getattr(layer, field)
    if array is not None and not np.isfinite(np.asarray(array, np.float32)).all():
      raise ValueError(f"its {field} are not all finite.")


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
