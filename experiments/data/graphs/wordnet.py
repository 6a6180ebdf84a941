"""WordNet as a graph of synsets: typed edges are pointers, features the words of glosses."""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from experiments.common.registry import check_arguments, choose
from experiments.data.graphs.dataset import Graph, check_neighbours, split_nodes
from experiments.data.text.wordnet import PARTS, Synset, read_synsets

_WORD = re.compile(r"[a-z0-9]+")
_FILES = 45  # lexicographer files
_TARGETS = ("lexicographer_file", "part_of_speech")


def wordnet_graph(
  *,
  data_dir: str | None = None,
  target: str = "lexicographer_file",
  num_features: int = 512,
  neighbours: Sequence[int] = (8, 4),
  held_out: str = "test",
  split_seed: int = 0,
) -> Graph:
  """Reads WordNet's database files.

  A node knows the words of its definition and nothing else: neither its lexicographer file, which
  stands beside it in the file, nor the words that it defines, nor its place. Kinds of edges do tell
  parts of speech apart.

  Args:
    data_dir: folder of `data.noun` and so on. Default: `/usr/share/wordnet`.
    target: what nodes are classified by: `"lexicographer_file"`, 45 fields of meaning
      (`noun.animal`, `verb.motion`, ...), or `"part_of_speech"`, 4.
    num_features: of the words of a gloss, hashed.
    neighbours: how many to sample at each hop.
    held_out: `"test"` or `"validation"`, see `split_nodes`.
    split_seed: of the split.

  Raises:
    FileNotFoundError: if they are not there, saying how to get them.
    ValueError: if a file is damaged, or an argument out of range.
  """
  if target not in _TARGETS:
    raise ValueError(
      f"config.data.kwargs.target is {target!r}; it must be one of {', '.join(_TARGETS)}."
    )
  if num_features < 1:
    raise ValueError(f"config.data.kwargs.num_features is {num_features}; it must be 1 or more.")
  return make_graph(
    list(read_synsets(data_dir)), target, num_features, neighbours, held_out, split_seed
  )


def make_graph(
  synsets: Sequence[Synset],
  target: str,
  num_features: int,
  neighbours: Sequence[int],
  held_out: str,
  split_seed: int,
) -> Graph:
  """The graph of some synsets; arguments as `wordnet_graph`'s.

  Raises:
    ValueError: if one points to what is not among them, or is of no lexicographer file.
  """
  numbers = {(one.part, one.offset): i for i, one in enumerate(synsets)}
  symbols = sorted({symbol for one in synsets for symbol, _, _ in one.pointers})
  kinds = {symbol: i for i, symbol in enumerate(symbols)}
  targets, relations = [], []
  for one in synsets:
    if not 0 <= one.lexicographer_file < _FILES:
      raise ValueError(
        f"The synset {one.offset} of data.{PARTS[one.part]} is of lexicographer file "
        f"{one.lexicographer_file}; they lie in 0..{_FILES - 1}."
      )
    for symbol, part, offset in one.pointers:
      if (part, offset) not in numbers:
        raise ValueError(
          f"The synset {one.offset} of data.{PARTS[one.part]} points to {offset} of part of speech "
          f"{part!r}, which is not there: the files are of different versions."
        )
      targets.append(numbers[part, offset])
      relations.append(kinds[symbol])
  of_file = target == "lexicographer_file"
  parts = list(PARTS)
  labels = [one.lexicographer_file if of_file else parts.index(one.part) for one in synsets]
  train, test = split_nodes(len(synsets), seed=split_seed, held_out=held_out)
  return Graph(
    hashed_words([one.gloss for one in synsets], num_features),
    np.cumsum([0, *(len(one.pointers) for one in synsets)]).astype(np.int32),
    np.array(targets or [0], np.int32),
    np.array(relations or [0], np.int32),
    np.array(labels, np.int32),
    train,
    test,
    len(symbols),
    _FILES if of_file else len(PARTS),
    check_neighbours(tuple(neighbours)),
  )


def hashed_words(texts: Sequence[str], num_features: int) -> np.ndarray:
  """Texts as `[N, F]` float16 vectors whose entries have a mean square of 1, or are all 0.

  A word counts by its inverse document frequency, at a place and with a sign of its checksum's.

  Args:
    texts: in any case.
    num_features: `F`.
  """
  words = [_WORD.findall(text.lower()) for text in texts]
  counts = Counter(word for text in words for word in set(text))
  hashes = {word: zlib.crc32(word.encode()) for word in counts}
  value = {
    word: np.log(1 + len(texts) / counts[word]) * (1 if number >> 31 else -1)
    for word, number in hashes.items()
  }
  rows = np.repeat(np.arange(len(texts)), [len(text) for text in words])
  flat = [word for text in words for word in text]
  features = np.zeros((len(texts), num_features), np.float32)
  places = np.array([hashes[word] % num_features for word in flat], np.int64)
  np.add.at(features, (rows, places), np.array([value[word] for word in flat], np.float32))
  norm = np.sqrt((features**2).mean(-1, keepdims=True))
  return (features / np.maximum(norm, 1e-6)).astype(np.float16)


def synthetic_graph(
  *,
  data_dir: str | None = None,
  num_nodes: int = 200,
  num_classes: int = 4,
  num_features: int = 16,
  neighbours: Sequence[int] = (4, 2),
  held_out: str = "test",
) -> Graph:
  """Nodes whose features say little of their class and whose neighbours are of it, for tests."""
  del data_dir
  random = np.random.default_rng(0)
  labels = random.integers(0, num_classes, num_nodes)
  means = random.normal(size=(num_classes, num_features))
  features = 0.5 * means[labels] + random.normal(size=(num_nodes, num_features))
  alike = [np.flatnonzero(labels == label) for label in labels]
  targets = np.concatenate([random.choice(nodes, 3) for nodes in alike])
  train, test = split_nodes(num_nodes, seed=0, held_out=held_out)
  return Graph(
    features.astype(np.float16),
    np.arange(0, 3 * num_nodes + 1, 3, dtype=np.int32),
    targets.astype(np.int32),
    random.integers(0, 2, len(targets)).astype(np.int32),
    labels.astype(np.int32),
    train,
    test,
    2,
    num_classes,
    check_neighbours(tuple(neighbours)),
  )


GRAPHS = {"wordnet": wordnet_graph, "synthetic_graph": synthetic_graph}


def load(name: str, *, data_dir: str | None = None, **kwargs: Any) -> Graph:
  """Loads a graph by name.

  Args:
    name: a key of `GRAPHS`.
    data_dir: folder of its files.
    **kwargs: further arguments of its function.

  Raises:
    ValueError: if a name or an argument is unknown, or a file damaged.
    FileNotFoundError: if a file is not there, saying how to get it.
  """
  make: Any = choose(GRAPHS, name, "config.data.name")
  check_arguments(make, kwargs, reserved=["data_dir"], what=f"config.data.kwargs of {name!r}")
  return make(data_dir=data_dir, **kwargs)
