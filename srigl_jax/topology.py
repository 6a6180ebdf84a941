"""Topology updates of one layer: which weights to prune, which to grow, which neurons to ablate.

Each method is a function of (weights, scores for growth, mask) that returns the new mask, pure
and free of data-dependent shapes. All of them take kernels in their own layout and work on the
matrix view `[I, N]` (inputs, neurons). What happens to values and moments is the transformation's
business: a connection grown where none was starts at 0, one pruned and regrown in the same
update keeps its value.

Rows are those of docs/algorithm.md: the places where the authors' code and the paper part.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_jax.blocks import (
  check_structure,
  count_per_block,
  group_sums,
  largest_per_block,
  num_blocks,
  num_in_group,
)
from srigl_jax.counts import ExactFraction, Fraction, share
from srigl_jax.leaves import AxesRule, Layer, flax_axes, from_matrix, make_layer, to_matrix
from srigl_jax.selection import ALWAYS, count, count_per_column, largest, magnitude_key

SALIENT_BASES = ("constant_fan_in", "dense_fan_in")


def srigl_update(
  weights: Array,
  grads: Array,
  mask: Array,
  *,
  budget: int | Array,
  drop_fraction: Fraction,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  block_size: int | None = None,
  group_size: int = 1,
  axes: AxesRule = flax_axes,
) -> Array:
  """One SRigL update: prune by magnitude, ablate neurons, grow by gradient, fan-in constant.

  With `n` active weights, `p = trunc(n * drop_fraction)` of them to be pruned (more when fewer
  than `n - p` weights are non-zero, namely all the zeros):

  1. A weight is salient if it is among the `n - p` largest magnitudes of the layer or the `p`
     largest gradient magnitudes (of all positions, active ones included). A neuron with fewer
     salient weights than a threshold is ablated: `max(1, trunc(gamma_sal * fan-in))`, lowered if
     need be so that the budget still fits into the neurons that stay.
  2. The fan-in becomes `k = budget // (neurons that stay)`.
  3. The `n - p` largest non-zero magnitudes in the neurons that stay are kept; a neuron with
     more than k of them keeps its k largest.
  4. Each neuron that stays grows to k connections by its largest gradients among all positions
     not kept, those just pruned included.

  Ablation is decided afresh each time, so an ablated neuron whose gradients make it salient
  comes back.

  With `block_size` M (N:M sparsity), points 2 to 4 hold for every block of M consecutive inputs
  of a neuron in place of the neuron: `k = budget // (blocks of the neurons that stay)`. With
  `group_size`, groups of consecutive neurons are what the above calls neurons, an input's
  magnitude and gradient in a group being the sums over its neurons; they share one mask.

  Args:
    weights: kernel of `N` neurons with `I` inputs each, any float dtype; taken as 0 off the mask.
    grads: dense gradient of the loss (or a mean of several), same shape.
    mask: bool, same shape, True where active.
    budget: connections the layer may have, at least one for each neuron (or block) and fewer
      than `I * N`; from `allocate`. May be traced, and is not checked then.
    drop_fraction: share of the active weights to prune, in [0, 1]. Python floats are counted in
      double, traced values exactly at their own precision.
    gamma_sal: the share of `salient_base` that must be salient in a neuron that stays, 0 for no
      ablation; 1 and above is an absolute number of weights.
    salient_base: `"constant_fan_in"`, the fan-in of the layer with no neuron ablated, or
      `"dense_fan_in"`, I.
    block_size: inputs of a block, a divisor of I; None: all of them, plain SRigL.
    group_size: neurons of a group, or its largest common divisor with N; 1: plain SRigL.
    axes: which axes are neurons, for layouts other than Flax's.

  Returns:
    bool, the new mask, same shape: each neuron (block) has either k connections or none, and at
    least `budget // I + 1` neurons stay. Ties: the larger key first, then the lower index of the
    `[I, N]` matrix, which for Flax kernels is the flat index of the kernel.

  Raises:
    ValueError: if shapes differ or an argument is out of range.

  Source: SRigL (arXiv:2305.02299), section 3, and the authors' code where the paper is silent:
  gradients of all positions count as salient (row 3), truncated threshold with a minimum of 1
  and a floor on the neurons that stay (row 4), relative to the fan-in without ablation (row 5).
  Unlike the authors' code, an over-full neuron keeps its largest weights rather than arbitrary
  ones (row 1), and exact zeros are never kept in place of pruned weights (row 2).
  """
  layer = _check_layer(weights, grads, mask, axes)
  _check_fraction(drop_fraction)
  check_structure(block_size, group_size)
  num_inputs, blocks = layer.dense_fan_in, num_blocks(layer, block_size)
  if not isinstance(budget, Array) and not layer.num_neurons * blocks <= budget < layer.size:
    each, split = ("neuron", "") if blocks == 1 else ("block", f" in {blocks} blocks")
    raise ValueError(
      f"budget is {budget}, but a layer of {layer.num_neurons} neurons with {num_inputs} inputs "
      f"each{split} needs {layer.num_neurons * blocks} <= budget < {layer.size}: at least one "
      f"connection for each {each} and fewer than a dense layer. Use the budget that `allocate` "
      "gives."
    )
  group = num_in_group(layer, group_size)
  num_neurons, budget = layer.num_neurons // group, budget // group
  block_size = num_inputs // blocks
  required = salient_threshold(
    gamma_sal,
    constant_fan_in=budget // (num_neurons * blocks) * blocks,
    dense_fan_in=num_inputs,
    salient_base=salient_base,
  )

  mask = to_matrix(mask, layer)
  weights = group_sums(jnp.where(mask, to_matrix(weights, layer), 0), group)
  magnitudes = magnitude_key(weights)
  gradients = magnitude_key(group_sums(to_matrix(grads, layer), group))
  nonzero = weights != 0

  num_active = count(mask.reshape(num_inputs, num_neurons, group).any(-1))
  num_pruned = share(num_active, drop_fraction)
  num_kept = jnp.minimum(num_active - num_pruned, count(nonzero))
  num_pruned = num_active - num_kept

  if gamma_sal == 0:
    stays = jnp.ones((1, num_neurons), bool)
  else:
    salient = largest(magnitudes, num_kept) | largest(gradients, num_pruned)
    num_salient = count_per_column(salient)
    floor = jnp.sort(num_salient[0], descending=True)[budget // num_inputs]
    stays = num_salient >= jnp.minimum(required, floor)
  fan_in = budget // (stays.sum(dtype=jnp.int32) * blocks)

  kept = largest(jnp.where(nonzero & stays, magnitudes, 0), num_kept) & nonzero & stays
  # One selection both trims the blocks that kept too many (by magnitude, among the kept) and
  # fills the others (the kept first, then by gradient): no block needs both.
  overfull = count_per_block(kept, block_size) > fan_in
  keys = jnp.where(
    overfull, jnp.where(kept, magnitudes, 0), jnp.where(kept, jnp.uint32(ALWAYS), gradients)
  )
  chosen = largest_per_block(keys, jnp.where(stays, fan_in, 0)[0], block_size)
  return from_matrix(jnp.repeat(chosen, group, axis=1), layer)


def salient_threshold(
  gamma_sal: float, *, constant_fan_in: int | Array, dense_fan_in: int, salient_base: str
) -> int | Array:
  """Salient weights that a neuron needs in order not to be ablated, before the floor; 0: none.

  Args:
    gamma_sal: as for `srigl_update`.
    constant_fan_in: fan-in of the layer's neurons when none is ablated; may be traced.
    dense_fan_in: fan-in of a dense neuron.
    salient_base: which of the two a `gamma_sal` below 1 is a share of.

  Raises:
    ValueError: if `gamma_sal` is negative or not a number, or `salient_base` unknown.
  """
  if salient_base not in SALIENT_BASES:
    raise ValueError(f"salient_base is {salient_base!r}; it must be one of {SALIENT_BASES}.")
  if isinstance(gamma_sal, Array) or not 0 <= gamma_sal < math.inf:
    raise ValueError(
      f"gamma_sal is {gamma_sal}; it must be a Python number: 0 for no ablation, a share of the "
      "fan-in below 1 (the paper's 0.3), or an absolute number of weights from 1 on."
    )
  if gamma_sal == 0:
    return 0
  if gamma_sal >= 1:
    return math.ceil(gamma_sal)
  base = constant_fan_in if salient_base == "constant_fan_in" else dense_fan_in
  if isinstance(base, Array):
    return jnp.maximum(1, share(base, float(gamma_sal)))
  return max(1, math.trunc(float(gamma_sal) * base))


def rigl_update(
  weights: Array,
  grads: Array,
  mask: Array,
  *,
  drop_fraction: Fraction,
  axes: AxesRule = flax_axes,
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
  layer = _check_layer(weights, grads, mask, axes)
  _check_fraction(drop_fraction)
  mask = to_matrix(mask, layer)
  magnitudes = magnitude_key(to_matrix(weights, layer))
  num_active = count(mask)
  num_pruned = share(num_active, drop_fraction)
  kept = largest(jnp.where(mask, magnitudes, 0), num_active - num_pruned)
  growth = jnp.where(kept, jnp.uint32(0), magnitude_key(to_matrix(grads, layer)))
  return from_matrix(kept | largest(growth, num_pruned), layer)


def set_update(
  weights: Array,
  key: Array,
  mask: Array,
  *,
  drop_fraction: Fraction,
  axes: AxesRule = flax_axes,
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


def _check_layer(weights: Array, grads: Array, mask: Array, axes: AxesRule) -> Layer:
  if not weights.shape == grads.shape == mask.shape or weights.ndim < 2:
    raise ValueError(
      f"weights, grads and mask have shapes {weights.shape}, {grads.shape} and {mask.shape}: "
      "they must be one kernel's, equal, with at least two axes."
    )
  if mask.dtype != jnp.bool_:
    raise ValueError(f"mask has dtype {mask.dtype}; it must be bool (use mask != 0).")
  return make_layer("kernel", weights.shape, axes)


def _check_fraction(drop_fraction: Fraction) -> None:
  if isinstance(drop_fraction, Array | ExactFraction):
    return  # its value may be traced; the schedule that made it is checked at its own door
  if not 0 <= float(np.asarray(drop_fraction)) <= 1:
    raise ValueError(f"drop_fraction is {drop_fraction}; it must lie in [0, 1].")
