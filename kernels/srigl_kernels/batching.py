"""How calls of kernels behave under vmap."""

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


def over_rows(function: Any) -> Any:
  """Gives `(x [B, I], *others) -> [B, N]` a rule for vmap: one call if only x is batched."""
  call = jax.custom_batching.custom_vmap(function)

  @call.def_vmap
  def rule(axis_size: int, batched: Any, *args: Any) -> Any:
    x, *others = args
    if any(jax.tree.leaves(batched[1:])):
      return map_calls(call, batched, args), True
    y = call(x.reshape(-1, x.shape[-1]), *others)
    return y.reshape(*x.shape[:-1], -1), True

  return call
