"""The optax wrapper under every method: sparse training around any optimizer.

It masks what the optimizer is given (gradients, moments, weights), keeps the dense gradients to
score growth, and emits updates after which masked weights are exactly 0.0: for a pruned weight w
the update is -w, exact in every float format. Because of that it must come last: nothing after it
may scale or add to its updates.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax import noticed
from srigl_jax.allocation import Allocation, allocate
from srigl_jax.arguments import check_optimizer
from srigl_jax.eager import compiled_if_eager
from srigl_jax.layer_filters import find_layers, judge_leaves, select
from srigl_jax.layers import AxesFn, check_countable, check_paths, leaf_dict, map_leaves
from srigl_jax.leaves.specs import LeafSpec, cached_by_shapes
from srigl_jax.mask_updates import (
  MaskUpdater,
  StepTaken,
  check_mask_updater,
  maybe_update_masks,
)
from srigl_jax.masks import Masks, check_masks, init_masks
from srigl_jax.moments import fresh_state, mask_moments, start_from
from srigl_jax.schedule import num_updates
from srigl_jax.stacks import num_weights, one_layer
from srigl_jax.state import SparseState, as_by_path
from srigl_jax.training_plan import TrainingPlan, make_training_plan, report

Initial = str | Callable[[Any, Allocation], Mapping[str, Array]] | Mapping[str, Array]


def sparse_training(
  inner: optax.GradientTransformation,
  updater: MaskUpdater | None,
  *,
  initial: Initial = "random",
  axes: AxesFn | None = None,
  seed: int = 0,
  **sparsity_kwargs: Any,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer into sparse training: what every method is made of.

  Args:
    inner: the optimizer.
    updater: how and when the masks change; None: never.
    initial: the masks to start with: `"random"` at the budgets, `"dense"` (every layer that has a
      budget starts with all of its weights), a function of the parameters and their `Allocation`,
      or masks by path, whose sizes then are the budgets.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised (`plan`).
    seed: of the initial masks and of random growth.
    **sparsity_kwargs: the other arguments of `allocate`; `structure` is unstructured by default.

  Raises:
    ValueError: if an argument is out of range; on `init` if the masks or the sparsity do not fit
      the parameters.
  """
  check_optimizer("inner", inner)
  inner = optax.with_extra_args_support(inner)
  check_mask_updater(updater)
  _check_sparsity_kwargs(sparsity_kwargs)
  _check_initial(initial, sparsity_kwargs)
  plan_for = cached_by_shapes(
    functools.partial(_make_plan, updater, initial, axes, sparsity_kwargs)
  )

  def init_fn(params):
    key = jax.random.key(seed)
    plan = plan_for(params)
    report(plan)
    allocation = plan.allocation
    masks = _initial_masks(initial, key, params, allocation)
    state = SparseState(
      step=jnp.zeros((), jnp.int32),
      masks=masks,
      explored=jax.tree.map(jnp.copy, masks),
      budgets={p: jnp.asarray(budget, jnp.int32) for p, budget in allocation.budgets.items()},
      key=jax.random.key_data(key),
      grad_mean=_zero_gradients(updater, masks),
      extra=(),
      noticed=noticed.nothing(),
      inner_state=mask_moments(
        inner.init(params), params, masks, fresh_state(inner, params, masks)
      ),
    )
    return as_by_path(state)

  def evolve(grads, state, inner_state, params, extra_args):
    """The state but for the optimizer's: the topology updated if it is time, things noticed."""
    plan = plan_for(params)
    new_state = state._replace(
      step=optax.safe_increment(state.step),
      noticed=noticed.look(
        state.noticed,
        state.step,
        updater.update_every if updater else None,
        masks=state.masks,
        weights=_leaves_of(params, state.masks),
        budgets=state.budgets,
        own_budgets=plan.allocation.budgets,
      ),
    )
    if updater is None or not num_updates(updater.update_every, updater.update_until):
      return new_state
    step = functools.partial(_masked_step, inner, grads, inner_state, params, extra_args)
    take_step = lambda: _step_taken(step(state.masks)[0], params, state.masks)
    return maybe_update_masks(updater, plan.layers, new_state, grads, take_step)

  evolve = compiled_if_eager(evolve)

  def update_fn(updates, state, params=None, **extra_args):
    _check_same_layers(plan_for, updater, params, state)
    masked = map_leaves(lambda x, mask: jnp.where(mask, x, 0), params, state.masks)
    inner_state = start_from(inner, state.inner_state, masked, state.step)
    others = state._replace(inner_state=())
    new_state = evolve(updates, others, inner_state, params, extra_args)
    # What was just pruned is gone and what was just grown starts at 0 without moments, even if the
    # optimizer moves weights that have neither (noise, centralised or orthogonalised updates).
    # Masking what the optimizer is given, not the moments that it returns, keeps one pass over
    # memory: a moment needed both masked and as it is would be computed twice, from a copy.
    kept_masks = {path: state.masks[path] & mask for path, mask in new_state.masks.items()}
    updates, inner_state = _masked_step(inner, updates, inner_state, params, extra_args, kept_masks)
    updates = _zero_masked_updates(kept_masks, updates, params)
    return updates, as_by_path(new_state._replace(inner_state=inner_state), like=state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _make_plan(
  updater: MaskUpdater | None,
  initial: Initial,
  axes: AxesFn | None,
  sparsity_kwargs: Mapping[str, Any],
  leaves: dict[str, LeafSpec],
) -> TrainingPlan:
  if isinstance(initial, str) or callable(initial):
    allocation = allocate(leaves, axes=axes, **{"structure": "unstructured", **sparsity_kwargs})
  else:
    allocation = _allocation_of(initial, leaves, axes)
  ablatable = select(updater.ablate, allocation.layers, name="ablate") if updater else ()
  given = initial if isinstance(initial, Mapping) else {}
  sparse = sparsity_kwargs.get("sparse", True)
  judged = judge_leaves(leaves, sparse=sparse, axes=axes, masks=given)
  return make_training_plan(judged, allocation, ablatable)


def _allocation_of(
  masks: Mapping[str, Array], leaves: dict[str, Any], axes: AxesFn | None
) -> Allocation:
  """The allocation whose budgets are the sizes of given masks."""
  layers = find_layers(leaves, axes=axes, masks=masks)
  check_paths(masks, layers, name="initial")
  check_masks(masks, leaves)
  for path in masks:
    check_countable(one_layer(layers[path]))
  sizes = {path: num_weights(masks[path], layers[path]) for path in layers if path in masks}
  return Allocation({p: n / layers[p].size for p, n in sizes.items()}, sizes, layers)


def _initial_masks(initial: Initial, key: Array, params: Any, allocation: Allocation) -> Masks:
  if callable(initial):
    return {path: jnp.asarray(mask, bool) for path, mask in initial(params, allocation).items()}
  if not isinstance(initial, str):
    return {path: jnp.array(initial[path], bool) for path in allocation.budgets}
  if initial == "dense":
    return {path: jnp.ones(allocation.layers[path].shape, bool) for path in allocation.budgets}
  return init_masks(key, allocation)


def _zero_gradients(updater: MaskUpdater | None, masks: Masks) -> dict[str, Array]:
  """Where the mean of dense gradients is to be kept; empty if growth needs none."""
  if not _keeps_mean(updater):
    return {}
  return {path: jnp.zeros(mask.shape, jnp.float32) for path, mask in masks.items()}


def _keeps_mean(updater: MaskUpdater | None) -> TypeGuard[MaskUpdater]:
  return updater is not None and (updater.grad_accumulation_steps > 1 or updater.grad_decay > 0)


def _masked_step(
  inner: optax.GradientTransformationExtraArgs,
  grads: Any,
  inner_state: Any,
  params: Any,
  extra_args: Mapping[str, Any],
  masks: Masks,
) -> tuple[Any, Any]:
  """The optimizer's step if masked weights had neither gradients, nor moments, nor values."""
  mask_tree = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, masks)
  moments = mask_moments(inner_state, params, masks, fresh_state(inner, params, masks))
  return inner.update(mask_tree(grads), moments, mask_tree(params), **extra_args)


def _step_taken(updates: Any, params: Any, masks: Masks) -> StepTaken:
  """What a topology update sees of the optimizer's step under the old masks."""
  is_active = lambda update, mask: jnp.where(mask, update, 0)
  active = map_leaves(is_active, updates, masks)
  moved = {path: jnp.any(update != 0) for path, update in leaf_dict(active).items()}
  any_moved = jnp.stack(list(moved.values())).any()
  after = _leaves_of(optax.apply_updates(params, updates), masks)
  frozen = {p: any_moved & ~moved[p] & mask.any() for p, mask in masks.items()}
  return StepTaken(after, frozen)


def _zero_masked_updates(masks: Masks, updates: Any, params: Any) -> Any:
  """The updates, those of masked weights replaced by -w, after which they are exactly 0."""
  return map_leaves(
    lambda u, p, mask: jnp.where(mask, u, -p.astype(jnp.promote_types(p.dtype, u.dtype))),
    updates,
    _leaves_of(params, masks),
    masks,
  )


def _leaves_of(tree: Any, masks: Mapping[str, Any]) -> dict[str, Array]:
  leaves = leaf_dict(tree)
  return {path: leaves[path] for path in masks}


_SPARSITY_ARGUMENTS = set(inspect.signature(allocate).parameters) - {"params", "axes"}


def _check_sparsity_kwargs(given: Collection[str]) -> None:
  if unknown := sorted(set(given) - _SPARSITY_ARGUMENTS):
    raise TypeError(
      f"sparse_training() has no argument {', '.join(unknown)}; besides its own it takes "
      f"{', '.join(sorted(_SPARSITY_ARGUMENTS))}."
    )


def _check_initial(initial: Any, sparsity_kwargs: Mapping[str, Any]) -> None:
  if isinstance(initial, str) and initial not in ("random", "dense"):
    raise ValueError(f"initial is {initial!r}; it must be 'random', 'dense' or masks by path.")
  if isinstance(initial, Mapping) and sparsity_kwargs:
    raise ValueError(
      "initial gives masks, which say how sparse the layers are: leave out "
      f"{', '.join(sparsity_kwargs)}."
    )


def _check_same_layers(
  plan_for: Callable[[Any], TrainingPlan],
  updater: MaskUpdater | None,
  params: Any,
  state: SparseState,
) -> None:
  if params is None:
    raise ValueError(
      "Sparse training needs the parameters: call update(grads, state, params), not "
      "update(grads, state)."
    )
  plan = plan_for(params)
  if plan.layers.keys() != state.masks.keys():
    raise ValueError(
      f"The state has masks for {sorted(state.masks)}, but these parameters call for "
      f"{sorted(plan.layers)}: `params` has changed since `init`, or the state is another model's."
    )
  if state.masks and _keeps_mean(updater) and not state.grad_mean:
    _miss_means(updater)


def _miss_means(updater: MaskUpdater) -> None:
  """A state that another method made, or this one with other settings, has no mean of gradients."""
  if updater.grad_decay:
    raise ValueError(
      "The state has no mean of dense gradients, by which this method scores growth: it was made "
      "by another method. Call `init` of this transformation."
    )
  warnings.warn(
    f"grad_accumulation_steps is {updater.grad_accumulation_steps}, but the state was made without "
    "a mean of dense gradients: growth is scored by the last gradient alone. Call `init` of this "
    "transformation for a state that has one.",
    stacklevel=4,
  )
