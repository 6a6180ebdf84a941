"""WordNet's database files: synsets, their glosses, and how they point to each other."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_WHERE = Path("/usr/share/wordnet")
PARTS = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
"""Files by part of speech; satellites of adjectives are adjectives."""


class Synset(NamedTuple):
  """Words of one meaning.

  Attributes:
    part: of speech, a key of `PARTS`.
    offset: its number there.
    lexicographer_file: 0 to 44, the field of meaning that it was filed under.
    words: lower-case, with spaces.
    pointers: relation, part and offset of what it points to.
    gloss: its definition, without examples.
  """

  part: str
  offset: int
  lexicographer_file: int
  words: tuple[str, ...]
  pointers: tuple[tuple[str, str, int], ...]
  gloss: str


def read_synsets(folder: str | None = None) -> Iterator[Synset]:
  """The synsets of WordNet, in the order of its files.

  Args:
    folder: that holds `data.noun` and so on. Default: `/usr/share/wordnet`.

  Raises:
    FileNotFoundError: if they are not there, saying how to get them.
    ValueError: if a line is no synset.
  """
  place = Path(folder) if folder else _WHERE
  for part, name in PARTS.items():
    path = place / f"data.{name}"
    if not path.exists():
      raise FileNotFoundError(
        f"There is no {path}. Debian and Ubuntu have it, apt-get install wordnet-base (into "
        f"{_WHERE}); else give the folder of WordNet's database files, in a config as "
        "config.data.data_dir, to experiments.build_reverse_dictionary as --wordnet=FOLDER."
      )
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
      if line.startswith("  "):  # the licence
        continue
      try:
        yield _synset(part, line)
      except (IndexError, ValueError) as error:
        raise ValueError(f"{path}, line {number}, is no synset: {line[:80]!r}.") from error


def _synset(part: str, line: str) -> Synset:
  head, _, gloss = line.partition(" | ")
  fields = head.split()
  after = 4 + 2 * int(fields[3], 16)
  words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ").lower() for word in fields[4:after:2]]
  of = range(after + 1, after + 1 + 4 * int(fields[after]), 4)
  pointers = [(fields[i], fields[i + 2].replace("s", "a"), int(fields[i + 1])) for i in of]
  return Synset(
    part, int(fields[0]), int(fields[1]), tuple(words), tuple(pointers), gloss.partition('; "')[0]
  )
