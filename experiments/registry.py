"""Things that a config names: models, data sets, optimizers, methods."""

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


def choose(table: Mapping[str, T], name: str, what: str) -> T:
  """`table[name]`.

  Args:
    table: what there is, by name.
    name: the one wanted.
    what: what is being chosen, for the message.

  Raises:
    ValueError: if there is none of that name; it says what there is and which name is nearest.
  """
  if name not in table:
    near = difflib.get_close_matches(name, table, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{what} is {name!r}; it must be one of {', '.join(table)}.{hint}")
  return table[name]
