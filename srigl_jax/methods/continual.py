"""Continual learning: each task gets connections of its own, which later tasks leave as they are.

A task's topology evolves among the connections that no task has yet; at its end they are reserved.
What the optimizer and the topology update see of the network in a task is what that task may
change: reserved weights are taken out of it and put back, so that nothing can move them.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from srigl_jax.allocation import Allocation, Distribution, allocate
from srigl_jax.by_path import ByPath
from srigl_jax.eager import compiled_if_eager
from srigl_jax.initializers import init_sparse_weights, scheme_scale
from srigl_jax.layer_filters import LayerFilter, only
from srigl_jax.layer_views import LayerView
from srigl_jax.layers import AxesFn, leaf_dict, map_leaves
from srigl_jax.leaves.specs import cached_by_shapes
from srigl_jax.mask_updates import DropFraction, MaskUpdater
from srigl_jax.masks import Masks
from srigl_jax.methods.task_shares import (
  Share,
  densities_below_1,
  draw_connections,
  move_connections,
  shares_of,
)
from srigl_jax.state import as_by_path, get_state
from srigl_jax.structures import ConstantFanIn, Structure, as_structure
from srigl_jax.transform import sparse_training

_HEAD = only("head")
_GROWTH = ("gradient", "random")
_MOST_TASKS = 127  # owners are int8


class Owners(NamedTuple):
  """What continual learning remembers, in `SparseState.extra`.

  Attributes:
    owners: `{path: int8 array}`, the task that a connection is reserved for, from 0; -1 of
      connections of the present task, and where there is none.
    task: `[]` int32, the present task.
  """

  owners: dict[str, Array]
  task: Array


def continual_sparse(
  inner: optax.GradientTransformation,
  *,
  num_tasks: int,
  steps_per_task: int,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  growth: str = "gradient",
  structure: Structure | str = "constant_fan_in",
  outputs: LayerFilter = _HEAD,
  sparse_init: str = "he_normal",
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Tasks one after the other, each with its own part of the connections, which it then keeps.

  Every task draws its connections at random among the free ones, their weights anew, and moves them
  by magnitude and gradient (SRigL without ablation, RigL) or at random (SET) as one training of its
  own, with a fresh optimizer state. In the first step after it, its connections are reserved and
  the next task's are drawn; that step does no more. The reserved stay active, and their weights are
  the same bits ever after. Parameters that are not sparse (biases, norms, layers left dense) learn
  in the first task alone.

  With `task_masks` the network of an earlier task computes what it did at that task's end. The
  whole network does not: later connections lead into the same neurons.

  Arguments not listed: as for `srigl`.

  Args:
    inner: the optimizer to wrap; a schedule of it starts again with every task.
    num_tasks: how many there will be, 127 at most.
    steps_per_task: optimizer steps of each.
    update_until: T_end, in steps of a task.
    sparsity: of the network in the end, with the connections of all tasks.
    distribution: see `srigl`.
    density: see `srigl`.
    update_every: see `srigl`.
    drop_fraction: see `srigl`; of the connections of the present task.
    growth: `"gradient"` or `"random"`.
    structure: `"constant_fan_in"`, each neuron getting as many connections in every task, or
      `"unstructured"`.
    outputs: layers whose neurons belong to tasks, the first of as many equal parts to the first
      task and so on: a task connects only its own. False: tasks share all outputs.
    sparse_init: how weights of a new task are drawn, a scheme of `init_sparse_weights`.
    sparse: see `srigl`.
    axes: see `srigl`.
    seed: see `srigl`.

  Raises:
    ValueError: if an argument is out of range; on `init` if a layer has fewer connections than
      tasks, a head's neurons cannot be divided among them, or layers are stacked.

  Source: the idea of SpaceNet (Sokar et al., arXiv:2007.07617), that tasks allocate sparse
  connections by dynamic sparse training and protect them; without its selection of neurons. Taking
  an earlier task's connections alone for its inputs: PackNet (Mallya & Lazebnik, arXiv:1711.05769).
  """
  _check(num_tasks, steps_per_task, update_until, growth)
  structure = as_structure(structure)
  if isinstance(structure, ConstantFanIn) and structure != ConstantFanIn():
    raise ValueError(
      f"structure is {structure}; tasks have a constant fan-in without blocks or groups: give "
      "'constant_fan_in', or 'unstructured'."
    )
  scheme_scale(sparse_init)
  how_sparse: dict[str, Any] = {
    "structure": structure,
    "sparsity": sparsity,
    "distribution": distribution,
    "density": density,
    "sparse": sparse,
  }

  def plan(leaves: Any) -> tuple[dict[str, Share], dict[str, float]]:
    densities = densities_below_1(allocate(leaves, axes=axes, **how_sparse), sparse)
    among = allocate(leaves, axes=axes, **how_sparse | _exactly(densities))
    return shares_of(among, num_tasks, outputs), densities

  plan_for = cached_by_shapes(plan)

  def training(params: Any, owners: Mapping[str, Array] | None, task: Any) -> Any:
    """The method of a task, among what `owners` leaves free."""
    shares, densities = plan_for(params)

    def update(layers: dict[str, LayerView]) -> Masks:
      assert owners is not None, "a task's first connections are drawn"
      move = functools.partial(move_connections, task=task, at_random=growth == "random")
      return {path: move(view, shares[path], owners[path]) for path, view in layers.items()}

    def first(params: Any, allocation: Allocation) -> Masks:
      free = {
        path: jnp.full(layer.shape, -1, jnp.int8) for path, layer in allocation.layers.items()
      }
      key = _task_key(jax.random.key(seed), 0)
      return draw_connections(key, shares, allocation.budgets, free, 0)

    uses_gradients = growth == "gradient"
    updater = MaskUpdater(
      update, update_every, update_until, drop_fraction, uses_gradients=uses_gradients
    )
    given = how_sparse | _exactly(densities)
    return sparse_training(inner, updater, initial=first, axes=axes, seed=seed, **given)

  def init_fn(params):
    state = training(params, None, 0).init(params)
    owners = {path: jnp.full(mask.shape, -1, jnp.int8) for path, mask in state.masks.items()}
    return state._replace(extra=Owners(ByPath(owners), jnp.zeros((), jnp.int32)))

  def update_fn(updates, state, params=None, **extra_args):
    if params is None:
      raise ValueError(
        "Continual learning needs the parameters: call update(grads, state, params)."
      )
    grads, (shares, _) = updates, plan_for(params)
    task = jnp.minimum(state.step // steps_per_task, num_tasks - 1)
    is_free = {path: x < 0 for path, x in state.extra.owners.items()}

    def train():
      owners, is_first = state.extra.owners, task == 0
      learns = {path: is_first if path not in shares else True for path in leaf_dict(params)}
      keep = lambda tree: map_leaves(lambda x, on: jnp.where(on, x, 0), tree, learns)
      own = {path: mask & is_free[path] for path, mask in state.masks.items()}
      local = state._replace(
        step=state.step - task * steps_per_task,
        masks=type(state.masks)(own),
        key=jax.random.key_data(jax.random.fold_in(jax.random.wrap_key_data(state.key), task)),
      )
      mine = map_leaves(lambda x, mask: jnp.where(mask, x, 0), params, own)
      done, new = training(params, owners, task).update(keep(grads), local, mine, **extra_args)
      masks = {path: mask | ~is_free[path] for path, mask in new.masks.items()}
      new = new._replace(step=state.step + 1, masks=masks, key=state.key)
      return keep(done), as_by_path(new, like=state)

    given = jax.eval_shape(train)

    def begin():
      owners = {
        path: jnp.where(state.masks[path] & is_free[path], (task - 1).astype(jnp.int8), x)
        for path, x in state.extra.owners.items()
      }
      key = _task_key(jax.random.wrap_key_data(state.key), task)
      own = draw_connections(key, shares, state.budgets, owners, task)
      fresh = init_sparse_weights(jax.random.fold_in(key, 1), params, own, sparse_init, axes=axes)
      drawn = {path: own.get(path, False) for path in leaf_dict(params)}
      new = state._replace(
        step=state.step + 1,
        masks={path: mask | own[path] for path, mask in state.masks.items()},
        explored={path: mask | own[path] for path, mask in state.explored.items()},
        inner_state=inner.init(fresh),
        extra=Owners(type(state.extra.owners)(owners), task),
      )
      done = map_leaves(lambda x, is_new: jnp.where(is_new, x, 0), fresh, drawn)
      like = lambda x, wanted: jnp.asarray(x).astype(wanted.dtype)
      return jax.tree.map(like, (done, as_by_path(new, like=state)), given)

    is_start = (state.step > 0) & (state.step == task * steps_per_task)
    return lax.cond(is_start, begin, train)

  return optax.GradientTransformationExtraArgs(init_fn, compiled_if_eager(update_fn))


def task_masks(opt_state: Any, task: int | Array) -> Masks:
  """The connections of a task and of those before it: the network as it was at that task's end.

  Args:
    opt_state: of `continual_sparse`, in any nesting of optax states.
    task: from 0, may be traced; a coming task has all that there are.

  Raises:
    ValueError: if the state is another method's.
  """
  state = get_state(opt_state)
  if not isinstance(state.extra, Owners):
    raise ValueError("The state is not one of continual_sparse: its connections have no owners.")
  owner_of = lambda x: jnp.where(x < 0, state.extra.task, x)
  owners = {path: owner_of(x) for path, x in state.extra.owners.items()}
  return {path: mask & (owners[path] <= task) for path, mask in state.masks.items()}


def _exactly(densities: dict[str, float]) -> dict[str, Any]:
  """Arguments of `allocate` for these densities."""
  return {"sparsity": None, "density": None, "distribution": densities}


def _task_key(key: Array, task: Any) -> Array:
  """The key that a task's connections are drawn with; step 0 of it has no topology update."""
  return jax.random.fold_in(jax.random.fold_in(key, task), 0)


def _check(num_tasks: Any, steps_per_task: Any, update_until: Any, growth: str) -> None:
  given = {"num_tasks": num_tasks, "steps_per_task": steps_per_task, "update_until": update_until}
  for name, value in given.items():
    if not isinstance(value, int | np.integer) or value < (name != "update_until"):
      raise ValueError(
        f"{name} is {value!r}; it must be a Python int, 1 or more (update_until: 0)."
      )
  if num_tasks > _MOST_TASKS or update_until > steps_per_task:
    raise ValueError(
      f"num_tasks is {num_tasks} and update_until {update_until} of {steps_per_task} steps of a "
      f"task: give {_MOST_TASKS} tasks at most, and a T_end within a task."
    )
  if growth not in _GROWTH:
    raise ValueError(f"growth is {growth!r}; it must be one of {', '.join(_GROWTH)}.")
