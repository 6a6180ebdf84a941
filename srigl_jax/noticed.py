"""What goes wrong on the device without an error: counted there, told on the host.

A jitted step cannot raise. It counts, in `SparseState.noticed`, and whoever looks at the state
outside of jit (`get_state`, `get_masks`) is warned.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_CHECK_EVERY = 17  # steps; a prime number, so that it meets what happens in every k-th step

_MESSAGES = {
  "moved": (
    "Weights off the masks were not 0 when a step began: something outside of the sparse "
    "transformation moves them, such as optax.lookahead, schedule_free, ema or scale around or "
    "behind it, or weights put in by hand. Put it inside, srigl(optax.chain(...), ...), and give "
    "weights of your own as apply_masks(params, masks)."
  ),
  "budgets": (
    "This state was made by a transformation of other sparsities than the one that has updated it, "
    "and keeps its own: how many connections a layer may have is part of the state. To train at "
    "another sparsity, call `init` of the new transformation."
  ),
  "skipped": (
    "Topology updates were left out, since weights or gradients were not finite: the masks stayed "
    "as they were. Look at the learning rate and the loss; a guard such as optax.apply_if_finite "
    "keeps such gradients from the weights."
  ),
}


def nothing() -> dict[str, Array]:
  """The counts at the start."""
  return {what: jnp.zeros((), jnp.int32) for what in sorted(_MESSAGES)}


def look(
  noticed: Mapping[str, Array],
  step: Array,
  update_every: int | None,
  *,
  masks: Mapping[str, Array],
  weights: Mapping[str, Array],
  budgets: Mapping[str, Array],
  own_budgets: Mapping[str, Any],
) -> dict[str, Array]:
  """Counts weights that were moved off the masks, and budgets of another transformation.

  It looks in the step after each topology update and in every 17th: what puts pruned weights back
  is seen soon, and the cost is spread over many steps.

  Args:
    noticed: the counts.
    step: `[]` int32, steps done.
    update_every: steps between topology updates; None if there are none.
    masks: as the last step left them.
    weights: the sparse leaves, which that step's updates should have made 0 off the masks.
    budgets: the state's.
    own_budgets: the transformation's; of a stack one for each layer.
  """
  if not noticed:  # a state from before there were counts
    return {}

  def check() -> dict[str, Array]:
    stray = [jnp.any(jnp.where(masks[p], False, weights[p] != 0)) for p in masks]
    others = [jnp.any(budgets[p] != np.asarray(own_budgets[p], np.int32)) for p in masks]
    found = {"moved": stray, "budgets": others}
    any_of = lambda what: jnp.stack(found[what]).any() if found.get(what) else False
    return {what: n + jnp.asarray(any_of(what), jnp.int32) for what, n in noticed.items()}

  after_update = False if update_every is None else step % update_every == 0
  is_time = (step > 0) & (after_update | (step % _CHECK_EVERY == 1))
  return lax.cond(is_time, check, lambda: dict(noticed))


def count(noticed: Mapping[str, Array], what: str, happened: Array) -> dict[str, Array]:
  """The counts with one more of something, if it happened (`[]` bool)."""
  more = jnp.asarray(happened, jnp.int32)
  return {name: n + more if name == what else n for name, n in noticed.items()}


def tell(noticed: Mapping[str, Array], *, stacklevel: int) -> None:
  """Warns of what was counted, if the counts are concrete.

  States stacked for `jax.vmap` may differ in their budgets by design.

  Args:
    noticed: the counts.
    stacklevel: of the warning, as seen from here.
  """
  for what, count in noticed.items():
    if isinstance(count, jax.core.Tracer) or not isinstance(count, Array | np.ndarray | np.generic):
      continue
    if what == "budgets" and np.ndim(count):
      continue
    if isinstance(count, Array) and not count.is_fully_addressable:
      continue
    if np.any(np.asarray(count)):
      warnings.warn(_MESSAGES[what], stacklevel=stacklevel + 1)
