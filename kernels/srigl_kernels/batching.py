"""How native calls behave under vmap where one call cannot serve the whole batch."""

from collections.abc import Callable
from typing import Any

import jax
from jax import Array


def map_calls(call: Callable[..., Array], batched: Any, args: tuple[Any, ...]) -> Array:
  """A loop of calls over the first axis of what is batched.

  Args:
    call: a function of arrays or pytrees of them.
    batched: for every array of `args`, in the same structure, whether its first axis is the batch.
    args: what to call it with; at least one array is batched.

  Returns:
    The results, stacked.
  """
  leaves, treedef = jax.tree.flatten(args)
  mapped = jax.tree.leaves(batched)

  def one(rows: list[Array]) -> Array:
    row = iter(rows)
    each = [next(row) if m else leaf for leaf, m in zip(leaves, mapped, strict=True)]
    return call(*jax.tree.unflatten(treedef, each))

  return jax.lax.map(one, [leaf for leaf, m in zip(leaves, mapped, strict=True) if m])
