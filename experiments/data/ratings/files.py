"""Files of ratings: a line for each, `user item rating time`.

That is `u.data` of MovieLens 100k (tabs), `ratings.dat` of 1M and 10M (`::`), `ratings.csv` of
later ones (commas, with a header), and whatever else has these four columns.
"""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

_NAMES = {
  "user": re.compile(r"user\w*|reviewer\w*"),
  "item": re.compile(r"(item|movie|product|book|track|song|artist|business|\w*asin)\w*"),
  "rating": re.compile(r"rating\w*|score\w*|stars|overall"),
  "time": re.compile(r"time\w*|unix\w*|date\w*"),
}


class Ratings(NamedTuple):
  """Ratings in the order of their file, `N` of them.

  Attributes:
    users: `[N]` int32, numbered in the order in which they come.
    items: `[N]` int32, likewise.
    values: `[N]` float64.
    times: `[N]` float64, in the file's unit.
    user_names: as the file has them, by number.
    item_names: likewise.
  """

  users: np.ndarray
  items: np.ndarray
  values: np.ndarray
  times: np.ndarray
  user_names: tuple[str, ...]
  item_names: tuple[str, ...]


def read_ratings(path: Path) -> Ratings:
  """Reads a file of ratings.

  Args:
    path: of text in UTF-8. Columns are separated by `::`, a tab, a comma or spaces, whichever the
      first line has. If that is a header, its names say which column is which, and there may be
      others; else there are four: user, item, rating and time. Users and items may be any words,
      rating and time are numbers.

  Raises:
    ValueError: if a line does not have these columns, or a number is none or not finite.
  """
  users: dict[str, int] = {}
  items: dict[str, int] = {}
  found: list[tuple[int, int, float, float]] = []
  width = 0
  places: tuple[int, ...] = (0, 1, 2, 3)
  for number, row in _rows(path):
    if not width:
      width = len(row)
      if not any(map(_is_finite, row)):
        places = _places(path, row)
        continue
      if width != len(_NAMES):
        raise ValueError(
          f"{path}, line {number}, has {width} columns, {' | '.join(row)[:80]!r}; without a header "
          "there must be four, user, item, rating and time, separated by '::', tabs, commas or "
          "spaces."
        )
    if len(row) != width:
      raise ValueError(
        f"{path}, line {number}, has {len(row)} columns, {' | '.join(row)[:80]!r}; the first line "
        f"has {width}."
      )
    user, item, value, time = (row[place] for place in places)
    if not (_is_finite(value) and _is_finite(time)):
      raise ValueError(
        f"{path}, line {number}, has the rating {value!r} and the time {time!r}; both must be "
        "finite numbers (of a date its Unix time)."
      )
    who, what = users.setdefault(user, len(users)), items.setdefault(item, len(items))
    found.append((who, what, float(value), float(time)))
  if not found:
    raise ValueError(f"{path} has no ratings: each is a line of user, item, rating and time.")
  numbers = [np.array(column) for column in zip(*found, strict=True)]
  who_did, what_was = (column.astype(np.int32) for column in numbers[:2])
  return Ratings(who_did, what_was, numbers[2], numbers[3], tuple(users), tuple(items))


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
  """The lines that are not empty, with their numbers, in columns."""
  with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
    separator = ""
    for number, line in enumerate(lines, start=1):
      line = line.rstrip("\r\n")
      if not line.strip():
        continue
      separator = separator or next((s for s in ("::", "\t", ",") if s in line), " ")
      if separator == ",":
        row = next(csv.reader([line]))
      else:
        row = line.split() if separator == " " else line.split(separator)
      yield number, [field.strip() for field in row]


def _places(path: Path, header: list[str]) -> tuple[int, ...]:
  """Which columns are user, item, rating and time."""
  plain = [name.strip('"').lower() for name in header]
  fitting = {
    what: [i for i, name in enumerate(plain) if names.fullmatch(name)]
    for what, names in _NAMES.items()
  }
  if wrong := [what for what, columns in fitting.items() if len(columns) != 1]:
    raise ValueError(
      f"{path} begins with {' | '.join(header)[:80]!r}, which names "
      f"{len(fitting[wrong[0]]) or 'no'} columns as {wrong[0]}; there must be one each of user, "
      "item (or movie, product, asin), rating (or score) and time: change the header, or remove it "
      "and keep these four columns."
    )
  return tuple(columns[0] for columns in fitting.values())


def _is_finite(text: str) -> bool:
  try:
    return math.isfinite(float(text))
  except ValueError:
    return False
