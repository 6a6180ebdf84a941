"""The reverse dictionary (Hill et al. 2016): a definition in, its word out.

Definitions are WordNet's glosses and GCIDE's own. Tested are held-out glosses of words that were
seen in training by another definition.
"""

import collections
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.data.text.dictd import Dictd
from experiments.data.text.wordnet import read_synsets

_SOURCE = re.compile(
  r"\[(WordNet[^\]]*|\d{4} Webster|Webster[^\]]*|PJC|Century[^\]]*|[A-Z]{2,4})\]"
)
_WORD = re.compile(r"[a-z]+")
_FEWEST = 3  # words of a definition
_ALIKE = 0.8  # share of words in common (Jaccard) from which two definitions count as one


class Definition(NamedTuple):
  """Words that a text defines.

  Attributes:
    words: lower-case.
    text: words of the definition, lower-case, without those that it defines.
  """

  words: tuple[str, ...]
  text: tuple[str, ...]


class ReverseDictionary(NamedTuple):
  """Definitions in two parts.

  Attributes:
    train: to train on.
    test: to test on, each of words that the former have.
  """

  train: list[Definition]
  test: list[Definition]


def read_wordnet(folder: str | None = None) -> list[Definition]:
  """The glosses of WordNet's synsets, without their examples; see `read_synsets`."""
  return [d for synset in read_synsets(folder) for d in _definition(synset.words, synset.gloss)]


def read_gcide(dictionary: Dictd) -> list[Definition]:
  """GCIDE's own definitions: those that do not say that they are WordNet's.

  Args:
    dictionary: from `read_dictd`.
  """
  words_of: dict[tuple[int, int], list[str]] = {}
  for word, start, length in dictionary.headwords:
    if not word.startswith("00-"):
      words_of.setdefault((start, length), []).append(word.lower())
  found = []
  for (start, length), words in words_of.items():
    entry = dictionary.text[start : start + length].decode(errors="replace")
    _, _, body = entry.partition("\n   ")  # after the headword's own lines
    begin = 0
    for match in _SOURCE.finditer(body):
      text, begin = body[begin : match.start()], match.end()
      if not match[1].startswith("WordNet"):
        found += _definition(words, _first_sense(text))
  return found


def _first_sense(text: str) -> str:
  """A definition without synonyms, notes, quotations and their authors, marks and usage."""
  text = re.split(r"\n\s*(?:Syn:|Note:|\{)|--[A-Z]", text)[0]
  return re.sub(r'\[[^\]]*\]|\([^)]*\)|"[^"]*"|\\[^\\]*\\', " ", text)


def _definition(words: Sequence[str], text: str) -> list[Definition]:
  """A definition, if enough words are left; as a list."""
  own = {part for word in words for part in _WORD.findall(word)}
  kept = tuple(word for word in _WORD.findall(text.lower()) if word not in own)
  return [Definition(tuple(dict.fromkeys(words)), kept)] if len(set(kept)) >= _FEWEST else []


def most_defined(
  definitions: Sequence[Definition], others: Sequence[Definition], num_words: int
) -> tuple[list[Definition], list[Definition]]:
  """Definitions of the words that have the most of them, in both together.

  Args:
    definitions: of one dictionary.
    others: of the other.
    num_words: to keep; of words with as many definitions the first of the alphabet.

  Returns:
    Those of the former and of the latter, other words left out.
  """
  counts = collections.Counter(word for one in (*definitions, *others) for word in one.words)
  kept = set(sorted(counts, key=lambda word: (-counts[word], word))[:num_words])
  parts = []
  for part in (definitions, others):
    named = [one._replace(words=tuple(w for w in one.words if w in kept)) for one in part]
    parts.append([one for one in named if one.words])
  return parts[0], parts[1]


def split(
  wordnet: Sequence[Definition], gcide: Sequence[Definition], *, num_test: int, seed: int
) -> ReverseDictionary:
  """Holds out glosses whose words GCIDE defines in other words.

  A gloss is passed over if a definition of one of its words elsewhere has eight tenths of their
  words in common. What is left to train on has none of the held-out texts.

  Args:
    wordnet: glosses.
    gcide: definitions to train on, in any case.
    num_test: glosses to hold out.
    seed: of the choice.

  Raises:
    ValueError: if there are not so many.
  """
  others: dict[str, list[frozenset[str]]] = collections.defaultdict(list)
  for one in gcide:
    for word in one.words:
      others[word].append(frozenset(one.text))
  glosses: dict[str, list[int]] = collections.defaultdict(list)
  for i, one in enumerate(wordnet):
    for word in one.words:
      glosses[word].append(i)
  held: set[int] = set()
  test: list[Definition] = []
  for i in np.random.default_rng(seed).permutation(len(wordnet)):
    if len(test) == num_test:
      break
    gloss = wordnet[i]
    seen = tuple(word for word in gloss.words if word in others)
    rivals = [text for word in seen for text in others[word]]
    rivals += [frozenset(wordnet[j].text) for w in gloss.words for j in glosses[w] if j != i]
    if seen and not any(_alike(frozenset(gloss.text), text) for text in rivals):
      held.add(int(i))
      test.append(Definition(seen, gloss.text))
  if len(test) < num_test:
    raise ValueError(
      f"Of {len(wordnet)} glosses {len(test)} can be held out, not {num_test}: their words need "
      "another definition in GCIDE. Ask for fewer."
    )
  texts = {one.text for one in test}
  left = [one for i, one in enumerate(wordnet) if i not in held]
  return ReverseDictionary([one for one in (*gcide, *left) if one.text not in texts], test)


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
  return len(one & other) >= _ALIKE * len(one | other)


def write_xmc(dictionary: ReverseDictionary, folder: Path, *, fewest: int = 2) -> dict[str, int]:
  """Writes `train.txt` and `test.txt` as the Extreme Classification Repository's bags of words.

  Beside them `labels.txt` and `features.txt`: what the numbers mean, a line each. The value of a
  feature is its inverse document frequency in training.

  Args:
    dictionary: the definitions.
    folder: that is made.
    fewest: training definitions that a word must stand in to be a feature.

  Returns:
    How many there are of each.
  """
  train, test = dictionary
  labels = _numbers(word for one in train for word in one.words)
  counts = collections.Counter(word for one in train for word in set(one.text))
  features = _numbers(word for word, count in counts.items() if count >= fewest)
  value = {word: math.log(len(train) / counts[word]) for word in features}
  folder.mkdir(parents=True, exist_ok=True)
  for name, part in (("train", train), ("test", test)):
    lines = [f"{len(part)} {len(features)} {len(labels)}"]
    for one in part:
      numbers = sorted({labels[word] for word in one.words})
      known = sorted({features[word]: value[word] for word in one.text if word in features}.items())
      words = " ".join(f"{i}:{x:.4f}" for i, x in known)
      lines.append(f"{','.join(map(str, numbers))} {words}")
    (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
  for name, table in (("labels", labels), ("features", features)):
    (folder / f"{name}.txt").write_text("".join(f"{x}\n" for x in table), encoding="utf-8")
  sizes = {"train": len(train), "test": len(test)}
  return sizes | {"features": len(features), "labels": len(labels)}


def _numbers(words: Iterable[str]) -> dict[str, int]:
  return {word: i for i, word in enumerate(sorted(set(words)))}
