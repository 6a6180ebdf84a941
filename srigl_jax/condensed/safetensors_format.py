"""The bytes of a safetensors file, read without trust: header, names, shapes, arrays.

What is cheap comes first: that it is a file, then its header, which must describe every byte that
follows, and only then those bytes.
"""

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

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


class Entry(NamedTuple):
  """Where an array is among the bytes that follow the header, and what it is."""

  dtype: np.dtype
  shape: tuple[int, ...]
  begin: int
  end: int


CHECKSUM = "sha256"
"""Of the metadata: the key of the checksum."""
_UNKNOWN = "0" * 64


def sign(data: bytes) -> bytes:
  """A file with a checksum: the SHA-256 of all of it, with zeros for the checksum's own digits.

  Args:
    data: as safetensors writes it, with metadata; it would put two entries there in any order.
  """
  size = int.from_bytes(data[:8], "little")
  start, header = b'{"__metadata__":{', data[8 : 8 + size].rstrip(b" ")
  assert header.startswith(start), header[:100]
  header = start + _place(_UNKNOWN) + b"," + header[len(start) :]
  header += b" " * (-len(header) % 8)
  unsigned = len(header).to_bytes(8, "little") + header + data[8 + size :]
  return unsigned.replace(_place(_UNKNOWN), _place(hashlib.sha256(unsigned).hexdigest()), 1)


def check_signature(metadata: Any, head: bytes, body: bytes) -> None:
  """Compares a file with its checksum, if it has one: earlier versions wrote none.

  Args:
    metadata: of the header.
    head: the bytes up to the end of the header.
    body: the bytes after it.

  Raises:
    ValueError: if they differ.
  """
  if not isinstance(metadata, dict) or CHECKSUM not in metadata:
    return
  digest = hashlib.sha256(head.replace(_place(str(metadata[CHECKSUM])), _place(_UNKNOWN), 1))
  digest.update(body)
  if digest.hexdigest() != metadata[CHECKSUM]:
    raise ValueError(
      "its checksum is another than when it was written: it is damaged. Copy it again, or export "
      "it again."
    )


def _place(digits: str) -> bytes:
  """The checksum as it stands in a header; within strings the quotes would be escaped."""
  return f'"{CHECKSUM}":"{digits}"'.encode()


def open_file(path: Path) -> BinaryIO:
  """Opens a file for reading.

  Raises:
    ValueError: if it is a pipe, a device or the like, which may have no end.
    OSError: if it cannot be opened.
  """
  number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
  if not stat.S_ISREG(os.fstat(number).st_mode):
    os.close(number)
    raise ValueError("it is no regular file.")
  return open(number, "rb")


def read_header(file: BinaryIO) -> tuple[bytes, dict[str, Any], int]:
  """The bytes up to the end of the header, the decoded header, and how many bytes follow."""
  num_bytes = os.fstat(file.fileno()).st_size
  head = file.read(8)
  if len(head) < 8:
    raise ValueError(f"it has {len(head)} bytes, fewer than the length of a header takes.")
  size = int.from_bytes(head, "little")
  if size > MAX_HEADER_BYTES:
    raise ValueError(
      f"its header claims {size} bytes; at most {MAX_HEADER_BYTES} are read (a pickle or other "
      "kind of file also looks like this)."
    )
  if size > num_bytes - 8:
    raise ValueError(f"its header claims {size} bytes, but only {num_bytes - 8} follow.")
  head += file.read(size)
  header = decode_json(head[8:], "its header")
  return head, as_object(header, "its header"), num_bytes - len(head)


def read_entries(header: dict[str, Any], num_bytes: int) -> dict[str, Entry]:
  """The entries by name, which must cover the bytes once, without gap or overlap."""
  entries: dict[str, Entry] = {}
  for name, entry in header.items():
    entry = as_object(entry, f"the entry of {name!r}", {"dtype", "shape", "data_offsets"})
    if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
      raise ValueError(f"{name!r} has type {entry['dtype']!r}, not one of {', '.join(DTYPES)}.")
    dtype, shape = DTYPES[entry["dtype"]], as_sizes(entry["shape"], f"the shape of {name!r}")
    offsets = as_sizes(entry["data_offsets"], f"the offsets of {name!r}")
    needed = math.prod(shape) * dtype.itemsize
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= num_bytes:
      raise ValueError(f"{name!r} lies at {offsets}, outside of the {num_bytes} bytes of arrays.")
    if offsets[1] - offsets[0] != needed:
      raise ValueError(
        f"{name!r} of type {entry['dtype']} and shape {shape} needs {needed} bytes, but its "
        f"offsets are {offsets}."
      )
    entries[name] = Entry(dtype, shape, *offsets)
  end = 0
  for span in sorted((entry.begin, entry.end) for entry in entries.values()):
    if span[0] != end:
      raise ValueError(f"arrays overlap or leave a gap at byte {min(end, span[0])}.")
    end = span[1]
  if end != num_bytes:
    raise ValueError(f"{num_bytes - end} bytes follow the last array.")
  return entries


def read_arrays(entries: dict[str, Entry], body: bytes) -> dict[str, np.ndarray]:
  """The arrays by name."""
  arrays = {}
  for name, (dtype, shape, begin, end) in entries.items():
    little = dtype.newbyteorder("<") if dtype.kind != "V" else dtype
    part = memoryview(body)[begin:end]
    if dtype.kind == "b" and np.any(np.frombuffer(part, np.uint8) > 1):
      raise ValueError(f"{name!r} of type BOOL holds a byte that is neither 0 nor 1.")
    arrays[name] = np.frombuffer(part, little).astype(dtype).reshape(shape)
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
