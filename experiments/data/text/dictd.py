"""Dictionaries in dictd's format: a text, gzipped, and an index of headwords into it."""

import gzip
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_DIGITS = string.ascii_uppercase + string.ascii_lowercase + string.digits + "+/"
_VALUES = {digit: value for value, digit in enumerate(_DIGITS)}
_WHERE = Path("/usr/share/dictd")


class Dictd(NamedTuple):
  """A dictionary.

  Attributes:
    name: of its files.
    text: all of it.
    headwords: of each entry the word, where it starts in the text, in bytes, and its length.
  """

  name: str
  text: bytes
  headwords: list[tuple[str, int, int]]

  def entries(self) -> Iterator[tuple[str, str]]:
    """Headwords and their entries, as the index has them; not those that describe the database."""
    for word, start, length in self.headwords:
      if not word.startswith("00-"):
        yield word, self.text[start : start + length].decode(errors="replace")


def read_dictd(name: str, folder: str | None = None) -> Dictd:
  """Reads `NAME.dict.dz` and `NAME.index`.

  Args:
    name: of the files.
    folder: that holds them. Default: `/usr/share/dictd`, where Debian and Ubuntu put them.

  Raises:
    FileNotFoundError: if they are not there, saying how to get them.
    ValueError: if they are damaged.
  """
  place = Path(folder) if folder else _WHERE
  paths = place / f"{name}.dict.dz", place / f"{name}.index"
  if missing := [path for path in paths if not path.exists()]:
    raise FileNotFoundError(
      f"There is no {missing[0]}. Debian and Ubuntu have it, apt-get install dict-{name} (into "
      f"{_WHERE}); else give the folder that holds {name}.dict.dz and {name}.index, in a config as "
      "config.data.data_dir."
    )
  try:
    text = gzip.decompress(paths[0].read_bytes())
  except (OSError, EOFError) as error:
    raise ValueError(f"{paths[0]} is damaged ({error}): copy it again.") from error
  index = []
  for number, line in enumerate(paths[1].read_text(errors="replace").splitlines(), start=1):
    try:
      word, start, length = line.split("\t")[:3]
      entry = word, decode(start), decode(length)
    except (KeyError, ValueError) as error:
      raise ValueError(f"{paths[1]}, line {number}, is no entry: {line[:80]!r}.") from error
    if entry[1] + entry[2] > len(text):
      raise ValueError(
        f"{paths[1]}, line {number}, points beyond the {len(text):,} bytes of {paths[0]}: they are "
        "of different versions."
      )
    index.append(entry)
  return Dictd(name, text, index)


def decode(number: str) -> int:
  """A number in dictd's base 64, most significant digit first; KeyError if it is none."""
  value = 0
  for digit in number:
    value = 64 * value + _VALUES[digit]
  return value
