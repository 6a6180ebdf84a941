"""What a JSON value must be like for its readers not to stumble over it."""

from collections.abc import Iterable
from typing import Any

Pattern = Any
"""`object` for anything; `float` (any number), `int`, `str`, `bool` or `dict` for a value of that
type; None for null; a tuple for any of its patterns; `[p]` for a list of what fits `p`; `{str: p}`
for an object of what fits `p` under any keys; `{"key": p, ...}` for one with
these keys at least."""


def misfit(value: Any, pattern: Pattern, where: str = "it") -> str | None:
  """Why a value does not fit a pattern, in words; None if it does.

  Args:
    value: as `json.loads` gives it.
    pattern: see `Pattern`.
    where: what the value is called in the answer.
  """
  if pattern is object:
    return None
  if isinstance(pattern, tuple):
    reasons = [misfit(value, p, where) for p in pattern]
    return None if None in reasons else reasons[0]
  if isinstance(pattern, list):
    if not isinstance(value, list):
      return f"{where} is {_shown(value)}, not a list"
    return _first(misfit(x, pattern[0], f"{where}[{i}]") for i, x in enumerate(value))
  if isinstance(pattern, dict):
    if not isinstance(value, dict):
      return f"{where} is {_shown(value)}, not an object"
    if str in pattern:
      return _first(misfit(x, pattern[str], f"{where}.{key}") for key, x in value.items())
    if lacking := [key for key in pattern if key not in value]:
      return f"{where} has no {', '.join(lacking)}"
    return _first(misfit(value[key], p, f"{where}.{key}") for key, p in pattern.items())
  types = {float: (int, float), None: (type(None),)}.get(pattern, (pattern,))
  fits = isinstance(value, types) and (pattern is bool or not isinstance(value, bool))
  return None if fits else f"{where} is {_shown(value)}, not {_NAMES[pattern]}"


_NAMES = {
  float: "a number",
  int: "a whole number",
  str: "a string",
  bool: "true or false",
  dict: "an object",
  None: "null",
}


def _first(reasons: Iterable[str | None]) -> str | None:
  return next(filter(None, reasons), None)


def _shown(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 40 else f"{text[:37]}..."
