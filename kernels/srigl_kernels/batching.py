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


def in_a_loop(function: Callable[..., Array]) -> Any:
  """Gives a function a rule for vmap: a loop of calls."""
  call = jax.custom_batching.custom_vmap(function)
  call.def_vmap(lambda _, batched, *args: (map_calls(call, batched, args), True))
  return call


def in_one_call(function: Callable[..., Array], call_rows: Any = None) -> Any:
  """Gives `(x, *others) -> y` a rule for vmap: one call if only x is batched, else a loop of calls.

  Args:
    function: x, an array or a pytree of them, may have any leading axes, or `call_rows` is given.
    call_rows: `(call, x, *others) -> y`, the one call of an x with an axis more.
  """
  call = jax.custom_batching.custom_vmap(function)

  @call.def_vmap
  def rule(_: int, batched: Any, *args: Any) -> Any:
    if any(jax.tree.leaves(batched[1:])) or not all(jax.tree.leaves(batched[0])):
      y = map_calls(call, batched, args)
      return y, jax.tree.map(lambda _: True, y)
    y = call_rows(call, *args) if call_rows else call(*args)
    return y, jax.tree.map(lambda _: True, y)

  return call


def over_rows(function: Callable[..., Array]) -> Any:
  """`in_one_call` of `(x [B, I], *others) -> [B, N]`."""

  def call_rows(call: Any, x: Array, *others: Any) -> Array:
    return call(x.reshape(-1, x.shape[-1]), *others).reshape(*x.shape[:-1], -1)

  return in_one_call(function, call_rows)
