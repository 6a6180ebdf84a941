"""What is called outside of jit is compiled as a whole, once, and not in every step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def compiled_if_eager(fn: Callable[..., Any]) -> Callable[..., Any]:
  """The function, jitted where none of its arguments is traced.

  Conditions and loops in it that close over a step's arrays would, called eagerly, be traced and
  compiled anew in each step, and what is compiled is never freed. Within jit nothing changes.
  Arguments that are no arrays (a line search's `value_fn`) are left to the eager way.

  Args:
    fn: of positional and keyword arguments, arrays or trees of them.
  """
  compiled = jax.jit(fn)

  @functools.wraps(fn)
  def call(*args: Any, **kwargs: Any) -> Any:
    leaves = jax.tree.leaves((args, kwargs))
    return (compiled if all(map(_is_concrete, leaves)) else fn)(*args, **kwargs)

  return call


def _is_concrete(leaf: Any) -> bool:
  is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | int | float)
  return is_array and not isinstance(leaf, jax.core.Tracer)
