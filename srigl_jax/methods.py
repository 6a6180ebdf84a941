"""Methods whose masks change and keep their size: SRigL, alone and in blocks, RigL, SET.

Each is a choice of what is pruned, what grows and which structure holds, handed to the wrapper in
`transform`: an optax transformation round an optimizer of the user's own.
"""

from collections.abc import Mapping

import optax
from jax import Array

from srigl_jax.allocation import Distribution
from srigl_jax.blocks import check_n_of_m
from srigl_jax.evolution import DropFraction, LayerView, Topology, per_layer
from srigl_jax.leaves import AxesRule, flax_axes
from srigl_jax.rules import Rule, all_but
from srigl_jax.topology import rigl_update, salient_threshold, set_update, srigl_update
from srigl_jax.transform import sparse_training

_NOT_THE_HEAD = all_but("head")


def srigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  block_size: int | None = None,
  group_size: int = 1,
  grad_accumulation_steps: int = 1,
  sparse: Rule = True,
  ablate: Rule = _NOT_THE_HEAD,
  axes: AxesRule = flax_axes,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """Structured RigL: constant fan-in, regrowth by gradient, ablation of useless neurons.

  In each step the inner optimizer moves the weights; every `update_every` steps before
  `update_until` the topology is then updated (`srigl_update`), magnitudes being those after the
  move and gradients those of before.

  Args:
    inner: the optimizer to wrap; gradient clipping that should see masked gradients goes inside.
    update_until: T_end, the step at which topology updates end; the papers use three quarters
      of the run.
    sparsity: share of the layers' weights that are missing, in [0, 1).
    distribution: how it is divided among the layers; see `allocate`.
    density: `1 - sparsity`, in its place.
    fan_in: connections of each neuron, in its place; see `allocate`.
    update_every: ΔT, steps between topology updates.
    drop_fraction: share of the active weights that an update prunes: the initial one of a cosine
      that reaches 0 at `update_until`; or a function of the step (traced) that returns it.
    gamma_sal: see `srigl_update`; 0 for no ablation. 0.3 suits convolutional networks, 0.95
      vision transformers (which are pruned in width far more).
    salient_base: see `srigl_update`.
    block_size: M, for a constant fan-in in every block of M consecutive inputs; see `nm_srigl`.
    group_size: consecutive neurons that share their inputs (and are ablated together), so that
      their weights form dense blocks; layers whose neurons are no multiple of it have groups of
      their largest common divisor.
    grad_accumulation_steps: how many of the last dense gradients before an update its growth
      score averages; 1 costs no memory.
    sparse: which layers may be sparse; see `rules`.
    ablate: which layers may lose neurons. The classifier may not by default.
    axes: which axes of a kernel are neurons.
    seed: of the initial masks.

  Under `optax.inject_hyperparams`, inject into a function of the hyperparameter alone, since the
  other arguments have to stay Python values:
  `inject_hyperparams(lambda rate: srigl(optax.sgd(rate), ...))(rate=0.1)`.

  Returns:
    A transformation whose `update` takes the plain dense gradients of the loss and needs
    `params`. Its state is a `SparseState`; `get_masks` finds the masks in it.

  Raises:
    ValueError: if an argument is out of range; on `init` if a layer's fan-in would be 0.

  Source: SRigL (arXiv:2305.02299), section 3; order of optimizer and topology update within a
  step as in the authors' code (docs/algorithm.md, row 9).
  """
  salient_threshold(gamma_sal, constant_fan_in=1, dense_fan_in=1, salient_base=salient_base)

  def update(layer: LayerView) -> Array:
    return srigl_update(
      layer.weights,
      layer.scores,
      layer.mask,
      budget=layer.budget,
      drop_fraction=layer.drop_fraction,
      gamma_sal=gamma_sal if layer.may_ablate else 0,
      salient_base=salient_base,
      block_size=block_size,
      group_size=group_size,
      axes=lambda *_: layer.axes,
    )

  return sparse_training(
    inner,
    Topology(
      per_layer(update),
      update_every,
      update_until,
      drop_fraction,
      grad_accumulation_steps,
      ablate=ablate,
    ),
    structure="constant_fan_in",
    block_size=block_size,
    group_size=group_size,
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    fan_in=fan_in,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def nm_srigl(
  inner: optax.GradientTransformation,
  n: int = 2,
  m: int = 4,
  *,
  update_until: int,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  gamma_sal: float = 0.0,
  grad_accumulation_steps: int = 1,
  sparse: Rule = True,
  ablate: Rule = _NOT_THE_HEAD,
  axes: AxesRule = flax_axes,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """SRigL with n connections in every block of m consecutive inputs of a neuron: 2:4, 4:8, 1:16.

  Blocks are consecutive in the `[I, N]` view, for convolutions (window row, window column, input
  channel). With m = I this is `srigl(fan_in=n)`. Arguments not listed: as for `srigl`.

  Args:
    inner: the optimizer to wrap.
    n: connections in each block.
    m: inputs of a block; must divide the inputs of each sparse layer.
    update_until: see `srigl`.
    update_every: see `srigl`.
    drop_fraction: see `srigl`.
    gamma_sal: 0 keeps n as it is. With ablation, the neurons that stay share the connections of
      those that do not: `budget // (blocks of the neurons that stay)` in each block.
    grad_accumulation_steps: see `srigl`.
    sparse: which layers may be sparse; `all_but(inputs_multiple_of=m)` leaves out those that m
      does not divide, such as a first convolution of 27 inputs.
    ablate: see `srigl`.
    axes: see `srigl`.
    seed: of the initial masks.

  Raises:
    ValueError: if n is not in 1..m; on `init` if m does not divide a sparse layer's inputs.

  Source: SRigL (arXiv:2305.02299), whose constant fan-in is the case m = I of N:M sparsity
  (Mishra et al., arXiv:2104.08378).
  """
  check_n_of_m(n, m)
  return srigl(
    inner,
    update_until=update_until,
    fan_in=n,
    block_size=m,
    update_every=update_every,
    drop_fraction=drop_fraction,
    gamma_sal=gamma_sal,
    grad_accumulation_steps=grad_accumulation_steps,
    sparse=sparse,
    ablate=ablate,
    axes=axes,
    seed=seed,
  )


def rigl(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  grad_accumulation_steps: int = 1,
  sparse: Rule = True,
  axes: AxesRule = flax_axes,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """RigL: unstructured sparsity, regrowth by gradient. Arguments as for `srigl`.

  Source: RigL (arXiv:1911.11134), as SRigL's authors run it as their baseline.
  """

  def update(layer: LayerView) -> Array:
    return rigl_update(
      layer.weights,
      layer.scores,
      layer.mask,
      drop_fraction=layer.drop_fraction,
      axes=lambda *_: layer.axes,
    )

  return sparse_training(
    inner,
    Topology(per_layer(update), update_every, update_until, drop_fraction, grad_accumulation_steps),
    structure="unstructured",
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def set_(
  inner: optax.GradientTransformation,
  *,
  update_until: int,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  update_every: int = 100,
  drop_fraction: DropFraction = 0.3,
  sparse: Rule = True,
  axes: AxesRule = flax_axes,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """SET: unstructured sparsity, random regrowth. Arguments as for `srigl`.

  Source: Mocanu et al., 2018 (doi:10.1038/s41467-018-04316-3), on RigL's schedule.
  """

  def update(layer: LayerView) -> Array:
    return set_update(
      layer.weights,
      layer.key,
      layer.mask,
      drop_fraction=layer.drop_fraction,
      axes=lambda *_: layer.axes,
    )

  return sparse_training(
    inner,
    Topology(per_layer(update), update_every, update_until, drop_fraction),
    structure="unstructured",
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )
