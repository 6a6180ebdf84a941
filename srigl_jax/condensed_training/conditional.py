"""A condition that does not copy what it leaves alone."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax


def apply_if(predicate: Array | bool, fn: Callable[[Any], Any], carry: Any) -> Any:
  """`fn(carry)` if the predicate holds, else `carry`.

  As a loop of one pass or none, which works in place: XLA copies what `lax.cond` returns. A
  predicate that is True in Python is no condition at all.
  """
  if predicate is True:
    return fn(carry)
  once = lambda state: (jnp.zeros((), bool), fn(state[1]))
  return lax.while_loop(lambda state: state[0], once, (predicate, carry))[1]
