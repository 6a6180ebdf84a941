"""A trained dense network pruned at once, to a constant fan-in by default."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax.allocation import Allocation, Distribution, allocate
from srigl_jax.blocks import group_sums, topk_mask_per_block
from srigl_jax.layer_filters import LayerFilter, all_but, select
from srigl_jax.layers import AxesFn, Layer, from_matrix, leaf_dict, to_matrix
from srigl_jax.masks import Masks
from srigl_jax.methods.ablation import neurons_that_stay, salient_threshold
from srigl_jax.methods.srigl import constant_fan_in_structure
from srigl_jax.stacks import map_stack, one_layer
from srigl_jax.structures import ConstantFanIn
from srigl_jax.topk import count_per_column, ranking_key, topk_mask
from srigl_jax.transform import sparse_training

_NOT_THE_HEAD = all_but("head")


def prune_to_fan_in(
  params: Any,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  *,
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  structure: ConstantFanIn | str = "constant_fan_in",
  sparse: LayerFilter = True,
  ablate: LayerFilter = _NOT_THE_HEAD,
  axes: AxesFn | None = None,
) -> Masks:
  """Masks of constant fan-in for a network that is trained already: its largest magnitudes.

  In each layer, of a budget of B weights:

  1. A weight is salient if it is among the B largest magnitudes of the layer. A neuron with fewer
     salient weights than a threshold is ablated, as `srigl_update` has it.
  2. Each neuron that stays keeps its `k = B // (neurons that stay)` largest magnitudes: the layer
     has as many weights as without ablation, in fewer neurons.

  A neuron's weights are compared with those of others as they are. In front of a norm their scale
  means nothing: ablate with care there, or with `gamma_sal=0` not at all.

      masks = sx.prune_to_fan_in(params, sparsity=0.9)
      params = sx.apply_masks(params, masks)
      tx = sx.fixed_masks(optax.adamw(1e-4), masks)  # fine-tuning; or sx.srigl(..., initial=masks)

  Args:
    params: the trained parameters, concrete arrays or traced.
    sparsity: fraction of the layers' weights that go; like `distribution`, `density` and `fan_in`,
      see `allocate`.
    distribution: see `allocate`.
    density: see `allocate`.
    fan_in: see `allocate`: connections of each neuron if none is ablated.
    gamma_sal: see `srigl_update`; 0 for no ablation.
    salient_base: see `srigl_update`.
    structure: `ConstantFanIn(...)`, with blocks of inputs or groups of neurons if need be.
    sparse: which layers are pruned.
    ablate: which layers may lose neurons. The classifier may not by default.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised (`plan`).

  Returns:
    Bool arrays by path. Ties: the lower index of the `[I, N]` matrix.

  Raises:
    ValueError: as `allocate`; if `gamma_sal` or `structure` is not as above.

  Source: one-shot magnitude pruning (Han et al., arXiv:1506.02626) in the structure of SRigL
  (arXiv:2305.02299), whose ablation goes by salient weights; here gradients have no say.
  """
  structure = constant_fan_in_structure(structure)
  allocation = allocate(
    params,
    sparsity,
    distribution,
    density=density,
    fan_in=fan_in,
    structure=structure,
    sparse=sparse,
    axes=axes,
  )
  return _magnitude_masks(params, allocation, gamma_sal, salient_base, ablate)


def prune_pretrained(
  inner: optax.GradientTransformation,
  *,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  structure: ConstantFanIn | str = "constant_fan_in",
  sparse: LayerFilter = True,
  ablate: LayerFilter = _NOT_THE_HEAD,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Fine-tunes what `prune_to_fan_in` leaves of the parameters that `init` is given.

  Mask the parameters before the first step: `sx.apply_masks(params, sx.get_masks(state))`. Other
  arguments are those of `prune_to_fan_in`.

  Args:
    inner: the optimizer to wrap.
    sparsity: see `allocate`.
    distribution: see `allocate`.
    density: see `allocate`.
    fan_in: see `allocate`.
    gamma_sal: see `srigl_update`; 0 for no ablation.
    salient_base: see `srigl_update`.
    structure: see `prune_to_fan_in`.
    sparse: which layers are pruned.
    ablate: which layers may lose neurons.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised (`plan`).

  Returns:
    A transformation like that of `srigl`, whose masks never change.

  Raises:
    ValueError: if an argument is out of range; on `init` as `prune_to_fan_in`.
  """
  structure = constant_fan_in_structure(structure)
  salient_threshold(gamma_sal, constant_fan_in=1, dense_fan_in=1, salient_base=salient_base)

  def initial(params: Any, allocation: Allocation) -> Masks:
    return _magnitude_masks(params, allocation, gamma_sal, salient_base, ablate)

  return sparse_training(
    inner,
    None,
    initial=initial,
    structure=structure,
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    fan_in=fan_in,
    sparse=sparse,
    axes=axes,
  )


def _magnitude_masks(
  params: Any, allocation: Allocation, gamma_sal: float, salient_base: str, ablate: LayerFilter
) -> Masks:
  """The masks of `prune_to_fan_in` at the budgets of an allocation."""
  leaves, structure = leaf_dict(params), allocation.structure
  assert isinstance(structure, ConstantFanIn)
  ablatable = select(ablate, allocation.layers, name="ablate")

  def prune(path: str) -> Array:
    one, gamma = one_layer(allocation.layers[path]), gamma_sal if path in ablatable else 0
    choose = lambda weights, budget: _magnitude_mask(
      weights, one, budget, structure, gamma, salient_base
    )
    return map_stack(
      choose, allocation.layers[path], (jnp.asarray(leaves[path]),), (allocation.budgets[path],)
    )

  return {path: prune(path) for path in allocation.budgets}


def _magnitude_mask(
  weights: Array,
  layer: Layer,
  budget: int | Array,
  structure: ConstantFanIn,
  gamma_sal: float,
  salient_base: str,
) -> Array:
  """The mask of one layer; see `prune_to_fan_in`."""
  group, blocks = structure.num_in_group(layer), structure.num_blocks(layer)
  num_inputs, num_neurons = layer.dense_fan_in, layer.num_neurons // group
  budget = budget // group
  magnitudes = ranking_key(group_sums(to_matrix(weights, layer), group))
  required = salient_threshold(
    gamma_sal,
    constant_fan_in=budget // (num_neurons * blocks) * blocks,
    dense_fan_in=num_inputs,
    salient_base=salient_base,
  )
  stays = jnp.ones((1, num_neurons), bool)
  if gamma_sal:
    num_salient = count_per_column(topk_mask(magnitudes, budget))
    stays = neurons_that_stay(num_salient, required, budget=budget, num_inputs=num_inputs)
  fan_in = budget // (stays.sum(dtype=jnp.int32) * blocks)
  chosen = topk_mask_per_block(magnitudes, jnp.where(stays, fan_in, 0)[0], num_inputs // blocks)
  return from_matrix(jnp.repeat(chosen, group, axis=1), layer)
