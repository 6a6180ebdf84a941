"""`srigl_update` by sorting: the baselines of the training benchmark.

They are written the way sparse training mostly is in JAX, with the formulation of `srigl_update`
(four selections per layer), and differ in how they select.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Select(NamedTuple):
  """How a baseline selects, by non-negative scores without ties.

  Attributes:
    topk_mask: `(scores [I, N], k) -> [I, N] bool`, the k largest.
    topk_mask_per_column: `(scores [I, N], k [N]) -> [I, N] bool`, the k largest of each column.
  """

  topk_mask: Callable[[Array, Array], Array]
  topk_mask_per_column: Callable[[Array, Array], Array]


def _argsort_mask(scores: Array, k: Array) -> Array:
  order = jnp.argsort(-scores.reshape(-1))
  chosen = jnp.arange(scores.size) < k
  return jnp.zeros(scores.size, bool).at[order].set(chosen).reshape(scores.shape)


def _argsort_mask_per_column(scores: Array, k: Array) -> Array:
  order = jnp.argsort(-scores, axis=0)
  chosen = jnp.arange(scores.shape[0])[:, None] < k[None]
  return jnp.put_along_axis(jnp.zeros(scores.shape, bool), order, chosen, axis=0, inplace=False)


def _sort_mask(scores: Array, k: Array) -> Array:
  bits = lax.bitcast_convert_type(scores, jnp.uint32)
  threshold = jnp.sort(bits.reshape(-1))[bits.size - jnp.maximum(k, 1)]
  return (bits >= threshold) & (k > 0)


def _sort_mask_per_column(scores: Array, k: Array) -> Array:
  bits = lax.bitcast_convert_type(scores, jnp.uint32)
  index = bits.shape[0] - jnp.maximum(k, 1)[:, None]
  # Sorting along the last axis of the transpose is faster than along the first axis.
  threshold = jnp.take_along_axis(jnp.sort(bits.T, axis=1), index, axis=1)
  return (bits >= threshold.T) & (k > 0)[None]


ARGSORT = Select(_argsort_mask, _argsort_mask_per_column)
SORT = Select(_sort_mask, _sort_mask_per_column)


def sorting_update(
  weights: Array,
  grads: Array,
  mask: Array,
  *,
  budget: int,
  drop_fraction: float,
  gamma_sal: float,
  select: Select,
) -> Array:
  """The new mask of one layer, its neurons on the last axis; arguments as of `srigl_update`.

  Args:
    weights: of the layer.
    grads: dense, of the same shape.
    mask: bool, of the same shape.
    budget: connections that the layer may have.
    drop_fraction: a number of which products with integers are exact, such as 1/4.
    gamma_sal: fraction of the fan-in that must be salient; 0: no ablation.
    select: how.
  """
  shape = mask.shape
  weights, grads, mask = (x.reshape(-1, shape[-1]) for x in (weights, grads, mask))
  num_inputs, num_neurons = mask.shape
  magnitudes, gradients = jnp.where(mask, jnp.abs(weights), 0.0), jnp.abs(grads)
  nonzero = magnitudes > 0

  num_active = mask.sum()
  num_pruned = jnp.floor(num_active * drop_fraction).astype(jnp.int32)
  num_kept = jnp.minimum(num_active - num_pruned, nonzero.sum())
  num_pruned = num_active - num_kept

  stays = jnp.ones(num_neurons, bool)
  if gamma_sal:
    salient = select.topk_mask(magnitudes, num_kept) | select.topk_mask(gradients, num_pruned)
    num_salient = salient.sum(0)
    required = max(1, math.trunc(gamma_sal * (budget // num_neurons)))
    floor = jnp.sort(num_salient, descending=True)[budget // num_inputs]
    stays = num_salient >= jnp.minimum(required, floor)
  fan_in = budget // stays.sum()

  candidates = nonzero & stays[None]
  kept = select.topk_mask(jnp.where(candidates, magnitudes, 0.0), num_kept) & candidates
  overfull = (kept.sum(0) > fan_in)[None]
  to_trim = jnp.where(kept, magnitudes, 0.0)
  to_fill = jnp.where(kept, jnp.inf, gradients)
  k = jnp.where(stays, fan_in, 0)
  return select.topk_mask_per_column(jnp.where(overfull, to_trim, to_fill), k).reshape(shape)
