"""SRigL: one layer's topology update, and the optax transformation that applies it.

An update is a function of (weights, scores for growth, mask) that returns the new mask, pure and
free of data-dependent shapes. It takes a kernel in its own layout and works on the matrix view
`[I, N]` (inputs, neurons). What happens to values and moments is the transformation's business: a
connection grown where none was starts at 0, one pruned and regrown in the same update keeps its
value. Rows are those of docs/algorithm.md: the places where the authors' code and the paper part.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax.allocation import Distribution
from srigl_jax.blocks import count_per_block, group_sums, topk_mask_per_block
from srigl_jax.exact_counts import Fraction, truncated_count
from srigl_jax.layer_filters import LayerFilter, all_but
from srigl_jax.layer_views import LayerView, per_layer
from srigl_jax.layers import AxesFn, flax_axes, from_matrix, to_matrix
from srigl_jax.mask_updates import (
  DropFraction,
  MaskUpdater,
  check_drop_fraction,
  check_update,
)
from srigl_jax.methods.ablation import neurons_that_stay, salient_threshold
from srigl_jax.structures import ConstantFanIn, as_structure
from srigl_jax.topk import ALWAYS, count, count_per_column, ranking_key, topk_mask
from srigl_jax.transform import sparse_training

_NOT_THE_HEAD = all_but("head")


def srigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  structure: ConstantFanIn | str = "constant_fan_in",
  grad_accumulation_steps: int = 1,
  initial: Mapping[str, Array] | None = None,
  sparse: LayerFilter = True,
  ablate: LayerFilter = _NOT_THE_HEAD,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Structured RigL: constant fan-in, regrowth by gradient, ablation of useless neurons.

  In each step the inner optimizer moves the weights; every `update_every` steps before
  `update_until` the topology is then updated (`srigl_update`), magnitudes being those after the
  move and gradients those before it.

  Args:
    inner: the optimizer to wrap; gradient clipping that should see masked gradients goes inside.
    update_until: T_end, the step at which topology updates end; the papers use three quarters
      of the run.
    sparsity: fraction of the layers' weights that are missing; like `distribution`, `density` and
      `fan_in`, see `allocate`.
    distribution: see `allocate`.
    density: see `allocate`.
    fan_in: see `allocate`.
    update_every: ΔT, steps between topology updates.
    drop_fraction: fraction of the active weights that an update prunes: the initial one of a cosine
      that reaches 0 at `update_until`; or a function of the step (traced) that returns it.
    gamma_sal: see `srigl_update`; 0 for no ablation. 0.3 suits convolutional networks, 0.95
      vision transformers (which are pruned in width far more).
    salient_base: see `srigl_update`.
    structure: `ConstantFanIn(...)`, with blocks of inputs (see `nm_srigl`) or groups of neurons
      that share their inputs; see `ConstantFanIn`.
    grad_accumulation_steps: how many of the last dense gradients before an update its growth
      score averages; 1 costs no memory.
    initial: the masks to start with, such as those of `prune_to_fan_in`, in place of random ones;
      their sizes are the budgets: leave out what says how sparse the layers are.
    sparse: which layers may be sparse; see `only` and `all_but`.
    ablate: which layers may lose neurons. The classifier may not by default.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised (`plan`).
    seed: of the initial masks.

  Under `optax.inject_hyperparams`, inject into a function of the hyperparameter alone, since the
  other arguments have to stay Python values:
  `inject_hyperparams(lambda rate: srigl(optax.sgd(rate), ...))(rate=0.1)`.

  Returns:
    A transformation whose `update` takes the plain dense gradients of the loss and needs
    `params`. Its state is a `SparseState`; `get_masks` finds the masks in it.

  Raises:
    ValueError: if an argument is out of range; on `init` if a layer's fan-in would be 0.

  Source: SRigL (arXiv:2305.02299), section 3; order of optimizer and topology update within a
  step as in the authors' code (docs/algorithm.md, row 9).
  """
  structure = constant_fan_in_structure(structure)
  salient_threshold(gamma_sal, constant_fan_in=1, dense_fan_in=1, salient_base=salient_base)

  how_sparse: dict[str, Any] | None = {
    "structure": structure,
    "sparsity": sparsity,
    "distribution": distribution,
    "density": density,
    "fan_in": fan_in,
    "sparse": sparse,
  }
  if initial is not None:
    if sparsity is not None or density is not None or fan_in is not None:
      raise ValueError(
        "initial gives masks, which say how sparse the layers are: leave out sparsity, density and "
        "fan_in."
      )
    how_sparse = None

  def update(layer: LayerView) -> Array:
    return srigl_update(
      layer.weights,
      layer.scores,
      layer.mask,
      budget=layer.budget,
      drop_fraction=layer.drop_fraction,
      gamma_sal=gamma_sal if layer.may_ablate else 0,
      salient_base=salient_base,
      structure=structure,
      axes=lambda *_: layer.axes,
    )

  return sparse_training(
    inner,
    MaskUpdater(
      per_layer(update),
      update_every,
      update_until,
      drop_fraction,
      grad_accumulation_steps,
      ablate=ablate,
    ),
    axes=axes,
    seed=seed,
    **({"initial": initial} if how_sparse is None else how_sparse),
  )


def srigl_update(
  weights: Array,
  grads: Array,
  mask: Array,
  *,
  budget: int | Array,
  drop_fraction: Fraction,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  structure: ConstantFanIn = ConstantFanIn(),
  axes: AxesFn = flax_axes,
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

  With blocks of M inputs (N:M sparsity), points 2 to 4 hold for every block of M consecutive inputs
  of a neuron in place of the neuron: `k = budget // (blocks of the neurons that stay)`. With
  groups, groups of consecutive neurons are what the above calls neurons, an input's
  magnitude and gradient in a group being the sums over its neurons; they share one mask.

  Args:
    weights: kernel of `N` neurons with `I` inputs each, any float dtype; taken as 0 off the mask.
    grads: dense gradient of the loss (or a mean of several), same shape.
    mask: bool, same shape, True where active.
    budget: connections the layer may have, at least one for each neuron (or block) and fewer
      than `I * N`; from `allocate`. May be traced, and is not checked then.
    drop_fraction: fraction of the active weights to prune, in [0, 1]. Python floats are counted in
      double, traced values exactly at their own precision.
    gamma_sal: the fraction of `salient_base` that must be salient in a neuron that stays, 0 for no
      ablation; 1 and above is an absolute number of weights.
    salient_base: `"constant_fan_in"`, the fan-in of the layer with no neuron ablated, or
      `"dense_fan_in"`, I.
    structure: blocks of inputs and groups of neurons, if any; by default plain SRigL.
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
  layer = check_update(weights, grads, mask, axes)
  check_drop_fraction(drop_fraction)
  num_inputs, blocks = layer.dense_fan_in, structure.num_blocks(layer)
  if not isinstance(budget, Array) and not layer.num_neurons * blocks <= budget < layer.size:
    each, split = ("neuron", "") if blocks == 1 else ("block", f" in {blocks} blocks")
    raise ValueError(
      f"budget is {budget}, but a layer of {layer.num_neurons} neurons with {num_inputs} inputs "
      f"each{split} needs {layer.num_neurons * blocks} <= budget < {layer.size}: at least one "
      f"connection for each {each} and fewer than a dense layer. Use the budget that `allocate` "
      "gives."
    )
  group = structure.num_in_group(layer)
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
  magnitudes = ranking_key(weights)
  gradients = ranking_key(group_sums(to_matrix(grads, layer), group))
  nonzero = weights != 0

  num_active = count(mask.reshape(num_inputs, num_neurons, group).any(-1))
  num_pruned = truncated_count(num_active, drop_fraction)
  num_kept = jnp.minimum(num_active - num_pruned, count(nonzero))
  num_pruned = num_active - num_kept

  if gamma_sal == 0:
    stays = jnp.ones((1, num_neurons), bool)
  else:
    salient = topk_mask(magnitudes, num_kept) | topk_mask(gradients, num_pruned)
    stays = neurons_that_stay(
      count_per_column(salient), required, budget=budget, num_inputs=num_inputs
    )
  fan_in = budget // (stays.sum(dtype=jnp.int32) * blocks)

  kept = topk_mask(jnp.where(nonzero & stays, magnitudes, 0), num_kept) & nonzero & stays
  # One selection both trims the blocks that kept too many (by magnitude, among the kept) and
  # fills the others (the kept first, then by gradient): no block needs both.
  overfull = count_per_block(kept, block_size) > fan_in
  keys = jnp.where(
    overfull, jnp.where(kept, magnitudes, 0), jnp.where(kept, jnp.uint32(ALWAYS), gradients)
  )
  chosen = topk_mask_per_block(keys, jnp.where(stays, fan_in, 0)[0], block_size)
  return from_matrix(jnp.repeat(chosen, group, axis=1), layer)


def constant_fan_in_structure(given: ConstantFanIn | str) -> ConstantFanIn:
  """A structure from itself or its name; a ValueError unless it is of constant fan-in."""
  structure = as_structure(given)
  if not isinstance(structure, ConstantFanIn):
    raise ValueError(
      f"structure is {given!r}, but SRigL keeps a constant fan-in: give ConstantFanIn(...), or use "
      "rigl for unstructured sparsity."
    )
  return structure
