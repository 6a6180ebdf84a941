"""RigL and SET: unstructured sparsity, regrowth by gradient or at random."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax.allocation import Distribution
from srigl_jax.exact_counts import Fraction, truncated_count
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layer_views import LayerView, per_layer
from srigl_jax.layers import AxesFn, flax_axes, from_matrix, to_matrix
from srigl_jax.mask_updates import (
  DropFraction,
  MaskUpdater,
  check_drop_fraction,
  check_update,
)
from srigl_jax.structures import Unstructured
from srigl_jax.topk import count, ranking_key, topk_mask
from srigl_jax.transform import sparse_training


def rigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  grad_accumulation_steps: int = 1,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """RigL: unstructured sparsity, regrowth by gradient. Arguments as for `srigl`.

  Source: RigL (arXiv:1911.11134), as SRigL's authors run it as their baseline.
  """

  def update(layer: LayerView) -> Array:
    kwargs: dict = {"drop_fraction": layer.drop_fraction, "axes": lambda *_: layer.axes}
    return rigl_update(layer.weights, layer.scores, layer.mask, **kwargs)

  return sparse_training(
    inner,
    MaskUpdater(
      per_layer(update), update_every, update_until, drop_fraction, grad_accumulation_steps
    ),
    structure=Unstructured(),
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def set_(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """SET: unstructured sparsity, random regrowth. Arguments as for `srigl`.

  Source: Mocanu et al., 2018 (doi:10.1038/s41467-018-04316-3), on RigL's schedule.
  """

  def update(layer: LayerView) -> Array:
    kwargs: dict = {"drop_fraction": layer.drop_fraction, "axes": lambda *_: layer.axes}
    return set_update(layer.weights, layer.key, layer.mask, **kwargs)

  return sparse_training(
    inner,
    MaskUpdater(per_layer(update), update_every, update_until, drop_fraction, uses_gradients=False),
    structure=Unstructured(),
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def rigl_update(
  weights: Array,
  grads: Array,
  mask: Array,
  *,
  drop_fraction: Fraction,
  axes: AxesFn = flax_axes,
) -> Array:
  """One RigL update, unstructured: prune the smallest magnitudes, grow the largest gradients.

  With `n` active weights, the `n - trunc(n * drop_fraction)` largest magnitudes are kept, and as
  many of the largest gradients grow among all positions not kept, those just pruned included.

  Args:
    weights: kernel, any float dtype; only active entries are looked at.
    grads: dense gradient (or any other growth score, larger magnitude first), same shape.
    mask: bool, same shape, True where active.
    drop_fraction: as for `srigl_update`.
    axes: as for `srigl_update`; it decides ties only.

  Returns:
    bool, the new mask with as many True as before. Ties: the lower index stays or grows.

  Raises:
    ValueError: if shapes differ or `drop_fraction` is outside [0, 1].

  Source: RigL (arXiv:1911.11134), algorithm 1, as in SRigL's baseline (no restriction of growth
  to positions that were inactive before).
  """
  layer = check_update(weights, grads, mask, axes)
  check_drop_fraction(drop_fraction)
  mask = to_matrix(mask, layer)
  magnitudes = ranking_key(to_matrix(weights, layer))
  num_active = count(mask)
  num_pruned = truncated_count(num_active, drop_fraction)
  kept = topk_mask(jnp.where(mask, magnitudes, 0), num_active - num_pruned)
  growth = jnp.where(kept, jnp.uint32(0), ranking_key(to_matrix(grads, layer)))
  return from_matrix(kept | topk_mask(growth, num_pruned), layer)


def set_update(
  weights: Array,
  key: Array,
  mask: Array,
  *,
  drop_fraction: Fraction,
  axes: AxesFn = flax_axes,
) -> Array:
  """One SET update: prune the smallest magnitudes, grow as many positions at random.

  Args:
    weights: kernel, any float dtype; only active entries are looked at.
    key: jax random key.
    mask: bool, same shape, True where active.
    drop_fraction: as for `srigl_update`.
    axes: as for `srigl_update`; it decides ties only.

  Returns:
    bool, the new mask with as many True as before.

  Raises:
    ValueError: if shapes differ or `drop_fraction` is outside [0, 1].

  Source: SET (Mocanu et al., 2018, doi:10.1038/s41467-018-04316-3), in the form RigL compares
  with: magnitudes ranked together whatever their sign, growth among all positions not kept.
  """
  scores = jax.random.uniform(key, mask.shape)
  return rigl_update(weights, scores, mask, drop_fraction=drop_fraction, axes=axes)
