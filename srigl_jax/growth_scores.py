"""Means of dense gradients, which score the growth of connections; of finite ones only."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.schedule import accumulates_gradient


def mean_gradients(
  means: Mapping[str, Array],
  grads: Mapping[str, Array],
  step: Array,
  *,
  update_every: int,
  update_until: int,
  num_steps: int,
  decay: float,
) -> dict[str, Array]:
  """The means with one more gradient.

  A step in which any gradient is infinite or NaN leaves no trace: an optimizer with a guard, such
  as `optax.apply_if_finite`, makes no step either.

  Args:
    means: `{path: float32 array}`, of the sparse leaves; empty if none are kept.
    grads: dense gradients of all leaves.
    step: `[]` int32, optimizer steps done before this gradient's own.
    update_every: see `MaskUpdater`, as are the others.
    update_until: see there.
    num_steps: gradients of a window.
    decay: of a decaying mean in its place, if more than 0.
  """
  if not means:
    return {}
  float32 = {path: grads[path].astype(jnp.float32) for path in means}

  def add() -> dict[str, Array]:
    finite = all_finite(grads)
    if decay:
      new = {path: decay * mean + (1 - decay) * float32[path] for path, mean in means.items()}
    else:
      new = {path: mean + float32[path] / num_steps for path, mean in means.items()}
    return {path: jnp.where(finite, new[path], mean) for path, mean in means.items()}

  if decay:
    return add()
  counts = accumulates_gradient(step, update_every, update_until, num_steps)
  return lax.cond(counts, add, lambda: dict(means))


def all_finite(arrays: Any) -> Array:
  """Whether no entry of a tree of arrays is infinite or NaN, `[]` bool."""
  floats = [x for x in jax.tree.leaves(arrays) if jnp.issubdtype(jnp.result_type(x), jnp.inexact)]
  finite = [jnp.isfinite(x).all() for x in floats]
  return jnp.stack(finite).all() if finite else jnp.ones((), bool)
