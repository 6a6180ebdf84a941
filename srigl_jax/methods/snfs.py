"""Sparse networks from scratch: growth by momentum, and connections that move between layers."""

import jax.numpy as jnp
import optax
from jax import Array, lax

from srigl_jax.allocation import Distribution
from srigl_jax.exact_counts import truncated_count
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layer_views import LayerView
from srigl_jax.layers import AxesFn, check_countable, from_matrix, to_matrix
from srigl_jax.mask_updates import DropFraction, MaskUpdater
from srigl_jax.masks import Masks
from srigl_jax.structures import Unstructured
from srigl_jax.topk import count, ranking_key, topk_mask
from srigl_jax.transform import sparse_training


def snfs(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "uniform",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  grad_decay: float = 0.9,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Unstructured sparsity, growth by the momentum of dense gradients, and layers that trade.

  Needs the dense gradient, and memory for its mean, in every step. Arguments not listed: as for
  `srigl`.

  Args:
    inner: the optimizer to wrap.
    update_until: see `srigl`.
    sparsity: of all layers together; it stays as it is.
    distribution: of the initial masks; layers that it leaves dense take no part.
    density: see `srigl`.
    update_every: see `srigl`; the source has one epoch.
    drop_fraction: see `srigl`.
    grad_decay: fraction of the mean gradient that each step keeps.
    sparse: see `srigl`.
    axes: see `srigl`.
    seed: of the initial masks.

  Raises:
    ValueError: if an argument is out of range.

  Source: Dettmers & Zettlemoyer, Sparse Networks from Scratch: Faster Training without Losing
  Performance (arXiv:1907.04840), section 3.
  """
  updater = MaskUpdater(
    snfs_update, update_every, update_until, drop_fraction, grad_decay=grad_decay
  )
  return sparse_training(
    inner,
    updater,
    structure=Unstructured(),
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def snfs_update(layers: dict[str, LayerView]) -> Masks:
  """One update of the whole network.

  1. Each layer of n active weights loses the `trunc(n * drop_fraction)` of least magnitude.
  2. What all layers lost is divided among them in proportion to the mean magnitude of the scores
     (momentum) of their active weights; see `divide`.
  3. Each layer grows its part where scores are largest, among all positions not kept.

  Args:
    layers: as the transformation shows them, scores being mean gradients.

  Returns:
    New masks, as many True in all as before. Ties: the lower index stays or grows.
  """
  if not layers:
    return {}
  check_countable(*(view.layer for view in layers.values()))
  kept, pruned, means, room = {}, [], [], []
  for path, view in layers.items():
    mask = to_matrix(view.mask, view.layer)
    num_active = count(mask)
    num_pruned = jnp.where(view.frozen, 0, truncated_count(num_active, view.drop_fraction))
    magnitudes = ranking_key(to_matrix(view.weights, view.layer))
    kept[path] = topk_mask(jnp.where(mask, magnitudes, 0), num_active - num_pruned)
    pruned.append(num_pruned)
    scores = jnp.abs(to_matrix(view.scores, view.layer).astype(jnp.float32))
    means.append(jnp.where(mask, scores, 0).sum() / jnp.maximum(num_active, 1).astype(jnp.float32))
    room.append(jnp.where(view.frozen, 0, mask.size - (num_active - num_pruned)))
  grown = divide(sum(pruned, jnp.int32(0)), jnp.stack(means), jnp.stack(room))
  masks = {}
  for i, (path, view) in enumerate(layers.items()):
    scores = ranking_key(to_matrix(view.scores, view.layer))
    growth = topk_mask(jnp.where(kept[path], 0, scores), grown[i])
    masks[path] = from_matrix(kept[path] | growth, view.layer)
  return masks


def divide(total: Array, weights: Array, room: Array) -> Array:
  """Divides a whole number in proportion to weights, in whole parts that are not above `room`.

  What does not fit is divided among the others in the same way. A part differs from its exact
  share by less than one (and the rounding of float32): parts are differences of the truncated
  running sums of the fractions.

  Args:
    total: `[]` int32, at most `sum(room)`.
    weights: `[L]` float32, not negative; equal ones count if no open part has a positive one.
    room: `[L]` int32.

  Returns:
    `[L]` int32 with the sum `total`.
  """

  def fill(_, parts):
    rest = total - parts.sum(dtype=jnp.int32)
    is_open = parts < room
    shares = jnp.where(is_open, weights, 0)
    shares = jnp.where(shares.sum() > 0, shares, is_open.astype(jnp.float32))
    running = jnp.cumsum(shares)
    bounds = (rest.astype(jnp.float32) * (running / running[-1])).astype(jnp.int32)
    bounds = jnp.where(running == running[-1], rest, jnp.minimum(bounds, rest))
    return jnp.minimum(parts + jnp.diff(bounds, prepend=0), room)

  # Every round fills a part up or leaves nothing to divide.
  return lax.fori_loop(0, len(weights), fill, jnp.zeros(weights.shape, jnp.int32))
