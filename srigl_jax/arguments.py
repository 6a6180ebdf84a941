"""What is said of an argument of the wrong kind."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

ARRAYS = (jax.Array, np.ndarray)
"""Kinds of arrays, traced ones too."""


def check_kind(name: str, value: Any, kinds: Any, wanted: str) -> None:
  """Raises a ValueError unless a value is of a kind.

  Args:
    name: of the argument.
    value: what was given.
    kinds: a type, or several.
    wanted: what it must be, and where that comes from.
  """
  if not isinstance(value, kinds):
    raise ValueError(f"{name} is {_a(value)}; it must be {wanted}.")


def check_optimizer(name: str, value: Any) -> None:
  """Raises a ValueError unless a value is an optax transformation; `name`: the argument's."""
  wanted = "an optimizer, such as optax.sgd(0.1)"
  if callable(getattr(value, "gradient_transformation", None)):
    wanted = "a transformation: give its .gradient_transformation()"
  check_kind(name, value, optax.GradientTransformation, wanted)


def check_callable(name: str, value: Any, wanted: str) -> None:
  """Raises a ValueError unless a value can be called; arguments as of `check_kind`."""
  if not callable(value):
    raise ValueError(f"{name} is {_a(value)}; it must be {wanted}.")


def check_by_path(name: str, value: Any, kinds: Any, wanted: str) -> None:
  """Raises a ValueError unless a value is a dict by paths; arguments as of `check_kind`.

  Args:
    name: of the argument.
    value: what was given.
    kinds: of its entries.
    wanted: what its entries must be, and where they come from.
  """
  if not isinstance(value, Mapping) or not all(isinstance(path, str) for path in value):
    raise ValueError(f"{name} is {_a(value)}; it must be a dict by path, of {wanted}.")
  for path, entry in value.items():
    if not isinstance(entry, kinds):
      raise ValueError(f"{name} holds {_a(entry)} for {path!r}; it must hold {wanted}.")


def _a(value: Any) -> str:
  if isinstance(value, ARRAYS):
    return f"an array of shape {value.shape}"
  return f"a {type(value).__name__}"
