"""Lottery tickets: train, prune, take the weights back to an early step, train again."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array, lax

from srigl_jax.allocation import Allocation, allocate
from srigl_jax.by_path import ByPath
from srigl_jax.eager import compiled_if_eager
from srigl_jax.growth_scores import all_finite
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layers import AxesFn, check_countable, leaf_dict, map_leaves
from srigl_jax.methods.pruning import global_magnitude_masks
from srigl_jax.moments import fresh_state, mask_moments
from srigl_jax.structures import Unstructured
from srigl_jax.transform import sparse_training


class Snapshot(NamedTuple):
  """What a lottery ticket remembers, in `SparseState.extra`.

  Attributes:
    params: `{path: array}`, every leaf of the parameters at the step to rewind to.
    inner_state: the inner optimizer's state at that step.
    num_left: `[rounds]` int32, weights that all sparse layers keep after each pruning.
  """

  params: dict[str, Array]
  inner_state: Any
  num_left: Array


class Rounds(NamedTuple):
  """The steps of iterative pruning with rewinding.

  The first round has `length` steps, the others `length - rewind_step`, since they go on from that
  step. There is a pruning after each of the first `num_prunings` rounds, and one more round.
  """

  length: int
  num_prunings: int
  rewind_step: int = 0

  @property
  def total_steps(self) -> int:
    """Optimizer steps of the whole."""
    return self.length + self.num_prunings * (self.length - self.rewind_step)

  @property
  def pruning_steps(self) -> range:
    """The steps after which weights are pruned and rewound."""
    every = self.length - self.rewind_step
    return range(self.length, self.length + self.num_prunings * every, every)

  def inner_step(self, step: int) -> int:
    """The inner optimizer's own count after `step` steps in all, which its schedule follows."""
    every = self.length - self.rewind_step
    done = min(max(0, (step - self.length) // every + 1), self.num_prunings)
    return step - done * every


def lottery_ticket(
  inner: optax.GradientTransformation,
  *,
  steps_per_round: int,
  rounds: int,
  rewind_step: int = 0,
  sparsity: float | None = None,
  share_per_round: float | None = None,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Iterative magnitude pruning with rewinding, ranked globally.

  A dense network is trained for `steps_per_round` steps; the smallest magnitudes of all layers
  together are pruned; what is left, biases and norms included, goes back to its value after
  `rewind_step` steps, and the inner optimizer's state with it (so a learning rate schedule starts
  again from there); and so on, `rounds` times, with a last training behind: `Rounds` has the steps.

  Args:
    inner: the optimizer to wrap.
    steps_per_round: optimizer steps of the first round, from step 0 to its pruning.
    rounds: prunings.
    rewind_step: to which to rewind, less than `steps_per_round`; 0 is the initialisation.
    sparsity: after the last pruning, each one leaving the same fraction of the weights; in [0, 1).
    share_per_round: in its place, the fraction of the weights left that each pruning takes; the
      source has 0.2.
    sparse: which layers may be pruned.
    axes: the layout of kernels, as for `srigl`.

  Returns:
    A transformation like that of `srigl`. Rewound weights are the snapshot's up to half a unit in
    the last place of the trained ones (updates are added); those pruned are exactly 0. Weights
    must not be drawn anew after `init`, which takes the snapshot of step 0.

  Raises:
    ValueError: if an argument is out of range.

  Source: Frankle & Carbin, The Lottery Ticket Hypothesis (arXiv:1803.03635); rewinding: Frankle
  et al., Linear Mode Connectivity and the Lottery Ticket Hypothesis (arXiv:1912.05671).
  """
  _check_rounds(steps_per_round, rounds, rewind_step)
  if (sparsity is None) == (share_per_round is None) or (
    share_per_round is not None and not 0 < share_per_round < 1
  ):
    raise ValueError(
      f"sparsity is {sparsity} and share_per_round {share_per_round}: give one of them, the share "
      "in (0, 1)."
    )
  sparsity_kwargs: dict[str, Any] = {
    "sparsity": sparsity,
    "density": None if share_per_round is None else (1 - share_per_round) ** rounds,
    "distribution": "uniform",  # all layers take part, and only the sum of their budgets counts
    "structure": Unstructured(),
    "sparse": sparse,
    "axes": axes,
  }
  plan = Rounds(int(steps_per_round), int(rounds), int(rewind_step))
  first, every = plan.length, plan.length - plan.rewind_step
  last = plan.pruning_steps[-1]
  tx = sparse_training(inner, None, initial="dense", **sparsity_kwargs)

  def init_fn(params):
    state = tx.init(params)
    num_left = _num_left(allocate(params, **sparsity_kwargs), plan.num_prunings)
    # Copies: a buffer that is in the state twice, or in the parameters, cannot be donated.
    leaves, inner_state = jax.tree.map(jnp.copy, (leaf_dict(params), state.inner_state))
    return state._replace(extra=Snapshot(ByPath(leaves), inner_state, num_left))

  def update_fn(updates, state, params=None, **extra_args):
    updates, new = tx.update(updates, state, params, **extra_args)
    # A weight minus its like is exact in the wider of the two float formats.
    updates = jax.tree.map(
      lambda u, p: u.astype(jnp.promote_types(u.dtype, p.dtype)), updates, params
    )
    new_params = leaf_dict(optax.apply_updates(params, updates))
    like = type(state.extra.params)

    def remember():
      return state.extra._replace(params=like(new_params), inner_state=new.inner_state)

    def rewind():
      weights = {path: new_params[path] for path in new.masks}
      num_left = state.extra.num_left[(new.step - first) // every]
      sound = all_finite(weights)  # no others: nothing that one adds makes them 0
      masks = global_magnitude_masks(weights, new.masks, num_left)
      target = {p: jnp.where(masks.get(p, True), x, 0) for p, x in state.extra.params.items()}
      back = lambda u, p, x: x.astype(u.dtype) - p.astype(u.dtype)
      rewound = (
        map_leaves(back, updates, leaf_dict(params), target),
        type(new.masks)(masks),
        mask_moments(state.extra.inner_state, params, masks, fresh_state(inner, params, masks)),
      )
      trained = updates, new.masks, new.inner_state
      return jax.tree.map(lambda x, y: jnp.where(sound, x, y), rewound, trained)

    extra = lax.cond(new.step == plan.rewind_step, remember, lambda: state.extra)
    is_end = (new.step >= first) & (new.step <= last) & ((new.step - first) % every == 0)
    updates, masks, inner_state = lax.cond(
      is_end, rewind, lambda: (updates, new.masks, new.inner_state)
    )
    return updates, new._replace(masks=masks, inner_state=inner_state, extra=extra)

  return optax.GradientTransformationExtraArgs(init_fn, compiled_if_eager(update_fn))


def _num_left(allocation: Allocation, num_prunings: int) -> Array:
  """`round(size * (budget / size) ** (i / prunings))` for i = 1 .. prunings, in double."""
  check_countable(*(allocation.layers[path] for path in allocation.budgets))
  size = sum(np.size(n) * allocation.layers[path].size for path, n in allocation.budgets.items())
  density = sum(int(np.sum(n)) for n in allocation.budgets.values()) / max(size, 1)
  shares = np.arange(1, num_prunings + 1) / num_prunings
  return jnp.asarray(np.rint(size * density**shares), jnp.int32)


def _check_rounds(steps_per_round: int, rounds: int, rewind_step: int) -> None:
  given = {"steps_per_round": steps_per_round, "rounds": rounds, "rewind_step": rewind_step}
  for name, value in given.items():
    if not isinstance(value, int | np.integer) or value < (name != "rewind_step"):
      raise ValueError(f"{name} is {value!r}; it must be a Python int, 1 or more (rewind_step: 0).")
  if rewind_step >= steps_per_round:
    raise ValueError(
      f"rewind_step is {rewind_step}, but a round has only {steps_per_round} steps: it must be "
      "less, and is best a few per cent of them."
    )
