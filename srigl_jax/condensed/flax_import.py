"""Modules of ours that need a package which the rest of the library does without."""

import importlib
from typing import Any


def import_with_flax(name: str, package: str = "condensed") -> Any:
  """A module of this package, or another of ours, that imports Flax.

  Raises:
    ModuleNotFoundError: if Flax is not installed, saying what needs it.
  """
  try:
    return importlib.import_module(f"srigl_jax.{package}.{name}")
  except ModuleNotFoundError as error:
    if error.name != "flax":
      raise
    raise ModuleNotFoundError(
      "Condensed models are Flax NNX models, and flax is not installed: pip install 'flax>=0.12.8'."
      " Single layers need no flax: see srigl_jax.condense.",
      name="flax",
    ) from None
