"""The bytes of a safetensors file, read without trust: header, names, shapes, arrays."""

import json
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

MAX_HEADER_BYTES = 8 * 2**20
"""Limit on the header, which holds all names, shapes and metadata."""

DTYPES = {
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
"""Types that arrays may have, by the name of the format."""


def split(data: bytes) -> tuple[dict[str, Any], memoryview]:
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
  header = decode_json(data[8 : 8 + size], "its header")
  return as_object(header, "its header"), memoryview(data)[8 + size :]


def read_arrays(header: dict[str, Any], body: memoryview) -> dict[str, np.ndarray]:
  """The arrays by name, from entries that must cover the bytes once, without gap or overlap."""
  arrays, spans = {}, []
  for name, entry in header.items():
    entry = as_object(entry, f"the entry of {name!r}", {"dtype", "shape", "data_offsets"})
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
      raise ValueError(f"{name!r} has type {entry['dtype']!r}, not one of {', '.join(DTYPES)}.")
    dtype, shape = DTYPES[entry["dtype"]], as_sizes(entry["shape"], f"the shape of {name!r}")
    offsets = as_sizes(entry["data_offsets"], f"the offsets of {name!r}")
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


def decode_json(text: bytes, what: str) -> Any:
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


def as_object(value: Any, what: str, keys: set[str] | None = None) -> dict[str, Any]:
  """The value, if it is a JSON object with exactly these keys."""
  if not isinstance(value, dict) or (keys is not None and set(value) != keys):
    wanted = "" if keys is None else f" with the keys {', '.join(sorted(keys))}"
    raise ValueError(f"{what} must be an object{wanted}.")
  return value


def as_sizes(value: Any, what: str) -> tuple[int, ...]:
  """The value as a tuple, if it is a short list of integers from 0 to 2**53."""
  fits = isinstance(value, list) and len(value) <= 32
  if not fits or any(type(n) is not int or not 0 <= n <= 2**53 for n in value):
    raise ValueError(f"{what} must be a list of non-negative integers.")
  return tuple(value)
