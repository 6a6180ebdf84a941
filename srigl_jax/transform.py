"""The optax wrapper under every method: sparse training round any optimizer.

It masks what the optimizer is given (gradients, moments, weights), keeps the dense gradients to
score growth, and emits updates after which masked weights are exactly 0.0: for a pruned weight w
the update is -w, exact in every float format. Because of that it must come last: nothing after it
may scale or add to its updates.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from srigl_jax.allocation import allocate
from srigl_jax.counts import ExactFraction, Fraction, fraction_digits
from srigl_jax.leaves import Axes, AxesRule, leaf_dict, map_leaves
from srigl_jax.masks import Masks, init_masks
from srigl_jax.moments import mask_moments
from srigl_jax.rules import Rule, select
from srigl_jax.schedule import (
  accumulates_gradient,
  cosine_drop_fraction,
  is_update_step,
  num_updates,
)

DropFraction = float | Callable[[Array], Array]


class SparseState(NamedTuple):
  """State of a sparse training transformation: arrays and the inner state only.

  Attributes:
    step: `[]` int32, optimizer steps done.
    masks: `{path: bool array}`, True where a weight is active.
    explored: `{path: bool array}`, True where a weight was ever active (for the ITOP rate).
    key: `[2]` uint32, data of the random key that masks and random growth are drawn with.
    grad_sum: `{path: float32 array}`, mean of the dense gradients of the current window, growing;
      empty unless gradients of several steps are averaged.
    inner_state: the wrapped optimizer's state. Moments of masked weights are 0, or what the
      optimizer makes of weights, gradients and moments that are 0.
  """

  step: Array
  masks: Masks
  explored: Masks
  key: Array
  grad_sum: dict[str, Array]
  inner_state: Any


class SparseLayer(NamedTuple):
  """What a topology update is told about one layer, apart from its arrays.

  Attributes:
    path: the leaf's path.
    budget: connections that it may have.
    may_ablate: whether neurons of it may be ablated.
    axes: which axes of its kernel are neurons.
  """

  path: str
  budget: int
  may_ablate: bool
  axes: Axes


TopologyUpdate = Callable[[SparseLayer, Array, Array, Array, Array, Fraction], Array]


class Topology(NamedTuple):
  """How and when the topology changes.

  Attributes:
    update: one layer's update, (layer, weights, grads, mask, key, drop fraction) -> new mask.
    update_every: ΔT, optimizer steps between updates.
    update_until: T_end, the step at which updates end.
    drop_fraction: the initial value of the cosine, or a function of the step.
    grad_accumulation_steps: how many dense gradients a growth score averages.
    ablate: which layers may lose neurons.
  """

  update: TopologyUpdate
  update_every: int
  update_until: int
  drop_fraction: DropFraction
  grad_accumulation_steps: int
  ablate: Rule


def sparse_training(
  inner: optax.GradientTransformation,
  topology: Topology | None,
  *,
  structure: str,
  axes: AxesRule,
  seed: int,
  **how_sparse: Any,
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer into sparse training.

  Args:
    inner: the optimizer.
    topology: how and when the topology changes; None: never.
    structure: of the initial masks and the budgets; see `allocate`.
    axes: which axes of a kernel are neurons.
    seed: of the initial masks and of random growth.
    **how_sparse: the other arguments of `allocate`.
  """
  inner = optax.with_extra_args_support(inner)
  _check_topology(topology)

  @functools.lru_cache(maxsize=8)
  def plan(spec: tuple[tuple[str, tuple[int, ...], np.dtype], ...]):
    leaves = {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape, dtype in spec}
    allocation = allocate(leaves, structure=structure, axes=axes, **how_sparse)
    ablatable = select(topology.ablate, allocation.layers, name="ablate") if topology else ()
    layers = {
      path: SparseLayer(path, budget, path in ablatable, allocation.layers[path].axes)
      for path, budget in allocation.budgets.items()
    }
    return allocation, layers

  def plan_for(params):
    leaves = leaf_dict(params)
    return plan(tuple((path, leaf.shape, np.dtype(leaf.dtype)) for path, leaf in leaves.items()))

  def init_fn(params):
    allocation, _ = plan_for(params)
    key = jax.random.key(seed)
    masks = init_masks(key, allocation, structure)
    averages = topology is not None and topology.grad_accumulation_steps > 1
    return SparseState(
      step=jnp.zeros((), jnp.int32),
      masks=masks,
      explored=jax.tree.map(jnp.copy, masks),
      key=jax.random.key_data(key),
      grad_sum={p: jnp.zeros(m.shape, jnp.float32) for p, m in masks.items() if averages},
      inner_state=mask_moments(inner.init(params), params, masks),
    )

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "Sparse training needs the parameters: call update(grads, state, params), not "
        "update(grads, state)."
      )
    _, layers = plan_for(params)
    _check_same_layers(layers, state.masks)
    before = state.masks

    def inner_update(masks):
      """The optimizer's step if masked weights had neither gradients, nor moments, nor values."""
      hide = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, masks)
      moments = mask_moments(state.inner_state, params, masks)
      return inner.update(hide(updates), moments, hide(params), **extra_args)

    def moved():
      return _leaves_of(optax.apply_updates(params, inner_update(before)[0]), before)

    new = state._replace(step=optax.safe_increment(state.step))
    if topology is not None and num_updates(topology.update_every, topology.update_until):
      new = _evolve(topology, layers, new, _leaves_of(updates, before), moved)
    # What was just pruned is gone and what was just grown starts at 0 without moments, even if the
    # optimizer moves weights that have neither (noise, centralised or orthogonalised updates).
    # Masking what the optimizer is given, not the moments that it returns, keeps one pass over
    # memory: a moment needed both masked and as it is would be computed twice, from a copy.
    settled = {path: before[path] & mask for path, mask in new.masks.items()}
    sparse_updates, inner_state = inner_update(settled)
    sparse_updates = map_leaves(
      lambda u, p, mask: jnp.where(mask, u, -p.astype(jnp.promote_types(p.dtype, u.dtype))),
      sparse_updates,
      _leaves_of(params, settled),
      settled,
    )
    return sparse_updates, new._replace(inner_state=inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _evolve(
  topology: Topology,
  layers: dict[str, SparseLayer],
  state: SparseState,
  grads: dict[str, Array],
  moved: Callable[[], dict[str, Array]],
) -> SparseState:
  """Updates the topology if it is time.

  Args:
    topology: how and when.
    layers: the sparse layers, in natural order.
    state: the state, its step already counted up.
    grads: dense gradients of the sparse leaves.
    moved: computes the sparse leaves as the optimizer leaves them under the old masks. It does the
      optimizer's work a second time, but only when the topology changes: were its results handed
      in, they would have to be held for that case in every step, instead of fusing with the
      masking.

  Returns:
    The state with new masks, explored weights and gradient sums; or as it was.
  """
  every, until = topology.update_every, topology.update_until
  grad_sum = state.grad_sum
  if grad_sum:
    n = topology.grad_accumulation_steps
    grad_sum = lax.cond(
      accumulates_gradient(state.step - 1, every, until, n),
      lambda: {p: total + grads[p].astype(jnp.float32) / n for p, total in grad_sum.items()},
      lambda: state.grad_sum,
    )

  def change():
    weights, scores = moved(), grad_sum or grads
    key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
    fraction = _drop_fraction(topology, state.step)
    masks = {
      path: topology.update(
        layer, weights[path], scores[path], state.masks[path], jax.random.fold_in(key, i), fraction
      )
      for i, (path, layer) in enumerate(layers.items())
    }
    explored = {path: state.explored[path] | mask for path, mask in masks.items()}
    return masks, explored, jax.tree.map(jnp.zeros_like, grad_sum)

  def keep():
    return state.masks, state.explored, grad_sum

  masks, explored, grad_sum = lax.cond(is_update_step(state.step, every, until), change, keep)
  return state._replace(masks=masks, explored=explored, grad_sum=grad_sum)


def _drop_fraction(topology: Topology, step: Array) -> Fraction:
  """Drop fraction of the update at a traced step; the cosine's are tabulated in double."""
  given, every, until = topology.drop_fraction, topology.update_every, topology.update_until
  if isinstance(given, Array):  # a traced hyperparameter
    return given / 2 * (1 + jnp.cos(step * (jnp.pi / until)))
  if callable(given):
    return jnp.asarray(given(step), jnp.float32)
  steps = every * np.arange(num_updates(every, until) + 1)
  table = fraction_digits(np.asarray([cosine_drop_fraction(int(t), given, until) for t in steps]))
  return ExactFraction(jnp.asarray(table)[step // every])


def _check_topology(topology: Topology | None) -> None:
  if topology is None:
    return
  counts = {
    name: getattr(topology, name)
    for name in ("update_every", "update_until", "grad_accumulation_steps")
  }
  for name, value in counts.items():
    if not isinstance(value, int | np.integer) or value < (name != "update_until"):
      raise ValueError(
        f"{name} is {value}; it must be a Python int, 1 or more (update_until: 0 or more). Under "
        f"optax.inject_hyperparams, list {name!r} in static_args."
      )
  if topology.grad_accumulation_steps > topology.update_every:
    raise ValueError(
      f"grad_accumulation_steps is {topology.grad_accumulation_steps}, more than update_every "
      f"({topology.update_every}): an update can average only the gradients since the last one."
    )
  given = topology.drop_fraction
  if not isinstance(given, Array) and not callable(given) and not 0 <= given <= 1:
    raise ValueError(
      f"drop_fraction is {given}; it must lie in [0, 1] (the papers use 0.3), or be a function of "
      "the step."
    )


def _leaves_of(tree: Any, masks: Masks) -> dict[str, Array]:
  leaves = leaf_dict(tree)
  return {path: leaves[path] for path in masks}


def _check_same_layers(layers: dict[str, SparseLayer], masks: Masks) -> None:
  if layers.keys() != masks.keys():
    raise ValueError(
      f"The state has masks for {sorted(masks)}, but these parameters call for "
      f"{sorted(layers)}: `params` has changed since `init`, or the state is another model's."
    )


def get_state(opt_state: Any) -> SparseState:
  """Finds the `SparseState` in any nesting of optax states.

  Raises:
    ValueError: if there is none, or more than one.
  """
  is_state = lambda node: isinstance(node, SparseState)
  found = [n for n in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(n)]
  if len(found) != 1:
    raise ValueError(
      f"Found {len(found)} sparse training states in the optimizer state, need exactly one: "
      + (
        "wrap the optimizer with srigl(...), rigl(...), set_(...) or static_sparse(...) and pass "
        "the state that its `init` or `update` returned."
        if not found
        else "pass the part of the state that belongs to one of the transformations."
      )
    )
  # nnx.Optimizer holds its state in variables, one leaf each: hand out the arrays themselves.
  state = found[0]
  array = lambda node: jax.tree.leaves(node)[0]
  arrays = lambda by_path: {path: array(node) for path, node in by_path.items()}
  return SparseState(
    step=array(state.step),
    masks=arrays(state.masks),
    explored=arrays(state.explored),
    key=array(state.key),
    grad_sum=arrays(state.grad_sum),
    inner_state=state.inner_state,
  )


def get_masks(opt_state: Any) -> Masks:
  """Finds the masks `{path: bool array}` in any nesting of optax states; see `get_state`."""
  return get_state(opt_state).masks
