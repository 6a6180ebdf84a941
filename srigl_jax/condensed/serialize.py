"""Condensed layers in one safetensors file, read back without trust in what it holds.

The file is an ordinary safetensors file of the arrays `LAYER/values`, `LAYER/indices`,
`LAYER/active` and, where there is one, `LAYER/bias`. Its header's `__metadata__` has an entry
`sha256`, the checksum of the file with zeros for the 64 digits of this entry (files of earlier
versions have none), and one, `srigl_jax`, a JSON object:

    {"version": 1, "layers": {LAYER: {"kernel_shape": [..], "neuron_axes": [..]}}, "metadata": {}}

A file of a whole model holds the arrays of its other layers as well, under their own names. Its
version is 2, and a list of these names stands in the object as `arrays`. A layer whose products are
of 8 or 16 bits has `LAYER/scales` and `LAYER/input_range` where it has them, and an entry
`rounds_inputs` in its description; the version of its file is 3, with or without `arrays`.

Loading decodes JSON and numbers and runs no code. What a file may cost is bounded: the header by
`MAX_HEADER_BYTES`, everything else by the size of the file, of which nothing is read before the
header has accounted for it.
"""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from safetensors.numpy import save

from srigl_jax.condensed.safetensors_format import (
  CHECKSUM,
  DTYPES,
  MAX_HEADER_BYTES,
  as_object,
  as_sizes,
  check_signature,
  decode_json,
  open_file,
  read_arrays,
  read_entries,
  read_header,
  sign,
)
from srigl_jax.condensed.whole_file import write_whole
from srigl_kernels.format import Condensed, check_condensed, make_condensed

VERSIONS = (1, 2, 3)
"""Of the format: of layers, with further arrays, with layers of fewer bits. Others are refused."""

_KEY = "srigl_jax"
_FIELDS = ("values", "indices", "active", "bias", "scales", "input_range")


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
    path: the file, conventionally ending in `.safetensors`; its folder must exist.
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
  if not isinstance(layers, Mapping):
    raise ValueError(
      f"`layers` must be a dict of condensed layers by name, not a {type(layers).__name__}: "
      "split_condensed takes a model apart into one."
    )
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
    if layer.is_reduced:
      described[name]["rounds_inputs"] = layer.rounds_inputs
    fields = {field: getattr(layer, field) for field in _FIELDS}
    tensors |= {f"{name}/{k}": np.ascontiguousarray(v) for k, v in fields.items() if v is not None}
  about = {"version": 1, "layers": described, "metadata": dict(metadata or {})}
  if arrays:
    _add_arrays(tensors, arrays)
    about |= {"version": 2, "arrays": list(arrays)}
  if any("rounds_inputs" in description for description in described.values()):
    about["version"] = 3
  try:
    text = json.dumps(about, allow_nan=False)
    same = json.loads(text) == about
  except (TypeError, ValueError) as error:
    raise ValueError(f"`metadata` must be JSON: {error}") from error
  if not same:
    raise ValueError("`metadata` must be JSON: keys must be strings, sequences lists.")
  data = sign(save(tensors, metadata={_KEY: text}))
  header_bytes = int.from_bytes(data[:8], "little")
  if header_bytes > MAX_HEADER_BYTES:
    raise ValueError(f"The header has {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read.")
  if path.exists() and not overwrite:
    raise FileExistsError(f"{str(path)!r} exists; overwrite=True replaces it.")
  write_whole(path, data)


def load_condensed(path: str | os.PathLike[str]) -> tuple[dict[str, Condensed], dict[str, Any]]:
  """Reads the layers that `save_condensed` wrote; see `load_condensed_file`.

  Returns:
    `(layers, metadata)`, the layers in the order in which they were given.
  """
  file = load_condensed_file(path)
  return file.layers, file.metadata


def load_condensed_file(path: str | os.PathLike[str]) -> CondensedFile:
  """Reads what `save_condensed` wrote, checking every size, index and weight.

  Returns:
    `(layers, arrays, metadata)`, in the order in which they were given.

  Raises:
    ValueError: if the file is not exactly what `save_condensed` writes, or holds an index out of
      range, or a weight that is infinite or NaN, or has another checksum than when it was written.
      The message names the file and the fault.
    OSError: if it cannot be read.
  """
  try:
    with open_file(Path(path)) as file:
      return _parse(file)
  except MemoryError:
    raise OSError(
      errno.ENOMEM, "there is not enough memory for the arrays that it holds", os.fspath(path)
    ) from None
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
    if array.dtype not in DTYPES.values():
      raise ValueError(
        f"Array {name!r} has type {array.dtype}, which a file cannot hold: convert it to one of "
        f"{', '.join(dtype.name for dtype in DTYPES.values())}."
      )
    try:
      _check_finite(array, "values")
    except ValueError as error:
      raise ValueError(f"Array {name!r} cannot be saved: {error}") from error
    tensors[name] = np.ascontiguousarray(array).reshape(array.shape)


def _parse(file: BinaryIO) -> CondensedFile:
  head, header, num_bytes = read_header(file)
  metadata = header.pop("__metadata__", None)
  about = _about(metadata)
  entries = read_entries(header, num_bytes)
  body = file.read(num_bytes)
  if len(body) != num_bytes:
    raise ValueError(f"it ends {num_bytes - len(body)} bytes early.")
  arrays = read_arrays(entries, body)
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
  check_signature(metadata, head, body)
  return CondensedFile(layers, others, about["metadata"])


def _about(metadata: Any) -> dict[str, Any]:
  """The decoded description of the layers."""
  metadata = as_object(metadata, "__metadata__")
  metadata = as_object(metadata, "__metadata__", {_KEY} | (metadata.keys() & {CHECKSUM}))
  if not isinstance(metadata[_KEY], str):
    raise ValueError(f"{_KEY} in __metadata__ must be a string.")
  about = as_object(decode_json(metadata[_KEY].encode(errors="surrogatepass"), _KEY), _KEY)
  version = about.get("version")
  if type(version) is not int or version not in VERSIONS:
    raise ValueError(
      f"its format version is {version!r}; this version of srigl_jax reads "
      f"{' and '.join(map(str, VERSIONS))}."
    )
  with_arrays = version == 2 or (version == 3 and "arrays" in about)
  as_object(about, _KEY, {"version", "layers", "metadata"} | ({"arrays"} if with_arrays else set()))
  names = about.get("arrays", [])
  if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
    raise ValueError("arrays must be a list of names.")
  if len(set(names)) != len(names):
    raise ValueError("arrays names an array twice.")
  for name, description in as_object(about["layers"], "layers").items():
    keys = {"kernel_shape", "neuron_axes"}
    if version == 3 and isinstance(description, dict):
      keys |= {"rounds_inputs"} & {*description}
    as_object(description, f"the description of layer {name!r}", keys)
    if type(description.get("rounds_inputs", False)) is not bool:
      raise ValueError(f"rounds_inputs of layer {name!r} must be true or false.")
    if not name:
      raise ValueError("a layer has an empty name.")
  as_object(about["metadata"], "metadata")
  return about


def _layer(arrays: dict[str, Any], description: dict[str, Any]) -> Condensed:
  missing = [field for field in _FIELDS[:3] if arrays[field] is None]
  if missing:
    raise ValueError(f"its {missing[0]} are missing.")
  shape = as_sizes(description["kernel_shape"], "kernel_shape")
  axes = as_sizes(description["neuron_axes"], "neuron_axes")
  rounds = description.get("rounds_inputs", False)
  if "rounds_inputs" not in description and arrays["scales"] is not None:
    raise ValueError("it has scales, but its description no rounds_inputs.")
  about = {"kernel_shape": shape, "neuron_axes": axes, "rounds_inputs": rounds}
  check_condensed(Condensed(**arrays, **about))  # types, too
  layer = make_condensed(**arrays, **about)
  _check_weights(layer)
  return layer


def _check_weights(layer: Condensed) -> None:
  for field in ("values", "bias"):
    if getattr(layer, field) is not None:
      _check_finite(getattr(layer, field), field)


def _check_finite(array: Any, name: str) -> None:
  if not np.isfinite(np.asarray(array, np.float32)).all():
    raise ValueError(f"its {name} are not all finite.")
