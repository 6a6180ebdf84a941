"""Things that a config names: models, data sets, optimizers, methods."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

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
    raise ValueError(f"{what} is {name!r}; it must be one of {_listed(table, name)}")
  return table[name]


def check_arguments(
  function: Callable[..., Any],
  given: Iterable[str],
  *,
  reserved: Iterable[str],
  what: str,
  hint: str = "",
) -> None:
  """Refuses arguments that a function does not take.

  Args:
    function: what will be called.
    given: names of the arguments that a config gives.
    reserved: names that the caller itself gives.
    what: where the arguments stand, for the message.
    hint: what else the message is to say.

  Raises:
    ValueError: naming the argument, those there are, and which name is nearest.
  """
  if isinstance(function, functools.partial):
    function = function.func
  if inspect.isclass(function):  # the class itself may show its metaclass's signature
    function = function.__init__
  hidden = {"self", *reserved}
  parameters = inspect.signature(function).parameters.values()
  allowed = [p.name for p in parameters if p.name not in hidden and p.kind != p.VAR_KEYWORD]
  for name in given:
    if name not in allowed:
      raise ValueError(f"{what} has {name!r}; it may have {_listed(allowed, name)}{hint}")


def _listed(names: Iterable[str], wanted: str) -> str:
  names = list(names)
  near = difflib.get_close_matches(wanted, names, n=1)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  return f"{', '.join(names) or 'nothing'}.{hint}"
