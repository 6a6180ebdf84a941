"""Pieces of C99: literals, arrays, lines of limited width."""

import textwrap
from collections.abc import Iterable

import numpy as np

_WIDTH = 100


class Code:
  """Lines of C with their indentation."""

  def __init__(self, depth: int = 0):
    self.lines: list[str] = []
    self.depth = depth

  def add(self, *lines: str) -> None:
    """Adds lines; a brace at the end of one indents the next, one at the start ends that."""
    for line in lines:
      self.depth -= line.startswith("}")
      self.lines += wrapped("  " * self.depth + line)
      self.depth += line.endswith("{")

  def __str__(self) -> str:
    return "\n".join(self.lines)


def wrapped(line: str) -> list[str]:
  """A line of code on several lines if it is too long; its continuations are indented."""
  if len(line) <= _WIDTH:
    return [line]
  indent = " " * (len(line) - len(line.lstrip()) + 4)
  return textwrap.wrap(
    line,
    _WIDTH,
    subsequent_indent=indent,
    break_long_words=False,
    break_on_hyphens=False,
    drop_whitespace=True,
  )


def number(x: float | int, ctype: str) -> str:
  """A literal: of a float exactly, of an integer in the range of its type."""
  if ctype == "float":
    text = f"{np.float32(x):.9g}"
    return (text if any(c in text for c in ".en") else f"{text}.0") + "f"
  x = int(x)
  if x == -(2**31):
    return "(-2147483647 - 1)"
  return f"{x}LL" if abs(x) >= 2**31 else str(x)


def array(ctype: str, name: str, values: Iterable[float] | np.ndarray) -> str:
  """A constant array."""
  flat = np.ravel(np.asarray(values))
  body = textwrap.fill(
    ", ".join(number(x, ctype) for x in flat),
    _WIDTH,
    initial_indent="  ",
    subsequent_indent="  ",
    break_long_words=False,
    break_on_hyphens=False,
  )
  return f"static const {ctype} {name}[{len(flat)}] = {{\n{body}\n}};"


def unsigned_type(most: int) -> str:
  """The smallest unsigned type that holds a number."""
  return "uint8_t" if most < 2**8 else "uint16_t" if most < 2**16 else "uint32_t"


def loop(variable: str, end: int, step: int = 1, also: str = "") -> str:
  """The head of a loop from 0; `int` has 16 bits on some microcontrollers."""
  ctype = "int" if end < 2**15 else "int32_t"
  by = f"{variable}++" if step == 1 else f"{variable} += {step}"
  return f"for ({ctype} {variable} = 0; {variable} < {end}; {by}{also}) {{"


def identifier(name: str) -> str:
  """A path of a model as part of an identifier."""
  return "".join(c if c.isascii() and c.isalnum() else "_" for c in name).strip("_") or "layer"
