"""Small networks, dense against what `backend="auto"` makes of them: it is to lose nowhere.

In networks of this size a call of JAX and of each product costs as much as the products themselves.
Both sides are functions with the weights as constants, as small networks are called fastest.
"""

from collections.abc import Callable, Iterator

import jax.numpy as jnp
from flax import nnx

import srigl_jax as sx
from experiments import models
from experiments.benchmarks.comparison import Comparison
from experiments.benchmarks.kernels.twins import compare_twins

_BATCHES = (1, 16, 64)
_SPARSITIES = (0.5, 0.9)
_AT_LEAST = 0.9  # of the dense network's speed


class Mixer(nnx.Module):
  """An MLP-Mixer (arXiv:2105.01601) of four blocks on 16 patches, 64 channels wide.

  Maps `[B, 16, 48]` to `[B, 10]`.
  """

  def __init__(self, rngs: nnx.Rngs):
    linear = lambda *shape: nnx.Linear(*shape, rngs=rngs)
    self.stem, self.head = linear(48, 64), linear(64, 10)
    self.tokens = nnx.List([nnx.List([linear(16, 32), linear(32, 16)]) for _ in range(4)])
    self.channels = nnx.List([nnx.List([linear(64, 256), linear(256, 64)]) for _ in range(4)])
    self.norms = nnx.List([nnx.LayerNorm(64, rngs=rngs) for _ in range(8)])

  def __call__(self, x):
    """Logits."""
    x, norms = self.stem(x), iter(self.norms)
    for (up, down), (widen, narrow) in zip(self.tokens, self.channels, strict=True):
      mixed = down(nnx.gelu(up(next(norms)(x).swapaxes(1, 2))))
      x = x + mixed.swapaxes(1, 2)
      x = x + narrow(nnx.gelu(widen(next(norms)(x))))
    return self.head(x.mean(1))


def _digits(rngs: nnx.Rngs) -> nnx.Module:
  shape = (8, 8, 1)
  return models.build("mlp", hidden=(256, 256), num_classes=10, image_shape=shape, rngs=rngs)


NETWORKS: dict[str, tuple[Callable[[nnx.Rngs], nnx.Module], tuple[int, ...]]] = {
  "digits MLP": (_digits, (8, 8, 1)),
  "MLP-Mixer": (Mixer, (16, 48)),
}
"""What makes each network, and the shape of one input."""


def rows(batches: tuple[int, ...] = _BATCHES, *, rounds: int) -> Iterator[Comparison]:
  """Random masks of constant fan-in, allocated by Erdős–Rényi-Kernel; one neuron in 4 ablated."""
  for name, (make, shape) in NETWORKS.items():
    for sparsity in _SPARSITIES:
      model = make(nnx.Rngs(0))
      params = nnx.state(model, nnx.Param)
      masks = sx.init_masks(nnx.Rngs(1)(), sx.allocate(params, sparsity))
      masks = {path: mask.at[..., ::4].set(False) for path, mask in masks.items()}
      nnx.update(model, sx.apply_masks(params, masks))
      condensed = sx.condense_model(model, masks, jnp.zeros((1, *shape)))
      for batch in batches:
        dense, auto = ((lambda x, _, call=call: call(x), None) for call in (model, condensed))
        label = f"{name}, {sparsity:.0%} sparse, batch {batch}"
        at = (batch, *shape)
        yield compare_twins(label, dense, auto, at, rounds=rounds, at_least=_AT_LEAST)
