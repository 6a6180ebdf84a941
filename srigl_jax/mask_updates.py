"""When it is time, the topology evolves: what an update sees, and what it leaves in the state.

A method is a `MaskUpdater`: a function from views of the sparse layers to their new masks, and when
and how much to change.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_jax.exact_counts import ExactFraction, Fraction, fraction_digits
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layers import Axes, AxesFn, Layer, make_layer
from srigl_jax.masks import Masks
from srigl_jax.schedule import (
  accumulates_gradient,
  cosine_drop_fraction,
  is_update_step,
  num_updates,
)
from srigl_jax.state import SparseState

DropFraction = float | Callable[[Array], Array]


class LayerView(NamedTuple):
  """What a topology update sees of one layer.

  Attributes:
    path: the kernel's path.
    axes: which axes of it are neurons.
    may_ablate: whether neurons of it may be ablated.
    budget: `[]` int32, connections that it may have.
    weights: the kernel as the optimizer leaves it under the old mask, 0 off it.
    scores: the dense gradient that scores growth, same shape.
    mask: the old mask, bool, same shape.
    key: a random key of this layer and update.
    drop_fraction: fraction of the active weights to prune; for `truncated_count`.
    step: `[]` int32, optimizer steps done.
  """

  path: str
  axes: Axes
  may_ablate: bool
  budget: Array
  weights: Array
  scores: Array
  mask: Array
  key: Array
  drop_fraction: Fraction
  step: Array

  @property
  def layer(self) -> Layer:
    """Its neurons and inputs, for `to_matrix` and `from_matrix`."""
    return make_layer(self.path, self.mask.shape, lambda *_: self.axes)


MaskUpdate = Callable[[dict[str, LayerView]], Masks]


def per_layer(update: Callable[[LayerView], Array]) -> MaskUpdate:
  """A topology update of the network from one of a layer: `LayerView -> new mask`."""
  return lambda layers: {path: update(layer) for path, layer in layers.items()}


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
  """

  update: MaskUpdate
  update_every: int
  update_until: int
  drop_fraction: DropFraction = 0.3
  grad_accumulation_steps: int = 1
  grad_decay: float = 0.0
  ablate: LayerFilter = False


class LayerPlan(NamedTuple):
  """What is known of a sparse layer before the first step."""

  axes: Axes
  may_ablate: bool


def maybe_update_masks(
  updater: MaskUpdater,
  plans: dict[str, LayerPlan],
  state: SparseState,
  grads: dict[str, Array],
  params_after_step: Callable[[], dict[str, Array]],
) -> SparseState:
  """Updates the topology if it is time.

  Args:
    updater: how and when.
    plans: the sparse layers, in natural order.
    state: the state, its step already counted up.
    grads: dense gradients of the sparse leaves.
    params_after_step: computes the sparse leaves as the optimizer leaves them under the old masks.
      It does the optimizer's work a second time, but only when the topology changes: were its
      results handed in, they would have to be held for that case in every step, instead of fusing
      with the masking.

  Returns:
    The state with new masks, explored weights and gradient sums; or as it was.
  """
  every, until = updater.update_every, updater.update_until
  grad_mean = _mean_gradients(updater, state, grads)

  def change():
    weights, scores = params_after_step(), grad_mean or grads
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    fraction = drop_fraction_at(updater, state.step)
    views = {
      path: LayerView(
        path=path,
        axes=plan.axes,
        may_ablate=plan.may_ablate,
        budget=state.budgets[path],
        weights=weights[path],
        scores=scores[path],
        mask=state.masks[path],
        key=jax.random.fold_in(key, i),
        drop_fraction=fraction,
        step=state.step,
      )
      for i, (path, plan) in enumerate(plans.items())
    }
    masks = _new_masks(updater, views)
    explored = {path: state.explored[path] | mask for path, mask in masks.items()}
    empty = grad_mean if updater.grad_decay else jax.tree.map(jnp.zeros_like, grad_mean)
    return masks, explored, empty

  def keep():
    return state.masks, state.explored, grad_mean

  masks, explored, grad_mean = lax.cond(is_update_step(state.step, every, until), change, keep)
  return state._replace(masks=masks, explored=explored, grad_mean=grad_mean)


def _new_masks(updater: MaskUpdater, views: dict[str, LayerView]) -> Masks:
  """What the updater returns; a ValueError unless it is a mask for each layer."""
  remedy = "wrap a function of one layer in per_layer"
  try:
    masks = updater.update(views)
  except AttributeError as error:
    if error.obj is not views:
      raise
    raise ValueError(
      f"MaskUpdater.update asked for .{error.name}, but is given a dict {{path: LayerView}} of all "
      f"layers: {remedy}."
    ) from error
  if not isinstance(masks, Mapping):
    raise ValueError(
      f"MaskUpdater.update returned a {type(masks).__name__}; it must return a dict "
      f"{{path: mask}}: {remedy}."
    )
  if masks.keys() != views.keys():
    raise ValueError(
      f"MaskUpdater.update returned masks for {sorted(masks)}, but was given {sorted(views)}: it "
      "must return one for each."
    )
  for path, mask in masks.items():
    shape, dtype = getattr(mask, "shape", None), getattr(mask, "dtype", None)
    if shape != views[path].mask.shape or dtype != jnp.bool_:
      found = f"{dtype} of shape {shape}" if dtype else repr(mask)
      raise ValueError(
        f"MaskUpdater.update returned {found} for {path!r}; it must be a bool array of shape "
        f"{views[path].mask.shape}."
      )
  return dict(masks)


def _mean_gradients(
  updater: MaskUpdater, state: SparseState, grads: dict[str, Array]
) -> dict[str, Array]:
  """The state's means of dense gradients with one more gradient; `state.step` counts its step."""
  means, n, decay = state.grad_mean, updater.grad_accumulation_steps, updater.grad_decay
  if not means:
    return means
  if decay:
    return {p: decay * mean + (1 - decay) * grads[p] for p, mean in means.items()}
  return lax.cond(
    accumulates_gradient(state.step - 1, updater.update_every, updater.update_until, n),
    lambda: {p: mean + grads[p].astype(jnp.float32) / n for p, mean in means.items()},
    lambda: means,
  )


def drop_fraction_at(updater: MaskUpdater, step: Array) -> Fraction:
  """Drop fraction of the update at a traced step; the cosine's are tabulated in double."""
  given, every, until = updater.drop_fraction, updater.update_every, updater.update_until
  if isinstance(given, Array):  # a traced hyperparameter
    return given / 2 * (1 + jnp.cos(step * (jnp.pi / until)))
  if callable(given):
    return jnp.asarray(given(step), jnp.float32)
  steps = every * np.arange(num_updates(every, until) + 1)
  table = fraction_digits(np.asarray([cosine_drop_fraction(int(t), given, until) for t in steps]))
  return ExactFraction(jnp.asarray(table)[step // every])


def check_mask_updater(updater: MaskUpdater | None) -> None:
  """Raises a ValueError that names the field if one is out of range."""
  if updater is None:
    return
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
  """The layer of one update's arrays; a ValueError if they are not one kernel's."""
  if not weights.shape == grads.shape == mask.shape or weights.ndim < 2:
    raise ValueError(
      f"weights, grads and mask have shapes {weights.shape}, {grads.shape} and {mask.shape}: "
      "they must be one kernel's, equal, with at least two axes."
    )
  if mask.dtype != jnp.bool_:
    raise ValueError(f"mask has dtype {mask.dtype}; it must be bool (use mask != 0).")
  return make_layer("kernel", weights.shape, axes)


def check_drop_fraction(drop_fraction: Fraction) -> None:
  """Raises a ValueError for a concrete fraction outside [0, 1]."""
  if isinstance(drop_fraction, Array | ExactFraction):
    return  # its value may be traced; the schedule that made it is checked where it is given
  if not 0 <= float(np.asarray(drop_fraction)) <= 1:
    raise ValueError(f"drop_fraction is {drop_fraction}; it must lie in [0, 1].")
