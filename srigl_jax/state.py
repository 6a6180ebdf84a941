"""The state of every sparse training method, and how to find it in any nesting of optax states."""

from typing import Any, NamedTuple

import jax
from jax import Array

from srigl_jax.by_path import ByPath
from srigl_jax.masks import Masks
from srigl_jax.noticed import tell


class SparseState(NamedTuple):
  """State of a sparse training transformation: arrays and nested states only.

  All that tells one run from another of the same shape (seed, sparsity) is in here, so states can
  be stacked and updated together under `jax.vmap`, `step` alone left as it is.

  Attributes:
    step: `[]` int32, optimizer steps done.
    masks: `{path: bool array}`, True where a weight is active.
    explored: `{path: bool array}`, True where a weight was ever active (for the ITOP rate).
    budgets: `{path: [] int32}`, of a stack of layers `[*stack]`: connections that each layer may
      have in the end (all layers together, for methods that move connections between them).
    key: `[2]` uint32, data of the random key that masks and random growth are drawn with.
    grad_mean: `{path: float32 array}`, the mean of dense gradients that scores growth: of the
      current window so far, or a decaying one; empty if the last gradient alone scores.
    extra: what else a method remembers (dense weights behind a mask, weights to rewind to); `()`
      for most.
    noticed: `{what: [] int32}`, how often something went wrong that raises no error on the device:
      see `srigl_jax.noticed`.
    inner_state: the wrapped optimizer's state. Moments of masked weights are those of its `init`,
      or what it makes of them in a step without gradients; `sr_ste` alone has dense ones.
  """

  step: Array
  masks: Masks
  explored: Masks
  budgets: dict[str, Array]
  key: Array
  grad_mean: dict[str, Array]
  extra: Any
  noticed: dict[str, Array]
  inner_state: Any


def as_by_path(state: SparseState, *, like: SparseState | None = None) -> SparseState:
  """The state with its dicts by path as `ByPath`, or of the same types as those of another state.

  One that was put together by hand, or restored, may have plain dicts, and `lax.scan` wants back
  what it has given.
  """
  same = lambda name: ByPath if like is None else type(getattr(like, name))
  return state._replace(
    masks=same("masks")(state.masks),
    explored=same("explored")(state.explored),
    budgets=same("budgets")(state.budgets),
    grad_mean=same("grad_mean")(state.grad_mean),
  )


def get_state(opt_state: Any) -> SparseState:
  """Finds the `SparseState` in any nesting of optax states.

  Warns of what the transformation has noticed, such as weights off the masks that are not 0.

  Raises:
    ValueError: if there is none, or more than one.
  """
  return _find(opt_state, stacklevel=3)


def get_masks(opt_state: Any) -> Masks:
  """Finds the masks `{path: bool array}` in any nesting of optax states; see `get_state`."""
  return dict(_find(opt_state, stacklevel=3).masks)


def _find(opt_state: Any, *, stacklevel: int) -> SparseState:
  is_state = lambda node: isinstance(node, SparseState)
  found = [n for n in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(n)]
  if len(found) != 1:
    raise ValueError(
      f"Found {len(found)} sparse training states in the optimizer state, need exactly one: "
      + (
        "wrap the optimizer with srigl(...), rigl(...) or another sparse method and pass "
        "the state that its `init` or `update` returned."
        if not found
        else "pass the part of the state that belongs to one of the transformations."
      )
    )
  # nnx.Optimizer holds its state in variables, one leaf each: hand out the arrays themselves.
  state = found[0]
  array = lambda node: jax.tree.leaves(node)[0]

  def arrays(by_path: Any) -> Any:
    found = {path: array(x) for path, x in by_path.items()}
    return ByPath(found) if isinstance(by_path, ByPath) else found

  noticed = arrays(state.noticed)
  tell(noticed, stacklevel=stacklevel)
  return SparseState(
    step=array(state.step),
    masks=arrays(state.masks),
    explored=arrays(state.explored),
    budgets=arrays(state.budgets),
    key=array(state.key),
    grad_mean=arrays(state.grad_mean),
    extra=state.extra,
    noticed=noticed,
    inner_state=state.inner_state,
  )
