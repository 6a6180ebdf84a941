"""SRigL, SET and static sparsity in condensed form, around any element-wise optimizer.

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

from srigl_jax.condensed_training.init import random_scores
from srigl_jax.condensed_training.optimizers import check_elementwise
from srigl_jax.condensed_training.ranking import Gradients, dense_gradient
from srigl_jax.condensed_training.tree import dense_shapes
from srigl_jax.condensed_training.update import BLOCK_BYTES, Moves, streamed_update
from srigl_jax.exact_counts import Fraction
from srigl_jax.layer_filters import LayerFilter, all_but, find_layers, select
from srigl_jax.layers import check_paths, leaf_dict, map_leaves, natural_key
from srigl_jax.mask_updates import DropFraction, MaskUpdater, check_mask_updater, drop_fraction_at
from srigl_jax.methods.srigl import salient_threshold
from srigl_jax.moments import map_moments, mask_moments
from srigl_jax.schedule import is_update_step
from srigl_kernels.pattern import Pattern

Patterns = Mapping[str, Pattern]
Signals = Mapping[str, tuple[Array, Array]]
"""Inputs `[B, I]` and gradients in the outputs `[B, N]` of sparse layers, by path: what the loss
has for gradients in the layers' probes."""

_NOT_THE_HEAD = all_but("head")


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


class _Topology(NamedTuple):
  """When and how patterns change: `needs_signals` if dense gradients score the growth."""

  updater: MaskUpdater
  update_layer: Callable[["_LayerView"], Moves]
  needs_signals: bool


class _LayerView(NamedTuple):
  """What a topology update sees of one layer."""

  values: Array
  pattern: Pattern
  gradients: Gradients | None
  may_ablate: bool
  drop_fraction: Fraction
  key: Array


def condensed_srigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  ablate: LayerFilter = _NOT_THE_HEAD,
  axis_name: str | None = None,
  block_bytes: int = BLOCK_BYTES,
) -> CondensedTraining:
  """SRigL on layers in condensed form: the patterns are those of `srigl`'s masks.

  Arguments not listed: as for `srigl`.

  Args:
    inner: an element-wise optimizer, clipping by global norm included; adafactor, muon and others
      that see a parameter as a matrix are refused.
    axis_name: the mapped axis of the devices that share a batch, under `pmap` or `shard_map`:
      blocks of dense gradients are averaged over it. Averaging `grads` is the caller's part.
    block_bytes: of a block of a layer's dense gradient; an update holds a few at a time.

  Raises:
    ValueError: if an argument is out of range; on `init` if the optimizer is refused or there is
      no value for a pattern.

  Source: SRigL (arXiv:2305.02299), section 3.
  """
  salient_threshold(gamma_sal, constant_fan_in=1, dense_fan_in=1, salient_base=salient_base)

  def update(layer: _LayerView) -> Moves:
    assert layer.gradients is not None
    return streamed_update(
      layer.values,
      layer.pattern,
      layer.gradients,
      drop_fraction=layer.drop_fraction,
      gamma_sal=gamma_sal if layer.may_ablate else 0,
      salient_base=salient_base,
      block_bytes=block_bytes,
    )

  updater = MaskUpdater(lambda _: {}, update_every, update_until, drop_fraction, ablate=ablate)
  return _condensed_training(inner, _Topology(updater, update, True), axis_name=axis_name)


def condensed_set(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  seed: int = 0,
  block_bytes: int = BLOCK_BYTES,
) -> CondensedTraining:
  """SET with a constant fan-in: prunes by magnitude, grows each neuron anew at random.

  Its `update` looks at no signals, but takes them (or `{}`) as word that the topology may change.
  Arguments not listed: as for `condensed_srigl`.

  Args:
    seed: of random growth.

  Source: Mocanu et al., 2018 (doi:10.1038/s41467-018-04316-3), on RigL's schedule.
  """

  def update(layer: _LayerView) -> Moves:
    return streamed_update(
      layer.values,
      layer.pattern,
      functools.partial(random_scores, layer.key, layer.pattern),
      drop_fraction=layer.drop_fraction,
      gamma_sal=0,
      block_bytes=block_bytes,
    )

  updater = MaskUpdater(lambda _: {}, update_every, update_until, drop_fraction)
  return _condensed_training(inner, _Topology(updater, update, False), seed=seed)


def condensed_static(inner: optax.GradientTransformation) -> CondensedTraining:
  """Patterns that never change; `inner` as for `condensed_srigl`."""
  return _condensed_training(inner, None)


def _condensed_training(
  inner: optax.GradientTransformation,
  topology: _Topology | None,
  *,
  axis_name: str | None = None,
  seed: int = 0,
) -> CondensedTraining:
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
    step = functools.partial(_inner_step, inner, grads, state.inner_state, params, extra_args)

    def change_nothing():
      new_params, inner_state = step({})
      return new_params, dict(patterns), inner_state

    def change_topology(topology: _Topology):
      gradients = {
        path: dense_gradient(*signals[path], axis_name=axis_name)
        for path in (patterns if topology.needs_signals else ())
      }
      moves = _update_layers(topology, leaf_dict(step({})[0]), patterns, gradients, state)
      # As in `sparse_training`: what was just pruned takes no part in the step that counts.
      new_params, inner_state = step({path: move.stays for path, move in moves.items()})
      new_params = map_leaves(lambda values, move: move.apply(values), new_params, moves)
      inner_state = map_moments(
        lambda path, leaf: moves[path].apply(leaf), inner_state, params, moves
      )
      return new_params, {path: move.pattern for path, move in moves.items()}, inner_state

    if topology is None or signals is None:
      params, patterns, inner_state = change_nothing()
    else:
      if topology.needs_signals:
        check_paths(patterns, signals, name="patterns")
      params, patterns, inner_state = lax.cond(
        is_update(state.step), functools.partial(change_topology, topology), change_nothing
      )
    new_step = optax.safe_increment(state.step)
    return params, patterns, CondensedTrainingState(new_step, state.key, inner_state)

  return CondensedTraining(init_fn, update_fn, is_update)


def _inner_step(
  inner: optax.GradientTransformationExtraArgs,
  grads: Any,
  inner_state: Any,
  params: Any,
  extra_args: Mapping[str, Any],
  stays: Mapping[str, Array],
) -> tuple[Any, Any]:
  """Parameters and state after the optimizer's step, as if connections that go were 0 already."""
  mask_tree = lambda tree: map_leaves(lambda x, mask: jnp.where(mask, x, 0), tree, stays)
  masked = mask_tree(params)
  moments = mask_moments(inner_state, params, stays) if stays else inner_state
  updates, inner_state = inner.update(mask_tree(grads), moments, masked, **extra_args)
  return optax.apply_updates(masked, updates), inner_state


def _update_layers(
  topology: _Topology,
  values: Mapping[str, Array],
  patterns: Patterns,
  gradients: Mapping[str, Gradients],
  state: CondensedTrainingState,
) -> dict[str, Moves]:
  """The topology updates of all layers, from the parameters after the optimizer's step."""
  layers = find_layers(dense_shapes(values, patterns), sparse=lambda path, _: path in patterns)
  ablatable = select(topology.updater.ablate, layers, name="ablate")
  step = state.step + 1
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
  fraction = drop_fraction_at(topology.updater, step)
  return {
    path: topology.update_layer(
      _LayerView(
        values[path],
        patterns[path],
        gradients.get(path),
        path in ablatable,
        fraction,
        jax.random.fold_in(key, i),
      )
    )
    for i, path in enumerate(sorted(patterns, key=natural_key))
  }


def _check_layers(params: Any, patterns: Patterns) -> None:
  leaves = leaf_dict(params)
  check_paths(patterns, leaves, name="patterns")
  for path, pattern in patterns.items():
    if leaves[path].shape != pattern.indices.shape:
      raise ValueError(
        f"Parameter {path!r} has shape {leaves[path].shape}, its pattern {pattern.capacity} "
        "connections: it must hold one value for each, not the dense kernel."
      )
