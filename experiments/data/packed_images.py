"""A data set of small JPEG images in one compressed file, to be carried to another machine.

The encoded images are kept, not their pixels: what they share (headers, quantization tables) all
but vanishes in the compression, so that CIFAR-10 takes 20 MB.
"""

import io
import lzma
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from experiments.data.array_cache import Arrays
from experiments.data.crops import decode


def pack(splits: Mapping[str, tuple[Sequence[bytes], Sequence[int]]], path: Path) -> None:
  """Writes encoded images and their labels, by split, to an xz file."""
  arrays = {}
  for split, (images, labels) in splits.items():
    arrays[f"{split}_bytes"] = np.frombuffer(b"".join(images), np.uint8)
    arrays[f"{split}_sizes"] = np.array([len(image) for image in images], np.int32)
    arrays[f"{split}_labels"] = np.array(labels, np.int32)
  content = io.BytesIO()
  np.savez(content, **arrays)  # type: ignore[arg-type]
  part = path.with_suffix(".part")
  part.write_bytes(lzma.compress(content.getvalue()))
  os.replace(part, path)


def unpack(path: Path) -> Arrays:
  """Decodes what `pack` wrote: `{split}_images` uint8 `[N, H, W, C]`, `{split}_labels` int32."""
  with lzma.open(path) as file, np.load(io.BytesIO(file.read()), allow_pickle=False) as content:
    packed = dict(content)
  arrays: Arrays = {}
  with ThreadPoolExecutor() as pool:  # Pillow decodes without Python's lock
    for split in [name.removesuffix("_sizes") for name in packed if name.endswith("_sizes")]:
      data = packed[f"{split}_bytes"]
      parts = np.split(data, np.cumsum(packed[f"{split}_sizes"])[:-1])
      arrays[f"{split}_images"] = np.stack(list(pool.map(_decode, parts)))
      arrays[f"{split}_labels"] = packed[f"{split}_labels"]
  return arrays


def _decode(data: np.ndarray) -> np.ndarray:
  return np.asarray(decode(data.tobytes()))
