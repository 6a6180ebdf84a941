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
import optax
from jax import Array, lax

from srigl_jax.condensed_training.optimizers import check_elementwise
from srigl_jax.condensed_training.tree import dense_shapes
from srigl_jax.condensed_training.update import Moves
from srigl_jax.exact_counts import Fraction
from srigl_jax.layer_filters import find_layers, select
from srigl_jax.layers import check_paths, leaf_dict, map_leaves, natural_key
from srigl_jax.mask_updates import MaskUpdater, check_mask_updater, drop_fraction_at
from srigl_jax.moments import map_moments, mask_moments
from srigl_jax.schedule import is_update_step
from srigl_kernels.pattern import Pattern

Patterns = Mapping[str, Pattern]
Signals = Mapping[str, tuple[Array, Array]]
"""Inputs `[B, I]` and gradients in the outputs `[B, N]` of sparse layers, by path: what the loss
has for gradients in the layers' probes."""


class CondensedTrainingState(NamedTuple):
  """State of training in condensed form, beside parameters and patterns: arrays only.

  Attributes:
    step: `[]` int32, optimizer steps done.
    key: `[2]` uint32, data of the random key of random growth.
    inner_state: the wrapped optimizer's state; moments of sparse layers are `[C]`.
  """

  step: Array
  key: Array
  inner_state: Any


class CondensedTraining(NamedTuple):
  """A pair of pure functions, as an optax transformation is.

  Attributes:
    init: `(params, patterns) -> CondensedTrainingState`.
    update: `(grads, signals, state, params, patterns, **extra_args) -> (params, patterns, state)`.
      `signals` of None leaves the patterns as they are, and compiles no topology update: for steps
      of which the caller knows that there is none.
    is_update_step: `(steps_done) -> bool`, whether the step after so many updates the topology;
      of a Python number or an array.
  """

  init: Callable[..., CondensedTrainingState]
  update: Callable[..., tuple[Any, dict[str, Pattern], CondensedTrainingState]]
  is_update_step: Callable[[Any], Any]


class LayerView(NamedTuple):
  """What a topology update sees of one layer.

  Attributes:
    values: `[C]`, the weights as the optimizer leaves them.
    pattern: where they are.
    signals: `(x, g)`, or `()` if growth is not scored by gradients.
    key: a random key of this layer and update.
    drop_fraction: share of the active weights to prune; for `truncated_count`.
    may_ablate: whether neurons of it may be ablated.
  """

  values: Array
  pattern: Pattern
  signals: tuple[Array, ...]
  key: Array
  drop_fraction: Fraction
  may_ablate: bool


class Topology(NamedTuple):
  """When and how patterns change.

  Attributes:
    updater: when, and which layers may lose neurons; its `update` is not used.
    update: the topology update of one layer.
    needs_signals: whether gradients score the growth.
  """

  updater: MaskUpdater
  update: Callable[[LayerView], Moves]
  needs_signals: bool


def condensed_training(
  inner: optax.GradientTransformation,
  topology: Topology | None,
  seed: int = 0,
) -> CondensedTraining:
  """What every method in condensed form is made of.

  Args:
    inner: an element-wise optimizer.
    topology: how patterns change; None: never.
    seed: of random growth.
  """
  inner = optax.with_extra_args_support(inner)
  check_mask_updater(topology.updater if topology else None)

  def init_fn(params: Any, patterns: Patterns) -> CondensedTrainingState:
    _check_layers(params, patterns)
    inner_state = inner.init(params)
    check_elementwise(inner_state, params, patterns)
    key = jax.random.key_data(jax.random.key(seed))
    return CondensedTrainingState(jnp.zeros((), jnp.int32), key, inner_state)

  def is_update(steps_done: Any) -> Any:
    if topology is None:
      return steps_done < 0
    updater = topology.updater
    return is_update_step(steps_done + 1, updater.update_every, updater.update_until)

  def update_fn(grads, signals, state, params, patterns, **extra_args):
    _check_layers(params, patterns)
    step = functools.partial(_inner_step, inner, grads, extra_args)

    def plain_step(carry):
      params, inner_state, patterns = carry
      return *step(params, inner_state, {}), patterns

    def topology_step(topology: Topology, carry):
      params, inner_state, patterns = carry
      after = leaf_dict(step(params, inner_state, {})[0])
      moves = _update_layers(topology, after, patterns, signals, state)
      # As in `sparse_training`: what was just pruned takes no part in the step that counts.
      new_params, new_state = step(
        params, inner_state, {path: move.stays for path, move in moves.items()}
      )
      move_moments = lambda path, leaf: moves[path].apply(leaf)
      return (
        map_leaves(lambda values, move: move.apply(values), new_params, moves),
        map_moments(move_moments, new_state, params, moves),
        {path: move.pattern for path, move in moves.items()},
      )

    carry = params, state.inner_state, dict(patterns)
    if topology is None or signals is None:
      carry = plain_step(carry)
    else:
      if topology.needs_signals:
        check_paths(patterns, signals, name="patterns")
      changes = is_update(state.step)
      carry = _apply_if(~changes, plain_step, carry)
      carry = _apply_if(changes, functools.partial(topology_step, topology), carry)
    params, inner_state, patterns = carry
    new_step = optax.safe_increment(state.step)
    return params, patterns, CondensedTrainingState(new_step, state.key, inner_state)

  return CondensedTraining(init_fn, update_fn, is_update)


def _apply_if(predicate: Array, fn: Callable[[Any], Any], carry: Any) -> Any:
  """`fn(carry)` if the predicate holds, else `carry`.

  As a loop of one pass or none, which works in place: XLA copies what `lax.cond` returns.
  """
  once = lambda state: (jnp.zeros((), bool), fn(state[1]))
  return lax.while_loop(lambda state: state[0], once, (predicate, carry))[1]


def _inner_step(
  inner: optax.GradientTransformationExtraArgs,
  grads: Any,
  extra_args: Mapping[str, Any],
  params: Any,
  inner_state: Any,
  stays: Mapping[str, Array],
) -> tuple[Any, Any]:
  """Parameters and state after the optimizer's step, as if connections that go were 0 already."""
  mask_tree = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, stays)
  masked = mask_tree(params)
  moments = mask_moments(inner_state, params, stays) if stays else inner_state
  updates, inner_state = inner.update(mask_tree(grads), moments, masked, **extra_args)
  return optax.apply_updates(masked, updates), inner_state


def _update_layers(
  topology: Topology,
  values: Mapping[str, Array],
  patterns: Patterns,
  signals: Signals,
  state: CondensedTrainingState,
) -> dict[str, Moves]:
  """The topology updates of all layers, from the parameters after the optimizer's step."""
  layers = find_layers(dense_shapes(values, patterns), sparse=lambda path, _: path in patterns)
  ablatable = select(topology.updater.ablate, layers, name="ablate")
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step + 1)
  fraction = drop_fraction_at(topology.updater, state.step + 1)
  alike: dict[Any, dict[str, Any]] = {}  # layers by all that the compiled update depends on
  for i, path in enumerate(sorted(patterns, key=natural_key)):
    arrays = {
      "values": values[path],
      "pattern": patterns[path],
      "signals": signals[path] if topology.needs_signals else (),
      "key": jax.random.fold_in(key, i),
    }
    leaves, structure = jax.tree.flatten(arrays)
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    alike.setdefault((shapes, structure, path in ablatable), {})[path] = arrays
  moves: dict[str, Moves] = {}
  for (*_, may_ablate), group in alike.items():
    update = lambda arrays, may_ablate=may_ablate: topology.update(
      LayerView(**arrays, drop_fraction=fraction, may_ablate=may_ablate)
    )
    if len(group) == 1:
      results = [update(*group.values())]
    else:  # compiled once, run one after the other
      stacked = lax.map(update, jax.tree.map(lambda *xs: jnp.stack(xs), *group.values()))
      results = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(group))]
    moves |= dict(zip(group, results, strict=True))
  return moves


def _check_layers(params: Any, patterns: Patterns) -> None:
  leaves = leaf_dict(params)
  check_paths(patterns, leaves, name="patterns")
  for path, pattern in patterns.items():
    if leaves[path].shape != pattern.indices.shape:
      raise ValueError(
        f"Parameter {path!r} has shape {leaves[path].shape}, its pattern {pattern.capacity} "
        "connections: it must hold one value for each, not the dense kernel."
      )
