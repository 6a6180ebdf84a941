"""Parts of a network that are computed one after the other, forward and backward.

XLA schedules what does not depend on each other all at once, `lax.optimization_barrier` or not
(on CPUs barriers are gone before it schedules): with the logits of a million labels in blocks, all
blocks' logits are in memory. Here every part waits for a number that the one before it gives.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, dtypes, lax

_SMALL = 1 << 16


def in_turn(
  part: Callable[[Any, Array], Any], args: Any, x: Array, turn: Array
) -> tuple[Any, Array]:
  """`part(args, x)`, and the turn of the next one.

  Nothing of it is kept: it is computed anew for its gradient, as by `jax.checkpoint`, once the
  gradients of the parts after it are there.

  Args:
    part: a function that closes over no traced array.
    args: what it trains or reads, a pytree.
    x: its input, of a floating type.
    turn: `[]` float32 of the part before; `first_turn()` for the first.

  Returns:
    The part's outputs, a pytree of arrays, and the turn, `[]` float32: 0, or NaN if an output is.
  """

  @jax.custom_vjp
  def run(args: Any, x: Array, turn: Array) -> tuple[Any, Array]:
    out = part(args, x + turn.astype(x.dtype))
    return out, _turn_after(out)

  def forward(args: Any, x: Array, turn: Array) -> tuple[Any, Any]:
    return run(args, x, turn), (args, x, turn)

  def backward(kept: Any, cotangents: Any) -> tuple[Any, Array, Array]:
    args, x, turn = kept
    of_out, turn_back = cotangents
    _, pull = jax.vjp(part, args, x + (turn + turn_back).astype(x.dtype))
    gradients = pull(of_out)
    return *gradients, _turn_after(gradients)

  run.defvjp(forward, backward)
  return run(args, x, turn)


def first_turn() -> Array:
  """The turn of a part that waits for nothing."""
  return jnp.zeros(())


def _turn_after(tree: Any) -> Array:
  """A zero that is known once all arrays of a tree are, and not before: compilers see no zero."""
  leaves = [x for x in jax.tree.leaves(tree) if x.dtype != dtypes.float0 and x.size]
  sums = [_known_after(x).astype(jnp.float32) for x in leaves]
  return sum((lax.min(jnp.abs(x), jnp.float32(0)) for x in sums), jnp.float32(0))


def _known_after(x: Array) -> Array:
  """A number that takes all of a small array, and an element of a large one, to save time."""
  flat = x.reshape(-1)
  return flat.sum() if x.size <= _SMALL else flat[0]
