"""Training in condensed form around any element-wise optimizer: what every method is made of.

Where the transformations of `srigl_jax.methods` mask dense parameters, here a sparse layer's
parameter is its `values` `[C]`, and its pattern is state beside the parameters. A topology update
moves connections, hence values and moments: no update that one adds could say that exactly, so
`update` returns the new parameters themselves.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from srigl_jax.arguments import check_by_path, check_optimizer
from srigl_jax.condensed_training.conditional import apply_if
from srigl_jax.condensed_training.explored import add_explored, explored_bits
from srigl_jax.condensed_training.gradient_window import Window, batch_gradient, window_gradient
from srigl_jax.condensed_training.optimizers import check_elementwise
from srigl_jax.condensed_training.ranking import LayerSignals
from srigl_jax.condensed_training.topology import Patterns, Topology, update_layers
from srigl_jax.eager import compiled_if_eager
from srigl_jax.growth_scores import all_finite
from srigl_jax.layers import check_paths, leaf_dict, map_leaves
from srigl_jax.mask_updates import check_mask_updater
from srigl_jax.moments import fresh_state, map_moments, mask_moments, start_from
from srigl_kernels.pattern import Pattern

Signals = Mapping[str, LayerSignals]
"""Inputs of sparse layers and gradients in their outputs, by path: what the loss has for gradients
in the layers' probes."""


class Batches(NamedTuple):
  """The batches since the last optimizer step, if several make one.

  Attributes:
    done: `[]` int32, how many.
    grads: the mean of their gradients, as the parameters.
  """

  done: Array
  grads: Any


class CondensedTrainingState(NamedTuple):
  """State of training in condensed form, beside parameters and patterns: arrays only.

  Attributes:
    step: `[]` int32, optimizer steps done.
    key: `[2]` uint32, data of the random key of random growth.
    inner_state: the wrapped optimizer's state; moments of sparse layers are `[C]`.
    batches: since the last step; `()` if each batch makes one.
    window: see `gradient_window`; empty if the last batch alone scores growth.
    explored: which weights were ever active, see `explored`; empty unless asked for.
  """

  step: Array
  key: Array
  inner_state: Any
  batches: Batches | tuple[()]
  window: Window
  explored: dict[str, Array]


class CondensedTraining(NamedTuple):
  """A pair of pure functions, as an optax transformation is.

  Attributes:
    init: `(params, patterns, signals=None) -> CondensedTrainingState`. `signals` of a batch of all
      devices, or their shapes, are needed if gradients of several batches score growth.
    update: `(grads, signals, state, params, patterns, **extra_args) -> (params, patterns, state)`.
      `signals` of None leaves the patterns as they are, and compiles no topology update: for steps
      of which the caller knows that they need none.
    needs_signals: `(steps_done) -> bool`, whether the step after so many needs signals: it updates
      the topology, or its gradient scores the growth of the next update. Of a number or an array.
  """

  init: Callable[..., CondensedTrainingState]
  update: Callable[..., tuple[Any, dict[str, Pattern], CondensedTrainingState]]
  needs_signals: Callable[[Any], Any]


def condensed_training(
  inner: optax.GradientTransformation,
  topology: Topology | None,
  *,
  seed: int = 0,
  accumulation_steps: int = 1,
  track_explored: bool = False,
) -> CondensedTraining:
  """What every method in condensed form is made of.

  Args:
    inner: an element-wise optimizer.
    topology: how patterns change; None: never.
    seed: of random growth.
    accumulation_steps: batches whose mean gradient makes an optimizer step.
    track_explored: whether to keep which weights were ever active, a bit for each.

  Raises:
    ValueError: if an argument is out of range.
  """
  check_optimizer("inner", inner)
  inner = optax.with_extra_args_support(inner)
  check_mask_updater(topology.updater if topology else None)
  if not isinstance(accumulation_steps, int | np.integer) or accumulation_steps < 1:
    raise ValueError(
      f"accumulation_steps is {accumulation_steps!r}; it must be a Python int, 1 or more."
    )
  window = topology.window(accumulation_steps) if topology else None

  def init_fn(params: Any, patterns: Patterns, signals: Any = None) -> CondensedTrainingState:
    check_by_path("patterns", patterns, Pattern, "patterns, from init_patterns(key, allocation)")
    _check_layers(params, patterns)
    inner_state = inner.init(params)
    check_elementwise(inner_state, params, patterns)
    return CondensedTrainingState(
      step=jnp.zeros((), jnp.int32),
      key=jax.random.key_data(jax.random.key(seed)),
      inner_state=inner_state,
      batches=Batches(jnp.int32(0), _zeros(params)) if accumulation_steps > 1 else (),
      window=window.empty(signals, patterns) if window else {},
      explored={p: explored_bits(x) for p, x in patterns.items()} if track_explored else {},
    )

  def needs_signals(steps_done: Any) -> Any:
    if window:
      return window.needs(steps_done)
    return topology is not None and topology.is_update(steps_done)

  def update_fn(grads, signals, state, params, patterns, **extra_args):
    check_by_path("patterns", patterns, Pattern, "patterns, from init_patterns(key, allocation)")
    _check_layers(params, patterns)
    if window and signals is not None:
      check_paths(patterns, signals, name="patterns")
      done = state.batches.done if state.batches else jnp.int32(0)
      # A batch whose gradients are not finite leaves no trace; see `mean_gradients`.
      finite = all_finite((grads, signals))
      counted = jax.tree.map(lambda x: jnp.where(finite, x, 0), signals)
      kept = window.with_batch(state.window, counted, state.step, done)
      state = state._replace(window=kept)
    grads, batches, is_step = _add_batch(state.batches, grads, accumulation_steps)
    step = functools.partial(_inner_step, inner, grads, extra_args)

    def plain_step(carry):
      params, inner_state, patterns, explored = carry
      return (*step({}, params, inner_state, {}), patterns, explored)

    def topology_step(topology, carry):
      params, inner_state, patterns, explored = carry
      of_batch = functools.partial(batch_gradient, axis_name=topology.axis_name)
      after = leaf_dict(step({}, params, inner_state, {})[0])
      kept, of_kept = (state.window, window_gradient) if state.window else (signals, of_batch)
      key = jax.random.wrap_key_data(state.key)
      moves = update_layers(topology, after, patterns, kept, of_kept, key, state.step)
      stays = _stays(leaf_dict(params), after, patterns, kept if topology.needs_signals else ())
      moves = {path: move.unless(stays[path], patterns[path]) for path, move in moves.items()}
      # As in `sparse_training`: what was just pruned takes no part in the step that counts.
      fresh = fresh_state(inner, params, patterns)  # in here, not held through every step
      new_params, new_state = step(
        fresh, params, inner_state, {path: move.stays for path, move in moves.items()}
      )
      move_moments = lambda path, leaf, start: moves[path].apply(leaf, start)
      patterns = {path: move.pattern for path, move in moves.items()}
      return (
        map_leaves(lambda values, move: move.apply(values), new_params, moves),
        map_moments(move_moments, new_state, params, moves, fresh),
        patterns,
        {path: add_explored(bits, patterns[path]) for path, bits in explored.items()},
      )

    inner_state = start_from(inner, state.inner_state, params, state.step)
    carry = params, inner_state, dict(patterns), state.explored
    if topology is None or signals is None:
      carry = apply_if(is_step, plain_step, carry)
    else:
      changes = topology.is_update(state.step)
      carry = apply_if(is_step & ~changes, plain_step, carry)
      carry = apply_if(is_step & changes, functools.partial(topology_step, topology), carry)
    params, inner_state, patterns, explored = carry
    return (
      params,
      patterns,
      state._replace(
        step=jnp.where(is_step, optax.safe_increment(state.step), state.step),
        inner_state=inner_state,
        batches=batches,
        explored=explored,
      ),
    )

  return CondensedTraining(init_fn, compiled_if_eager(update_fn), needs_signals)


def _zeros(params: Any) -> Any:
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)


def _add_batch(
  batches: Batches | tuple[()], grads: Any, steps: int
) -> tuple[Any, Batches | tuple[()], Any]:
  """The mean gradient with that of one more batch, what is kept of it, and whether it is full."""
  if not isinstance(batches, Batches):
    return grads, (), True
  done = batches.done + 1
  # As `optax.MultiSteps` has it.
  mean = jax.tree.map(lambda mean, x: mean + (x - mean) / done, batches.grads, grads)
  is_full = done == steps
  kept = jax.tree.map(lambda x: jnp.where(is_full, 0, x), mean)
  grads = jax.tree.map(lambda mean, x: mean.astype(x.dtype), mean, grads)
  return grads, Batches(jnp.where(is_full, 0, done), kept), is_full


def _inner_step(
  inner: optax.GradientTransformationExtraArgs,
  grads: Any,
  extra_args: Mapping[str, Any],
  fresh: Mapping[str, Array],
  params: Any,
  inner_state: Any,
  stays: Mapping[str, Array],
) -> tuple[Any, Any]:
  """Parameters and state after the optimizer's step, as if connections that go were 0 already."""
  mask_tree = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, stays)
  masked = mask_tree(params)
  moments = mask_moments(inner_state, params, stays, fresh) if stays else inner_state
  updates, inner_state = inner.update(mask_tree(grads), moments, masked, **extra_args)
  return optax.apply_updates(masked, updates), inner_state


def _stays(
  before: Mapping[str, Array], after: Mapping[str, Array], patterns: Patterns, kept: Any
) -> dict[str, Array]:
  """Which patterns an update leaves as they are, as it leaves masks; see `maybe_update_masks`.

  All if weights, or what gradients are made of, are not finite; those of layers that the optimizer
  did not move while it moved others.
  """
  sound = all_finite(([after[path] for path in patterns], kept))
  moved = {path: jnp.any(after[path] != x) for path, x in before.items()}
  any_moved = jnp.stack(list(moved.values())).any()
  return {path: ~sound | (any_moved & ~moved[path]) for path in patterns}


def _check_layers(params: Any, patterns: Patterns) -> None:
  leaves = leaf_dict(params)
  check_paths(patterns, leaves, name="patterns")
  for path, pattern in patterns.items():
    if leaves[path].shape != pattern.indices.shape:
      raise ValueError(
        f"Parameter {path!r} has shape {leaves[path].shape}, its pattern {pattern.capacity} "
        "connections: it must hold one value for each, not the dense kernel."
      )
