"""Pruning while training: dense networks that become sparse, gradually or in one shot."""

import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from srigl_jax.allocation import Distribution
from srigl_jax.exact_counts import fraction_digits, truncated_product
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layer_views import LayerView, per_layer
from srigl_jax.layers import AxesFn, check_countable, from_matrix, to_matrix
from srigl_jax.mask_updates import MaskUpdater
from srigl_jax.masks import Masks
from srigl_jax.structures import Unstructured
from srigl_jax.topk import ranking_key, topk_mask
from srigl_jax.transform import sparse_training

RANKINGS = ("layer", "global")


def gradual_magnitude_pruning(
  inner: optax.GradientTransformation,
  *,
  begin_step: int,
  end_step: int,
  update_every: int = 100,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """From dense to sparse on a cubic schedule, by magnitude within each layer.

  After step t, at multiples of `update_every`, a layer of `size` weights that is to end with
  `budget` has lost `trunc((size - budget) * (1 - (1 - x)^3))`, where x goes from 0 at `begin_step`
  to 1 at the last multiple up to `end_step`. A weight that is pruned stays so. Arguments not
  listed: as for `srigl`.

  Args:
    inner: the optimizer to wrap.
    begin_step: optimizer step at which pruning begins.
    end_step: the step from which the network is as sparse as it will be.
    update_every: steps between prunings.
    sparsity: in the end; see `srigl`.
    distribution: see `srigl`.
    density: see `srigl`.
    sparse: see `srigl`.
    axes: see `srigl`.

  Raises:
    ValueError: if no multiple of `update_every` lies between the steps.

  Source: Zhu & Gupta, To prune, or not to prune (arXiv:1710.01878), section 3; integers as for
  unstructured budgets.
  """
  _check_steps(begin_step=begin_step, end_step=end_step, update_every=update_every)
  last = end_step // max(1, update_every) * update_every
  if not 0 <= begin_step < last:
    raise ValueError(
      f"begin_step is {begin_step} and end_step {end_step}: there must be a multiple of "
      f"update_every ({update_every}) after the first and up to the second."
    )
  steps = update_every * np.arange(last // update_every + 1)
  progress = np.clip((steps - begin_step) / (last - begin_step), 0, 1)
  lost = fraction_digits(1 - (1 - progress) ** 3)

  def update(view: LayerView) -> Array:
    size = view.mask.size
    digits = jnp.asarray(lost)[view.step // update_every]
    return _keep_largest(view, size - truncated_product(size - view.budget, digits))

  return sparse_training(
    inner,
    MaskUpdater(per_layer(update), update_every, last + 1, 0.0, uses_gradients=False),
    structure=Unstructured(),
    initial="dense",
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
  )


def one_shot_pruning(
  inner: optax.GradientTransformation,
  *,
  prune_step: int,
  ranking: str = "layer",
  sparsity: float | None = None,
  distribution: Distribution | None = None,
  density: float | None = None,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Dense training, one cut by magnitude, and fine-tuning of what is left.

  Arguments not listed: as for `srigl`.

  Args:
    inner: the optimizer to wrap.
    prune_step: optimizer step after which to prune.
    ranking: `"layer"`, each layer to its own budget, or `"global"`, the largest magnitudes of all
      layers together, whose budgets only count in sum (and a layer may lose all of its weights).
    sparsity: see `srigl`.
    distribution: see `srigl`; None is `"erk"`, or `"uniform"` for global ranking, which then
      counts all layers: those that a distribution leaves dense take no part.
    density: see `srigl`.
    sparse: see `srigl`.
    axes: see `srigl`.

  Raises:
    ValueError: if an argument is out of range.

  Source: Han et al., Learning both Weights and Connections (arXiv:1506.02626), section 3, with a
  single round; the rankings are compared in Blalock et al. (arXiv:2003.03033).
  """
  _check_steps(prune_step=prune_step)
  if ranking not in RANKINGS:
    raise ValueError(f"ranking is {ranking!r}; it must be one of {RANKINGS}.")
  is_global = ranking == "global"

  def update(layers: dict[str, LayerView]) -> Masks:
    check_countable(*(view.layer for view in layers.values()))
    total = sum((view.budget for view in layers.values()), jnp.int32(0))
    weights = {path: view.weights for path, view in layers.items()}
    return global_magnitude_masks(weights, {p: v.mask for p, v in layers.items()}, total)

  per_layer_update = per_layer(lambda view: _keep_largest(view, view.budget))
  return sparse_training(
    inner,
    MaskUpdater(
      update if is_global else per_layer_update,
      prune_step,
      prune_step + 1,
      0.0,
      uses_gradients=False,
    ),
    structure=Unstructured(),
    initial="dense",
    sparsity=sparsity,
    distribution=distribution or ("uniform" if is_global else "erk"),
    density=density,
    sparse=sparse,
    axes=axes,
  )


def global_magnitude_masks(weights: Masks, masks: Masks, num_kept: Array | int) -> Masks:
  """The largest magnitudes of all layers together, among active weights.

  Args:
    weights: `{path: kernel}`, any float dtypes.
    masks: `{path: bool array}`, the same paths and shapes.
    num_kept: `[]` int32, at most the number of active weights.

  Returns:
    New masks with `num_kept` True in all. Ties: the earlier kernel, then its lower flat index.
  """
  if not masks:
    return {}
  keys = [jnp.where(mask, ranking_key(weights[p]), 0).ravel() for p, mask in masks.items()]
  chosen = topk_mask(jnp.concatenate(keys)[:, None], num_kept)[:, 0]
  ends = np.cumsum([mask.size for mask in masks.values()])[:-1]
  parts = jnp.split(chosen, ends)
  return {
    path: part.reshape(mask.shape) & mask
    for (path, mask), part in zip(masks.items(), parts, strict=True)
  }


def _keep_largest(view: LayerView, num_kept: Array) -> Array:
  mask = to_matrix(view.mask, view.layer)
  magnitudes = ranking_key(to_matrix(view.weights, view.layer))
  kept = topk_mask(jnp.where(mask, magnitudes, 0), num_kept)
  return from_matrix(kept & mask, view.layer)


def _check_steps(**steps: int) -> None:
  for name, step in steps.items():
    if not isinstance(step, int | np.integer) or step < (name != "begin_step"):
      raise ValueError(f"{name} is {step!r}; it must be a Python int, a number of optimizer steps.")
