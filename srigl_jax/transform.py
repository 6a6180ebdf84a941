"""The optax wrapper under every method: sparse training round any optimizer.

It masks what the optimizer is given (gradients, moments, weights), keeps the dense gradients to
score growth, and emits updates after which masked weights are exactly 0.0: for a pruned weight w
the update is -w, exact in every float format. Because of that it must come last: nothing after it
may scale or add to its updates.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from srigl_jax.allocation import Allocation, allocate
from srigl_jax.layer_filters import find_layers, select
from srigl_jax.layers import AxesFn, check_paths, flax_axes, leaf_dict, map_leaves
from srigl_jax.mask_updates import LayerPlan, MaskUpdater, check_mask_updater, maybe_update_masks
from srigl_jax.masks import Masks, check_masks, init_masks
from srigl_jax.moments import mask_moments
from srigl_jax.schedule import num_updates
from srigl_jax.state import SparseState


def sparse_training(
  inner: optax.GradientTransformation,
  updater: MaskUpdater | None,
  *,
  structure: str = "unstructured",
  initial: Mapping[str, Array] | str = "random",
  axes: AxesFn = flax_axes,
  seed: int = 0,
  **sparsity_kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer into sparse training: what every method is made of.

  Args:
    inner: the optimizer.
    updater: how and when the topology changes; None: never.
    structure: of random masks and of the budgets; see `allocate`.
    initial: the masks to start with: `"random"` at the budgets, `"dense"` (every layer that has a
      budget starts with all of its weights), or masks by path, whose sizes then are the budgets.
    axes: which axes of a kernel are neurons.
    seed: of the initial masks and of random growth.
    **sparsity_kwargs: the other arguments of `allocate`.

  Raises:
    ValueError: if an argument is out of range; on `init` if the masks or the sparsity do not fit
      the parameters.
  """
  inner = optax.with_extra_args_support(inner)
  check_mask_updater(updater)
  if isinstance(initial, str) and initial not in ("random", "dense"):
    raise ValueError(f"initial is {initial!r}; it must be 'random', 'dense' or masks by path.")
  if not isinstance(initial, str) and sparsity_kwargs:
    raise ValueError(
      "initial gives masks, which say how sparse the layers are: leave out "
      f"{', '.join(sparsity_kwargs)}."
    )

  @functools.lru_cache(maxsize=8)
  def plan(spec: tuple[tuple[str, tuple[int, ...], np.dtype], ...]):
    leaves = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape, dtype in spec}
    if isinstance(initial, str):
      allocation = allocate(leaves, structure=structure, axes=axes, **sparsity_kwargs)
    else:
      layers = find_layers(leaves, sparse=lambda path, shape: path in initial, axes=axes)
      check_paths(initial, layers, name="initial")
      sizes = {path: int(np.asarray(initial[path]).sum()) for path in layers if path in initial}
      allocation = Allocation({p: n / layers[p].size for p, n in sizes.items()}, sizes, layers)
    ablatable = select(updater.ablate, allocation.layers, name="ablate") if updater else ()
    plans = {
      path: LayerPlan(allocation.layers[path].axes, path in ablatable)
      for path in allocation.budgets
    }
    return allocation, plans

  def plan_for(params):
    leaves = leaf_dict(params)
    return plan(tuple((path, leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves.items()))

  def initial_masks(key, params, allocation):
    if not isinstance(initial, str):
      check_masks(initial, params)
      return {path: jnp.array(initial[path], bool) for path in allocation.budgets}
    if initial == "dense":
      return {path: jnp.ones(allocation.layers[path].shape, bool) for path in allocation.budgets}
    return init_masks(key, allocation, structure)

  def init_fn(params):
    allocation, _ = plan_for(params)
    key = jax.random.key(seed)
    masks = initial_masks(key, params, allocation)
    averages = updater is not None and (
      updater.grad_accumulation_steps > 1 or updater.grad_decay > 0
    )
    return SparseState(
      step=jnp.zeros((), jnp.int32),
      masks=masks,
      explored=jax.tree.map(jnp.copy, masks),
      budgets={p: jnp.asarray(budget, jnp.int32) for p, budget in allocation.budgets.items()},
      key=jax.random.key_data(key),
      grad_mean={p: jnp.zeros(m.shape, jnp.float32) for p, m in masks.items() if averages},
      extra=(),
      inner_state=mask_moments(inner.init(params), params, masks),
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "Sparse training needs the parameters: call update(grads, state, params), not "
        "update(grads, state)."
      )
    _, plans = plan_for(params)
    _check_same_layers(plans, state.masks)
    before = state.masks

    def inner_update(masks):
      """The optimizer's step if masked weights had neither gradients, nor moments, nor values."""
      mask_tree = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, masks)
      moments = mask_moments(state.inner_state, params, masks)
      return inner.update(mask_tree(updates), moments, mask_tree(params), **extra_args)

    def params_after_step():
      return _leaves_of(optax.apply_updates(params, inner_update(before)[0]), before)

    new = state._replace(step=optax.safe_increment(state.step))
    if updater is not None and num_updates(updater.update_every, updater.update_until):
      new = maybe_update_masks(updater, plans, new, _leaves_of(updates, before), params_after_step)
    # What was just pruned is gone and what was just grown starts at 0 without moments, even if the
    # optimizer moves weights that have neither (noise, centralised or orthogonalised updates).
    # Masking what the optimizer is given, not the moments that it returns, keeps one pass over
    # memory: a moment needed both masked and as it is would be computed twice, from a copy.
    kept_masks = {path: before[path] & mask for path, mask in new.masks.items()}
    sparse_updates, inner_state = inner_update(kept_masks)
    sparse_updates = map_leaves(
      lambda u, p, mask: jnp.where(mask, u, -p.astype(jnp.promote_types(p.dtype, u.dtype))),
      sparse_updates,
      _leaves_of(params, kept_masks),
      kept_masks,
    )
    return sparse_updates, new._replace(inner_state=inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _leaves_of(tree: Any, masks: Mapping[str, Any]) -> dict[str, Array]:
  leaves = leaf_dict(tree)
  return {path: leaves[path] for path in masks}


def _check_same_layers(plans: Mapping[str, Any], masks: Masks) -> None:
  if plans.keys() != masks.keys():
    raise ValueError(
      f"The state has masks for {sorted(masks)}, but these parameters call for "
      f"{sorted(plans)}: `params` has changed since `init`, or the state is another model's."
    )
