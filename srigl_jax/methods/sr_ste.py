"""N:M sparsity learnt from scratch: dense weights behind a mask that follows them."""

import jax
import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax import noticed
from srigl_jax.allocation import allocate
from srigl_jax.arguments import check_optimizer
from srigl_jax.blocks import topk_mask_per_block
from srigl_jax.by_path import ByPath
from srigl_jax.eager import compiled_if_eager
from srigl_jax.growth_scores import all_finite
from srigl_jax.layer_filters import LayerFilter, judge_leaves
from srigl_jax.layers import AxesFn, Layer, from_matrix, leaf_dict, map_leaves, to_matrix
from srigl_jax.leaves.specs import cached_by_shapes
from srigl_jax.moments import start_from
from srigl_jax.stacks import map_stack, one_layer
from srigl_jax.state import SparseState, as_by_path
from srigl_jax.structures import ConstantFanIn, n_of_m
from srigl_jax.topk import ranking_key
from srigl_jax.training_plan import make_training_plan, report


def sr_ste(
  inner: optax.GradientTransformation,
  n: int = 2,
  m: int = 4,
  *,
  decay: float = 2e-4,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """N:M sparsity by the sparse-refined straight-through estimator.

  The parameters hold the masked weights, so the gradients of the loss are those of the
  straight-through estimator; the dense weights behind the mask are in the state's `extra`. In
  each step the inner optimizer moves the dense weights by that gradient plus `decay` times the
  weights that the mask hides, and the mask becomes the n largest magnitudes of every block of m
  consecutive inputs of a neuron. A parameter off the mask is exactly 0.

  Args:
    inner: the optimizer to wrap. It sees dense weights and dense gradients, and its moments are
      dense.
    n: weights kept in each block.
    m: inputs of a block, consecutive in the `[I, N]` view (convolutions: window row, window
      column, input channel); must divide the inputs of each sparse layer.
    decay: λ of the source, 2e-4 there.
    sparse: which layers may be sparse; `all_but(inputs_multiple_of=m)` leaves out those that m does
      not divide.
    axes: the layout of kernels, as for `srigl`.

  Returns:
    A transformation like that of `srigl`. `init` takes the first masks from the magnitudes of the
    weights that it is given, and keeps those that are hidden: weights should not be drawn anew
    after it.

  Raises:
    ValueError: if n is not in 1..m or `decay` is negative; on `init` if m does not divide a sparse
      layer's inputs.

  Source: Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch
  (arXiv:2102.04010), its SR-STE.
  """
  check_optimizer("inner", inner)
  structure = n_of_m(n, m)
  if not isinstance(decay, Array) and not decay >= 0:
    raise ValueError(f"decay is {decay}; it must be 0 or more.")
  inner = optax.with_extra_args_support(inner)

  @cached_by_shapes
  def plan_for(leaves):
    judged = judge_leaves(leaves, sparse=sparse, axes=axes)
    allocation = allocate(leaves, fan_in=n, structure=structure, sparse=sparse, axes=axes)
    return make_training_plan(judged, allocation)

  def masks_of(weights, budgets, layers):
    def mask_of(weights, layer, budget):
      mask = lambda w, k: n_of_m_mask(w, one_layer(layer), k, structure)
      return map_stack(mask, layer, (weights,), (budget,))

    return {p: mask_of(w, layers[p], budgets[p]) for p, w in weights.items()}

  def init_fn(params):
    plan = plan_for(params)
    report(plan)
    allocation = plan.allocation
    leaves = leaf_dict(params)
    weights = {path: jnp.copy(leaves[path]) for path in allocation.budgets}
    budgets = {p: jnp.asarray(budget, jnp.int32) for p, budget in allocation.budgets.items()}
    masks = masks_of(weights, budgets, allocation.layers)
    state = SparseState(
      step=jnp.zeros((), jnp.int32),
      masks=masks,
      explored=jax.tree.map(jnp.copy, masks),
      budgets=budgets,
      key=jax.random.key_data(jax.random.key(0)),
      grad_mean={},
      extra=ByPath(weights),
      noticed=noticed.nothing(),
      inner_state=inner.init(params),
    )
    return as_by_path(state)

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError("sr_ste needs the parameters: call update(grads, state, params).")
    # What shows is the truth, and may have been changed; what is hidden is remembered.
    behind = lambda p, mask, w: jnp.where(mask, p, w)
    dense = map_leaves(behind, params, state.masks, state.extra)
    refined = lambda g, mask, w: g + jnp.where(mask, 0, decay * w).astype(g.dtype)
    grads = map_leaves(refined, updates, state.masks, state.extra)
    inner_state = start_from(inner, state.inner_state, dense, state.step)
    steps, inner_state = inner.update(grads, inner_state, dense, **extra_args)
    new_params = leaf_dict(optax.apply_updates(dense, steps))
    weights = {path: new_params[path] for path in state.masks}
    allocation = plan_for(params).allocation
    masks = masks_of(weights, state.budgets, allocation.layers)
    # A weight that is infinite or NaN cannot be pruned: nothing that one adds makes it 0.
    finite = {path: all_finite(w) for path, w in weights.items()}
    masks = {p: jnp.where(finite[p], mask, state.masks[p]) for p, mask in masks.items()}
    sparse_updates = map_leaves(_to_masked, steps, leaf_dict(params), state.masks, masks, weights)
    new = state._replace(
      step=optax.safe_increment(state.step),
      masks=masks,
      explored={path: state.explored[path] | mask for path, mask in masks.items()},
      extra=type(state.extra)(weights),
      noticed=noticed.look(
        state.noticed,
        state.step,
        None,
        masks=state.masks,
        weights={path: leaf_dict(params)[path] for path in state.masks},
        budgets=state.budgets,
        own_budgets=allocation.budgets,
      ),
      inner_state=inner_state,
    )
    return sparse_updates, as_by_path(new, like=state)

  return optax.GradientTransformationExtraArgs(init_fn, compiled_if_eager(update_fn))


def _to_masked(update: Array, param: Array, old: Array, new: Array, weight: Array) -> Array:
  """The update from the parameter under the old mask to the dense weight under the new one."""
  wide = jnp.promote_types(param.dtype, update.dtype)
  dense = jnp.where(new, weight, 0).astype(wide) - param.astype(wide)
  return jnp.where(new & old, update, dense)


def n_of_m_mask(
  weights: Array, layer: Layer, budget: Array | int, structure: ConstantFanIn
) -> Array:
  """The largest magnitudes of every block of inputs.

  Args:
    weights: kernel, any float dtype.
    layer: its neurons and inputs.
    budget: connections of the layer, the same number in each of its blocks; may be traced.
    structure: its blocks.

  Returns:
    bool, the kernel's shape. Ties: the lower input stays.
  """
  blocks = structure.num_blocks(layer)
  n = budget // (layer.num_neurons * blocks)
  keys = ranking_key(to_matrix(weights, layer))
  return from_matrix(topk_mask_per_block(keys, n, layer.dense_fan_in // blocks), layer)
