"""Text to model: a dictionary's, any file's, or one made up for tests."""

import dataclasses
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.common.registry import check_arguments, choose
from experiments.data.input_pipeline import InputPipeline, memory_pipeline
from experiments.data.text.dictd import read_dictd
from experiments.data.text.tokens import BytePairs, Characters, Tokenizer

_PIECE = 4096  # characters; the test text is pieces from everywhere
_TOKENIZERS = ("characters", "byte_pairs")


@dataclasses.dataclass(frozen=True, eq=False)
class Text:
  """Text as tokens, in windows of `length` of them.

  Attributes:
    name: of the data set.
    train: `[N]` uint16.
    test: `[M]` uint16.
    length: tokens of a window, each to be predicted from those before it.
    tokenizer: what they stand for.
  """

  name: str
  train: np.ndarray
  test: np.ndarray
  length: int
  tokenizer: Tokenizer

  @property
  def num_train(self) -> int:
    """Windows of an epoch; each begins somewhere else in every epoch."""
    return len(self.train) // self.length - 1

  @property
  def num_test(self) -> int:
    """Windows of the test text, one after the other."""
    return (len(self.test) - 1) // self.length


def make_text(
  name: str,
  text: str,
  *,
  length: int = 256,
  test_chars: int = 200_000,
  tokenizer: str = "characters",
  vocab_size: int = 2048,
) -> Text:
  """Divides a text and makes tokens of it.

  Args:
    name: of the data set.
    text: all of it.
    length: tokens of a window.
    test_chars: characters to test on, in pieces of 4,096 (or fewer, of a short text) from
      everywhere, whatever the run's seed.
    tokenizer: `"characters"` or `"byte_pairs"`.
    vocab_size: of byte pairs, which are learnt from the training text.

  Raises:
    ValueError: if an argument is out of range, or the text too short.
  """
  if tokenizer not in _TOKENIZERS:
    raise ValueError(
      f"config.data.kwargs.tokenizer is {tokenizer!r}; it must be one of {', '.join(_TOKENIZERS)}."
    )
  if length < 1 or not 0 < test_chars < len(text):
    raise ValueError(
      f"config.data.kwargs.length is {length} and test_chars {test_chars}; the former must be 1 or "
      f"more, the latter lie between 0 and the text's {len(text):,} characters."
    )
  piece = min(_PIECE, test_chars)
  pieces = [text[i : i + piece] for i in range(0, len(text), piece)]
  philox = np.random.Philox(key=np.array([0, 0], np.uint64))
  chosen = set(np.argsort(philox.random_raw(len(pieces)), kind="stable")[: test_chars // piece])
  parts = ["".join(x for i, x in enumerate(pieces) if (i in chosen) == test) for test in (0, 1)]
  made: Tokenizer = (
    Characters(text) if tokenizer == "characters" else BytePairs(parts[0], vocab_size)
  )
  train, test = (made.encode(part).astype(np.uint16) for part in parts)
  data = Text(name, train, test, length, made)
  if len(made.lengths) > 2**16 or data.num_train < 1 or data.num_test < 1:
    raise ValueError(
      f"{len(train):,} tokens to train on and {len(test):,} to test on, of {len(made.lengths)} "
      f"kinds, do not do: windows have {length} tokens, two of them are needed, and at most 65,536 "
      "kinds. Give more text or another config.data.kwargs.length, test_chars or tokenizer."
    )
  return data


def _gcide(*, data_dir: str | None, path: str = "") -> str:
  """The GNU Collaborative International Dictionary of English, 40 million characters."""
  if path:
    raise ValueError(
      f"config.data.kwargs.path is {path!r}, but config.data.name is 'gcide': for a file of your "
      "own it must be 'text'."
    )
  return read_dictd("gcide", data_dir).text.decode(errors="replace")


def _text_file(*, data_dir: str | None, path: str = "") -> str:
  """Any text file in UTF-8."""
  place = Path(data_dir or ".") / path
  if not place.is_file():
    raise FileNotFoundError(f"There is no file {place}: give config.data.kwargs.path.")
  return place.read_text(encoding="utf-8", errors="replace")


def _synthetic_text(*, data_dir: str | None, path: str = "", num_words: int = 2000) -> str:
  """Few words in random order, for tests."""
  del data_dir, path
  words = ["sparse", "networks", "grow", "where", "gradients", "are", "large", "and", "fan", "in"]
  philox = np.random.Philox(key=np.array([0, 1], np.uint64))
  chosen = philox.random_raw(num_words) % np.uint64(len(words))
  return " ".join(words[i] for i in chosen)


TEXTS: dict[str, Callable[..., str]] = {
  "gcide": _gcide,
  "synthetic_text": _synthetic_text,
  "text": _text_file,
}


def load_text(name: str, *, data_dir: str | None = None, **kwargs: Any) -> Text:
  """Loads a text by name.

  Args:
    name: a key of `TEXTS`.
    data_dir: folder of its files; of "gcide" `/usr/share/dictd` by default.
    **kwargs: arguments of `make_text`; `path` of "text", `num_words` of "synthetic_text".

  Raises:
    ValueError: if a name is unknown, or an argument out of range.
    FileNotFoundError: if the files are not there.
  """
  read = choose(TEXTS, name, "config.data.name")
  own = {k: v for k, v in kwargs.items() if k in inspect.signature(read).parameters}
  others = {k: v for k, v in kwargs.items() if k not in own}
  what = f"config.data.kwargs of {name!r}"
  check_arguments(make_text, others, reserved=["name", "text"], what=what)
  return make_text(name, read(data_dir=data_dir, **own), **others)


def text_pipeline(data: Text, *, batch_size: int, eval_batch_size: int, seed: int) -> InputPipeline:
  """Windows of a text: inputs `[B, length]` int32 and targets.

  Targets are `{"tokens": [B, length] int32, "chars": [B] float32}`, what follows each input and how
  many characters that is. A training window starts up to a window later than its place, anew in
  every step.

  Args:
    data: the text.
    batch_size: windows of a training step, in all processes together.
    eval_batch_size: windows of a test batch, in all processes together.
    seed: of the order.
  """
  length = data.length

  def window(tokens: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(tokens, start, length + 1).astype(jnp.int32)

  def split(device_data: Any, windows: jax.Array) -> tuple[jax.Array, Any]:
    targets = windows[:, 1:]
    chars = jnp.asarray(device_data["lengths"])[targets].sum(-1)
    return windows[:, :-1], {"tokens": targets, "chars": chars}

  def train_examples(keys, device_data, index):
    tokens = jnp.asarray(device_data["train"])
    later = jax.vmap(lambda key: jax.random.randint(key, (), 0, length))(keys)
    return split(device_data, jax.vmap(lambda i: window(tokens, i))(index * length + later))

  def test_examples(device_data, index):
    tokens = jnp.asarray(device_data["test"])
    return split(device_data, jax.vmap(lambda i: window(tokens, i))(index * length))

  return memory_pipeline(
    num_train=data.num_train,
    num_test=data.num_test,
    device_data={"train": data.train, "test": data.test, "lengths": data.tokenizer.lengths},
    train_examples=train_examples,
    test_examples=test_examples,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    seed=seed,
  )
