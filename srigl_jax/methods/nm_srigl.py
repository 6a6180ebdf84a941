"""SRigL in blocks: n connections in every block of m consecutive inputs (N:M sparsity)."""

import optax

from srigl_jax.layer_filters import LayerFilter, all_but
from srigl_jax.layers import AxesFn
from srigl_jax.mask_updates import DropFraction
from srigl_jax.methods.srigl import srigl
from srigl_jax.structures import n_of_m

_NOT_THE_HEAD = all_but("head")


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
  sparse: LayerFilter = True,
  ablate: LayerFilter = _NOT_THE_HEAD,
  axes: AxesFn | None = None,
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
  return srigl(
    inner,
    update_until=update_until,
    fan_in=n,
    structure=n_of_m(n, m),
    update_every=update_every,
    drop_fraction=drop_fraction,
    gamma_sal=gamma_sal,
    grad_accumulation_steps=grad_accumulation_steps,
    sparse=sparse,
    ablate=ablate,
    axes=axes,
    seed=seed,
  )
