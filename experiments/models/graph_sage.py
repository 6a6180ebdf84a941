"""A message-passing network on sampled neighbourhoods (GraphSAGE, Hamilton et al. 2017)."""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from experiments.data.graphs.dataset import Neighbourhood


class GraphSage(nnx.Module):
  """At each hop a layer of a node, the mean of its neighbours, and the kinds of edges to them.

  Parameter paths: `layers/0/kernel` (of `2 F + relations` inputs), ..., `head/kernel`.
  """

  def __init__(
    self,
    width: int = 128,
    *,
    num_features: int,
    num_relations: int,
    num_classes: int,
    neighbours: tuple[int, ...],
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      width: neurons of a layer.
      num_features: of a node.
      num_relations: kinds of edges.
      num_classes: number of logits.
      neighbours: that are sampled at each hop; there is a layer for each hop.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters and logits are float32.
    """
    self.num_relations, self.dtype = num_relations, dtype
    sizes = [num_features, *(width for _ in neighbours)]
    he = nnx.initializers.he_normal()
    self.layers = nnx.List(
      nnx.Linear(2 * size + num_relations, out, kernel_init=he, dtype=dtype, rngs=rngs)
      for size, out in itertools.pairwise(sizes)
    )
    self.head = nnx.Linear(width, num_classes, dtype=dtype, rngs=rngs)

  def __call__(
    self, x: Neighbourhood, *, train: bool = False, rngs: nnx.Rngs | None = None
  ) -> Array:
    """Computes `[B, num_classes]` float32 logits of the nodes in the middle."""
    del train, rngs
    hops = [features.astype(self.dtype) for features in x.features]
    for layer in self.layers:
      inputs = [
        jnp.concatenate([own, *self._received(around, relations)], axis=-1)
        for own, around, relations in zip(hops[:-1], hops[1:], x.relations, strict=False)
      ]
      # One product for the nodes of all hops.
      shapes = [part.shape[:-1] for part in inputs]
      flat = jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in inputs])
      out = nnx.relu(layer(flat))
      ends = list(itertools.accumulate(len(part.reshape(-1, part.shape[-1])) for part in inputs))
      parts = jnp.split(out, ends[:-1])
      hops = [part.reshape(*s, -1) for part, s in zip(parts, shapes, strict=True)]
    return self.head(hops[0]).astype(jnp.float32)

  def _received(self, around: Array, relations: Array) -> tuple[Array, Array]:
    """Means over neighbours, of their features and of the kinds of edges; 0 if there are none."""
    kinds = jax.nn.one_hot(relations, self.num_relations, dtype=self.dtype)  # of none all 0
    is_there = relations < self.num_relations
    count = jnp.maximum(is_there.sum(-1), 1)[..., None].astype(self.dtype)
    total = jnp.where(is_there[..., None], around, 0).sum(-2)
    return total / count, kinds.sum(-2) / count
