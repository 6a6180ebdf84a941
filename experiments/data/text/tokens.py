"""Text as numbers: characters, or byte pairs by the `tokenizers` library."""

from typing import Any, Protocol

import numpy as np


class Tokenizer(Protocol):
  """Text to tokens and back."""

  @property
  def lengths(self) -> np.ndarray:
    """Characters of each token, `[vocab_size]` float32."""

  def encode(self, text: str) -> np.ndarray:
    """Tokens of a text, `[N]` int32."""

  def decode(self, tokens: np.ndarray) -> str:
    """The text of tokens."""


class Characters:
  """Every character is a token, in the order of their code points.

  Attributes:
    alphabet: the characters.
  """

  def __init__(self, text: str):
    """Takes the characters of a text for the alphabet."""
    self.alphabet = sorted(set(text))
    self._codes = np.array([ord(x) for x in self.alphabet], np.uint32)

  @property
  def lengths(self) -> np.ndarray:
    """Ones."""
    return np.ones(len(self.alphabet), np.float32)

  def encode(self, text: str) -> np.ndarray:
    """Tokens of a text, `[N]` int32.

    Raises:
      ValueError: if it has a character that the alphabet lacks.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    tokens = np.minimum(np.searchsorted(self._codes, codes), len(self._codes) - 1)
    if unknown := codes[self._codes[tokens] != codes].tolist():
      raise ValueError(
        f"{chr(unknown[0])!r} is not among the {len(self.alphabet)} characters that are known: "
        f"{''.join(self.alphabet)!r}."
      )
    return tokens.astype(np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    """The text of tokens."""
    return "".join(self.alphabet[i] for i in tokens)


class BytePairs:
  """Byte-pair encoding learnt from a text (Sennrich et al., arXiv:1508.07909), as GPT-2 has it."""

  def __init__(self, text: str, vocab_size: int):
    """Learns the pairs.

    Raises:
      ModuleNotFoundError: if `tokenizers` is not installed.
      ValueError: if the vocabulary is smaller than the 256 bytes.
    """
    if vocab_size <= 256:
      raise ValueError(f"vocab_size is {vocab_size}; byte pairs need more than the 256 bytes.")
    try:
      import tokenizers
    except ModuleNotFoundError as error:
      raise ModuleNotFoundError(
        "Byte pairs need the package tokenizers: pip install tokenizers, or take "
        "config.data.kwargs.tokenizer=characters."
      ) from error
    self._tokenizer: Any = tokenizers.ByteLevelBPETokenizer()
    lines = text.splitlines(keepends=True)
    self._tokenizer.train_from_iterator(lines, vocab_size=vocab_size, show_progress=False)

  @property
  def lengths(self) -> np.ndarray:
    """Characters of each token; a byte of a longer character counts as one."""
    size = self._tokenizer.get_vocab_size()
    return np.array([len(self._tokenizer.id_to_token(i)) for i in range(size)], np.float32)

  def encode(self, text: str) -> np.ndarray:
    """Tokens of a text, `[N]` int32."""
    parts = self._tokenizer.encode_batch(text.splitlines(keepends=True))
    return np.concatenate([np.asarray(part.ids, np.int32) for part in parts])

  def decode(self, tokens: np.ndarray) -> str:
    """The text of tokens."""
    return self._tokenizer.decode([int(i) for i in tokens])
