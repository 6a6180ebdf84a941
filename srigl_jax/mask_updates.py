"""When it is time, the topology evolves: what an update leaves in the state.

A method is a `MaskUpdater`: a function from views of the sparse layers to their new masks, and when
and how much to change.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_jax import noticed
from srigl_jax.arguments import check_kind
from srigl_jax.exact_counts import ExactFraction, Fraction, fraction_digits
from srigl_jax.growth_scores import all_finite, mean_gradients
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layer_views import LayerPlan, MaskUpdate, new_masks
from srigl_jax.layers import AxesFn, Layer, leaf_dict, make_layer
from srigl_jax.schedule import cosine_drop_fraction, is_update_step, num_updates
from srigl_jax.state import SparseState

DropFraction = float | Callable[[Array], Array]


class MaskUpdater(NamedTuple):
  """How and when the topology changes.

  Attributes:
    update: the new masks from a view of every sparse layer, by path; see `per_layer`.
    update_every: ΔT, optimizer steps between updates.
    update_until: T_end, the step at which updates end.
    drop_fraction: the initial value of the cosine, or a function of the step.
    grad_accumulation_steps: how many of the last dense gradients a growth score averages.
    grad_decay: if more than 0, growth is scored by the decaying mean of all dense gradients
      instead, of which each step keeps this fraction.
    ablate: which layers may lose neurons.
    uses_gradients: whether growth is scored by gradients, so that an update waits for finite ones.
  """

  update: MaskUpdate
  update_every: int
  update_until: int
  drop_fraction: DropFraction = 0.3
  grad_accumulation_steps: int = 1
  grad_decay: float = 0.0
  ablate: LayerFilter = False
  uses_gradients: bool = True


class StepTaken(NamedTuple):
  """The optimizer's step under the old masks.

  Attributes:
    weights: the sparse leaves after it.
    frozen: `{path: [] bool}`, layers that it did not move while it moved others.
  """

  weights: dict[str, Array]
  frozen: dict[str, Array]


def maybe_update_masks(
  updater: MaskUpdater,
  plans: dict[str, LayerPlan],
  state: SparseState,
  grads: Any,
  take_step: Callable[[], StepTaken],
) -> SparseState:
  """Updates the topology if it is time, and if weights and gradients are finite.

  Args:
    updater: how and when.
    plans: the sparse layers, in natural order.
    state: the state, its step already counted up.
    grads: dense gradients of all leaves.
    take_step: the optimizer's step. It does that work a second time, but only when the topology
      changes: were its results handed in, they would have to be held for that case in every step,
      instead of fusing with the masking.

  Returns:
    The state with new masks, explored weights and gradient sums; or as it was. A weight that is
    infinite or NaN is never pruned: no update that one adds could make it 0.
  """
  every, until = updater.update_every, updater.update_until
  by_leaf = leaf_dict(grads)
  grad_mean = mean_gradients(
    state.grad_mean,
    by_leaf,
    state.step - 1,
    update_every=every,
    update_until=until,
    num_steps=updater.grad_accumulation_steps,
    decay=updater.grad_decay,
  )

  def change():
    weights, frozen = take_step()
    scores = grad_mean or {path: by_leaf[path] for path in plans}
    fraction = drop_fraction_at(updater, state.step)
    new = new_masks(updater.update, plans, state, weights, scores, frozen, fraction)
    sound = all_finite((weights, scores) if updater.uses_gradients else weights)

    def choose(new: Array, old: Array, is_frozen: Array) -> Array:
      # What grows in a frozen layer would stay 0.
      return jnp.where(~sound | (is_frozen & (new & ~old).any()), old, new)

    masks = {path: choose(mask, state.masks[path], frozen[path]) for path, mask in new.items()}
    explored = {path: state.explored[path] | mask for path, mask in masks.items()}
    empty = grad_mean if updater.grad_decay else jax.tree.map(jnp.zeros_like, grad_mean)
    return masks, explored, empty, ~sound

  def keep():
    return dict(state.masks), dict(state.explored), grad_mean, jnp.zeros((), bool)

  masks, explored, grad_mean, skipped = lax.cond(
    is_update_step(state.step, every, until), change, keep
  )
  return state._replace(
    masks=masks,
    explored=explored,
    grad_mean=grad_mean,
    noticed=noticed.count(state.noticed, "skipped", skipped),
  )


def drop_fraction_at(updater: MaskUpdater, step: Array) -> Fraction:
  """Drop fraction of the update at a traced step; the cosine's are tabulated in double."""
  given, every, until = updater.drop_fraction, updater.update_every, updater.update_until
  if isinstance(given, Array):  # a traced hyperparameter
    return given / 2 * (1 + jnp.cos(step.astype(jnp.float32) * (jnp.pi / until)))
  if callable(given):
    return jnp.asarray(given(step), jnp.float32)
  steps = every * np.arange(num_updates(every, until) + 1)
  table = fraction_digits(np.asarray([cosine_drop_fraction(int(t), given, until) for t in steps]))
  return ExactFraction(jnp.asarray(table)[step // every])


def check_mask_updater(updater: MaskUpdater | None) -> None:
  """Raises a ValueError that names the field if one is out of range."""
  if updater is None:
    return
  check_kind("updater", updater, MaskUpdater, "a MaskUpdater, or None for masks that never change")
  counts = {
    name: getattr(updater, name)
    for name in ("update_every", "update_until", "grad_accumulation_steps")
  }
  for name, value in counts.items():
    if not isinstance(value, int | np.integer) or value < (name != "update_until"):
      raise ValueError(
        f"{name} is {value}; it must be a Python int, 1 or more (update_until: 0 or more). Under "
        "optax.inject_hyperparams, inject into a function of the other hyperparameters alone: "
        "inject_hyperparams(lambda rate: srigl(optax.sgd(rate), ...))(rate=0.1)."
      )
  if updater.grad_accumulation_steps > updater.update_every:
    raise ValueError(
      f"grad_accumulation_steps is {updater.grad_accumulation_steps}, more than update_every "
      f"({updater.update_every}): an update can average only the gradients since the last one."
    )
  if not 0 <= updater.grad_decay < 1 or (
    updater.grad_decay and updater.grad_accumulation_steps > 1
  ):
    raise ValueError(
      f"grad_decay is {updater.grad_decay} with grad_accumulation_steps "
      f"{updater.grad_accumulation_steps}; it must lie in [0, 1), and growth is scored either by "
      "a decaying mean (grad_decay > 0) or by the mean of a window."
    )
  given = updater.drop_fraction
  if not isinstance(given, Array) and not callable(given) and not 0 <= given <= 1:
    raise ValueError(
      f"drop_fraction is {given}; it must lie in [0, 1] (the papers use 0.3), or be a function of "
      "the step."
    )


def check_update(weights: Array, grads: Array, mask: Array, axes: AxesFn) -> Layer:
  """The layer of one update's arrays; a ValueError if they are not one layer's kernel."""
  if not weights.shape == grads.shape == mask.shape or weights.ndim < 2:
    raise ValueError(
      f"weights, grads and mask have shapes {weights.shape}, {grads.shape} and {mask.shape}: "
      "they must be one kernel's, equal, with at least two axes."
    )
  if mask.dtype != jnp.bool_:
    raise ValueError(f"mask has dtype {mask.dtype}; it must be bool (use mask != 0).")
  layer = make_layer("kernel", weights.shape, axes)
  if layer.axes.stack:
    raise ValueError(
      f"axes gives {layer.axes}, but an update is one layer's: map it over the stack with jax.vmap "
      "and the axes of a single layer, or train with srigl(..., axes=...), which does."
    )
  return layer


def check_drop_fraction(drop_fraction: Fraction) -> None:
  """Raises a ValueError for a concrete fraction outside [0, 1]."""
  if isinstance(drop_fraction, Array | ExactFraction):
    return  # its value may be traced; the schedule that made it is checked where it is given
  if not 0 <= float(np.asarray(drop_fraction)) <= 1:
    raise ValueError(f"drop_fraction is {drop_fraction}; it must lie in [0, 1].")
