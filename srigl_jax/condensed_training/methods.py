"""SRigL, SET and static sparsity on layers in condensed form."""

import functools

import optax

from srigl_jax.condensed_training.init import random_scores
from srigl_jax.condensed_training.topology import LayerView, Topology
from srigl_jax.condensed_training.transform import CondensedTraining, condensed_training
from srigl_jax.condensed_training.update import BLOCK_BYTES, Moves, streamed_update
from srigl_jax.layer_filters import LayerFilter, all_but
from srigl_jax.mask_updates import DropFraction, MaskUpdater
from srigl_jax.methods.srigl import salient_threshold

_NOT_THE_HEAD = all_but("head")


def condensed_srigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  grad_accumulation_steps: int = 1,
  ablate: LayerFilter = _NOT_THE_HEAD,
  accumulation_steps: int = 1,
  track_explored: bool = False,
  axis_name: str | None = None,
  block_bytes: int = BLOCK_BYTES,
) -> CondensedTraining:
  """SRigL on layers in condensed form: the patterns are those of `srigl`'s masks.

  Arguments not listed: as for `srigl`.

  Args:
    inner: an element-wise optimizer, clipping by global norm included; adafactor, muon and others
      that see a parameter as a matrix are refused.
    update_until: see `srigl`.
    update_every: see `srigl`.
    drop_fraction: see `srigl`.
    gamma_sal: see `srigl`.
    salient_base: see `srigl`.
    grad_accumulation_steps: see `srigl`. More than 1 needs `signals` on `init`, and memory for the
      smaller of two things in each layer: its inputs and the gradients in its outputs of so many
      batches, or its mean dense gradient.
    ablate: see `srigl`.
    accumulation_steps: batches whose mean gradient makes one optimizer step, as `optax.MultiSteps`
      around `srigl` has it: `update` is called for each. More than 1 needs memory as above.
    track_explored: whether the state keeps which weights were ever active, a bit for each of the
      dense layer, for the ITOP rate that `summarize(..., explored=state.explored)` counts.
    axis_name: the mapped axis of the devices that share a batch, under `pmap` or `shard_map`:
      blocks of dense gradients are averaged over it. Averaging `grads` is the caller's part.
    block_bytes: of a block of a layer's dense gradient; an update holds a few at a time.

  Raises:
    ValueError: if an argument is out of range; on `init` if the optimizer is refused or there is
      no value for a pattern.

  Source: SRigL (arXiv:2305.02299), section 3.
  """
  salient_threshold(gamma_sal, constant_fan_in=1, dense_fan_in=1, salient_base=salient_base)

  def update(layer: LayerView) -> Moves:
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

  updater = MaskUpdater(
    lambda _: {},
    update_every,
    update_until,
    drop_fraction,
    grad_accumulation_steps,
    ablate=ablate,
  )
  return condensed_training(
    inner,
    Topology(updater, update, needs_signals=True, axis_name=axis_name),
    accumulation_steps=accumulation_steps,
    track_explored=track_explored,
  )


def condensed_set(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  seed: int = 0,
  accumulation_steps: int = 1,
  track_explored: bool = False,
  block_bytes: int = BLOCK_BYTES,
) -> CondensedTraining:
  """SET with a constant fan-in: prunes by magnitude, grows each neuron anew at random.

  Its `update` looks at no signals, but takes them (or `{}`) as word that the topology may change.

  Arguments not listed: as for `condensed_srigl`.

  Args:
    inner: see `condensed_srigl`.
    update_until: see `srigl`.
    update_every: see `srigl`.
    drop_fraction: see `srigl`.
    seed: of random growth.
    accumulation_steps: see `condensed_srigl`; it needs no `signals`.
    track_explored: see `condensed_srigl`.
    block_bytes: see `condensed_srigl`.

  Source: Mocanu et al., 2018 (doi:10.1038/s41467-018-04316-3), on RigL's schedule.
  """

  def update(layer: LayerView) -> Moves:
    return streamed_update(
      layer.values,
      layer.pattern,
      functools.partial(random_scores, layer.key, layer.pattern),
      drop_fraction=layer.drop_fraction,
      gamma_sal=0,
      block_bytes=block_bytes,
    )

  updater = MaskUpdater(lambda _: {}, update_every, update_until, drop_fraction)
  return condensed_training(
    inner,
    Topology(updater, update, needs_signals=False),
    seed=seed,
    accumulation_steps=accumulation_steps,
    track_explored=track_explored,
  )


def condensed_static(
  inner: optax.GradientTransformation, *, accumulation_steps: int = 1, track_explored: bool = False
) -> CondensedTraining:
  """Patterns that never change. Arguments as for `condensed_srigl`."""
  return condensed_training(
    inner, None, accumulation_steps=accumulation_steps, track_explored=track_explored
  )
