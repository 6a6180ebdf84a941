"""The files of the Extreme Classification Repository: bags of words, and raw text in JSON lines."""

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_WORD = re.compile(r"[a-z0-9]+")
_HASHED = 2**17  # features of raw text: words by their checksum


class Bags(NamedTuple):
  """Sets of numbers of examples, one after the other (compressed sparse rows).

  Attributes:
    starts: `[N + 1]` int64, where each example's numbers begin.
    items: `[S]` int32.
    values: `[S]` float32, of each item.
  """

  starts: np.ndarray
  items: np.ndarray
  values: np.ndarray

  @property
  def widest(self) -> int:
    """The most numbers of an example."""
    return int(np.diff(self.starts).max(initial=1))

  def padded(self, index: np.ndarray, width: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Items and values of some examples, `[B, width]`; items that are not there are `fill`, 0.

    Of an example that has more, those of the largest values are kept.
    """
    items = np.full((len(index), width), fill, np.int32)
    values = np.zeros((len(index), width), np.float32)
    for row, i in enumerate(index):
      some = slice(self.starts[i], self.starts[i + 1])
      mine, its_values = self.items[some], self.values[some]
      if len(mine) > width:
        chosen = np.sort(np.argsort(-np.abs(its_values), kind="stable")[:width])
        mine, its_values = mine[chosen], its_values[chosen]
      items[row, : len(mine)], values[row, : len(mine)] = mine, its_values
    return items, values


class Split(NamedTuple):
  """Features and labels of examples."""

  features: Bags
  labels: Bags


def read_examples(path: Path) -> tuple[Split, int, int]:
  """Examples of a file, and how many features and labels there are.

  Args:
    path: of raw text if it ends in `.json` or `.json.gz`, else of a bag of words.

  Raises:
    ValueError: if the file is damaged.
  """
  if path.name.endswith((".json", ".json.gz")):
    return _read_json(path)
  with _open(path) as lines:
    header = next(lines, "").split()
    if len(header) != 3 or not all(word.isdecimal() for word in header):
      raise ValueError(
        f"{path} begins with {' '.join(header)[:80]!r}, where a bag of words has three numbers: "
        "examples, features, labels."
      )
    number, *sizes = map(int, header)
    labels: list[list[int]] = []
    features: list[list[tuple[int, float]]] = []
    for i, line in enumerate(lines, start=2):
      first, _, rest = line.rstrip("\n").partition(" ")
      try:
        labels.append([int(x) for x in first.split(",") if x])
        pairs = [x.partition(":") for x in rest.split()]
        features.append([(int(item), float(value)) for item, _, value in pairs])
      except ValueError as error:
        raise ValueError(f"{path}, line {i}, is no example: {line[:80]!r} ({error}).") from error
      _check(path, i, [item for item, _ in features[-1]], labels[-1], sizes)
  if len(labels) != number:
    raise ValueError(f"{path} says that it has {number} examples, but has {len(labels)}.")
  found = Split(bags(features), bags([[(x, 1.0) for x in row] for row in labels]))
  return found, sizes[0], sizes[1]


def _check(path: Path, line: int, items: list[int], labels: list[int], sizes: list[int]) -> None:
  for what, found, size in zip(("feature", "label"), (items, labels), sizes, strict=True):
    if found and not 0 <= min(found) <= max(found) < size:
      wrong = next(x for x in found if not 0 <= x < size)
      raise ValueError(f"{path}, line {line}, has {what} {wrong}; they lie in 0..{size - 1}.")


def _read_json(path: Path) -> tuple[Split, int, int]:
  """Raw text, its words hashed to features."""
  features, labels = [], []
  with _open(path) as lines:
    for i, line in enumerate(lines, start=1):
      try:
        record = json.loads(line)
        targets = [int(x) for x in record["target_ind"]]
      except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}, line {i}, is no example: {line[:80]!r} ({error}).") from error
      text = f"{record.get('title', '')} {record.get('content', '')}".lower()
      words = {zlib.crc32(word.encode()) % _HASHED for word in _WORD.findall(text)}
      features.append([(word, 1.0) for word in sorted(words)])
      labels.append([(x, 1.0) for x in targets])
  most = max((x for row in labels for x, _ in row), default=0)
  return Split(bags(features), bags(labels)), _HASHED, most + 1


def _open(path: Path) -> Any:
  if path.suffix == ".gz":
    return gzip.open(path, "rt", encoding="utf-8")
  return path.open(encoding="utf-8")


def bags(rows: list[list[tuple[int, float]]]) -> Bags:
  """Rows of items with their values, one after the other."""
  starts = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
  pairs = [pair for row in rows for pair in row]
  items = np.array([item for item, _ in pairs], np.int32)
  return Bags(starts, items, np.array([value for _, value in pairs], np.float32))
