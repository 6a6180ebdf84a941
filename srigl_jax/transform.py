"""The optax wrapper under every method: sparse training around any optimizer.

It masks what the optimizer is given (gradients, moments, weights), keeps the dense gradients to
score growth, and emits updates after which masked weights are exactly 0.0: for a pruned weight w
the update is -w, exact in every float format. Because of that it must come last: nothing after it
may scale or add to its updates.
"""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from srigl_jax.allocation import Allocation, allocate
from srigl_jax.layer_filters import find_layers, judge_leaves, select
from srigl_jax.layer_views import LayerPlan
from srigl_jax.layers import AxesFn, check_paths, leaf_dict, map_leaves
from srigl_jax.leaves.specs import LeafSpec, cached_by_shapes
from srigl_jax.mask_updates import MaskUpdater, check_mask_updater, maybe_update_masks
from srigl_jax.masks import Masks, check_masks, init_masks
from srigl_jax.moments import mask_moments
from srigl_jax.schedule import num_updates
from srigl_jax.stacks import num_weights
from srigl_jax.state import SparseState
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
  if not isinstance(inner, optax.GradientTransformation):
    raise ValueError(f"inner is {inner!r}; it must be an optimizer, such as optax.sgd(0.1).")
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
    return SparseState(
      step=jnp.zeros((), jnp.int32),
      masks=masks,
      explored=jax.tree.map(jnp.copy, masks),
      budgets={p: jnp.asarray(budget, jnp.int32) for p, budget in allocation.budgets.items()},
      key=jax.random.key_data(key),
      grad_mean=_zero_gradients(updater, masks),
      extra=(),
      inner_state=mask_moments(inner.init(params), params, masks),
    )

  def update_fn(updates, state, params=None, **extra_args):
    layers = _check_same_layers(plan_for, params, state)
    inner_step = functools.partial(
      _masked_step, inner, updates, state.inner_state, params, extra_args
    )

    def params_after_step():
      return _leaves_of(optax.apply_updates(params, inner_step(state.masks)[0]), state.masks)

    new_state = state._replace(step=optax.safe_increment(state.step))
    if updater is not None and num_updates(updater.update_every, updater.update_until):
      grads = _leaves_of(updates, state.masks)
      new_state = maybe_update_masks(updater, layers, new_state, grads, params_after_step)
    # What was just pruned is gone and what was just grown starts at 0 without moments, even if the
    # optimizer moves weights that have neither (noise, centralised or orthogonalised updates).
    # Masking what the optimizer is given, not the moments that it returns, keeps one pass over
    # memory: a moment needed both masked and as it is would be computed twice, from a copy.
    kept_masks = {path: state.masks[path] & mask for path, mask in new_state.masks.items()}
    updates, inner_state = inner_step(kept_masks)
    updates = _zero_masked_updates(kept_masks, updates, params)
    return updates, new_state._replace(inner_state=inner_state)

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
  if updater is None or not (updater.grad_accumulation_steps > 1 or updater.grad_decay > 0):
    return {}
  return {path: jnp.zeros(mask.shape, jnp.float32) for path, mask in masks.items()}


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
  moments = mask_moments(inner_state, params, masks)
  return inner.update(mask_tree(grads), moments, mask_tree(params), **extra_args)


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
  plan_for: Callable[[Any], TrainingPlan], params: Any, state: SparseState
) -> dict[str, LayerPlan]:
  if params is None:
    raise ValueError(
      "Sparse training needs the parameters: call update(grads, state, params), not "
      "update(grads, state)."
    )
  layers = plan_for(params).layers
  if layers.keys() != state.masks.keys():
    raise ValueError(
      f"The state has masks for {sorted(state.masks)}, but these parameters call for "
      f"{sorted(layers)}: `params` has changed since `init`, or the state is another model's."
    )
  return layers
