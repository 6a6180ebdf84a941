"""A bag of words to very many labels, with the logits of a block of them at a time.

Each block of the head is a layer of its own: with a constant fan-in that is the same as one layer.
Loss, best labels and ranks are put together from what each block says.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

from experiments.models.in_turn import first_turn, in_turn

_LOSSES = ("softmax", "binary")
_NEVER = -jnp.inf


class Labelled(NamedTuple):
  """What the network says of each example.

  Attributes:
    loss: `[B]` float32.
    labels: `[B, k]` int32, the best, in order; None in training.
    rank: `[B]` int32, where the best of the example's own labels stands among all, from 1; of an
      example without labels one more than there are. None in training.
  """

  loss: Array
  labels: Array | None = None
  rank: Array | None = None


class BagOfWords(nnx.Module):
  """Embeddings of features are summed, pass through hidden layers, and score the labels.

  What the head sees has a mean square of 1: the sum of a text's embeddings is small at first, and
  logits that hardly differ teach them little.

  Parameter paths: `embedding/embedding`, `hidden/0/kernel`, ..., `head/0/kernel`, ...
  """

  def __init__(
    self,
    width: int = 256,
    hidden: Sequence[int] = (),
    num_blocks: int = 4,
    loss: str = "softmax",
    *,
    num_features: int,
    num_labels: int,
    max_features: int,
    max_labels: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      width: of an embedding.
      hidden: neurons of layers between embedding and head: an intermediate layer makes up for
        accuracy that a sparse head loses (Schultheis & Babbar 2023).
      num_blocks: of labels; logits of one are there at a time.
      loss: `"softmax"`, the labels of an example being equally likely, or `"binary"`
        cross-entropy of each label.
      num_features: kinds of features.
      num_labels: labels there are.
      max_features: unused: of an example.
      max_labels: unused: of an example.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters and sums are float32.

    Raises:
      ValueError: if the loss is unknown, or there are more blocks than labels.
    """
    del max_features, max_labels
    if loss not in _LOSSES:
      raise ValueError(f"config.model.kwargs.loss is {loss!r}; it must be one of {_LOSSES}.")
    if not 0 < num_blocks <= num_labels:
      raise ValueError(
        f"config.model.kwargs.num_blocks is {num_blocks}; it must lie in 1..{num_labels}, the "
        "number of labels."
      )
    self.loss, self.dtype, self.num_labels = loss, dtype, num_labels
    normal = nnx.initializers.normal(0.1)
    self.embedding = nnx.Embed(num_features, width, embedding_init=normal, rngs=rngs)
    sizes = [width, *hidden]
    he = nnx.initializers.he_normal()
    self.hidden = nnx.List(
      nnx.Linear(*shape, kernel_init=he, dtype=dtype, rngs=rngs)
      for shape in itertools.pairwise(sizes)
    )
    bounds = [num_labels * i // num_blocks for i in range(num_blocks + 1)]
    self.bounds = tuple(bounds)
    # As many labels are true at first as there are examples.
    first = nnx.initializers.constant(-math.log(num_labels) if loss == "binary" else 0.0)
    self.head = nnx.List(
      nnx.Linear(sizes[-1], stop - start, bias_init=first, dtype=dtype, rngs=rngs)
      for start, stop in itertools.pairwise(bounds)
    )

  def __call__(
    self,
    x: dict[str, Array],
    *,
    train: bool = False,
    rngs: nnx.Rngs | None = None,
    k: int = 5,
  ) -> Labelled:
    """Scores labels.

    Args:
      x: `features` `[B, F]` int32, their `weights` `[B, F]` float32, and `labels` `[B, L]` int32,
        `num_labels` standing for none.
      train: whether to compute nothing but the loss.
      rngs: unused.
      k: the number of best labels, in evaluation.
    """
    del rngs
    h = self._encode(x)
    terms, turn = self._terms(h, x["labels"])
    is_there = x["labels"] < self.num_labels
    own, count = jnp.stack([own for _, own in terms]).sum(0), is_there.sum(-1)
    totals = jnp.stack([total for total, _ in terms])
    if self.loss == "softmax":
      mean = own.sum(-1) / jnp.maximum(count, 1)
      loss = jnp.where(count > 0, jax.nn.logsumexp(totals, axis=0) - mean, 0.0)
    else:
      loss = totals.sum(0) - own.sum(-1)
    if train:
      return Labelled(loss)
    best_own = jnp.where(is_there, own, _NEVER).max(-1)
    return Labelled(loss, *self._best(h, best_own, k, turn))

  def _encode(self, x: dict[str, Array]) -> Array:
    """`[B, width]` of mean square 1 from features, whose weights are made to have length 1."""
    weights = x["weights"]
    norm = jnp.sqrt((weights**2).sum(-1, keepdims=True))
    weights = weights / jnp.maximum(norm, 1e-6)
    h = (self.embedding(x["features"]) * weights[..., None]).sum(1).astype(self.dtype)
    for layer in self.hidden:
      h = layer(nnx.relu(_normalized(h)))
    return _normalized(h)

  def _terms(self, h: Array, labels: Array) -> tuple[list[tuple[Array, Array]], Array]:
    """What the loss needs of each block: its logits' total `[B]`, and the example's own, `[B, L]`.

    Logits are computed anew for their gradient, not kept. Also returned is the turn after the last
    block, see `in_turn`.
    """

    def of_block(logits: Array, start: int, stop: int, labels: Array) -> tuple[Array, Array]:
      is_here = (labels >= start) & (labels < stop)
      places = jnp.where(is_here, labels - start, 0)
      own = jnp.where(is_here, jnp.take_along_axis(logits, places, axis=-1), 0.0)
      if self.loss == "softmax":
        return jax.nn.logsumexp(logits, axis=-1), own
      return jax.nn.softplus(logits).sum(-1), own

    return self._by_block(of_block, h, labels, first_turn())

  def _best(self, h: Array, best_own: Array, k: int, turn: Array) -> tuple[Array, Array]:
    """The `k` best labels `[B, k]` and the rank `[B]` that a logit `[B]` has among all."""

    def of_block(logits: Array, start: int, stop: int, best_own: Array) -> tuple[Array, ...]:
      top, places = jax.lax.top_k(logits, min(k, stop - start))
      return top, places + start, (logits > best_own[:, None]).sum(-1, dtype=jnp.int32)

    scores, labels, above = zip(*self._by_block(of_block, h, best_own, turn)[0], strict=True)
    _, places = jax.lax.top_k(jnp.concatenate(scores, -1), min(k, self.num_labels))
    best = jnp.take_along_axis(jnp.concatenate(labels, -1), places, axis=-1)
    return best, 1 + sum(above)

  def _by_block(
    self, of_block: Callable[..., Any], h: Array, of_examples: Array, turn: Array
  ) -> tuple[list[Any], Array]:
    """`of_block(logits, start, stop, of_examples)` of each block in turn, and the turn after."""
    found = []
    for layer, (start, stop) in zip(self.head, itertools.pairwise(self.bounds), strict=True):
      if getattr(layer, "recording", False):  # of shapes only, which changes what the layer holds
        found.append(of_block(layer(h).astype(jnp.float32), start, stop, of_examples))
        continue
      graphdef, state = nnx.split(layer)

      def part(args: Any, h: Array, graphdef=graphdef, start=start, stop=stop) -> Any:
        state, of_examples = args
        logits = nnx.merge(graphdef, state)(h).astype(jnp.float32)
        return of_block(logits, start, stop, of_examples)

      terms, turn = in_turn(part, (state, of_examples), h, turn)
      found.append(terms)
    return found, turn


def _normalized(h: Array) -> Array:
  """Each example divided by its root mean square (RMSNorm without scales)."""
  mean = jnp.square(h.astype(jnp.float32)).mean(-1, keepdims=True)
  return (h * jax.lax.rsqrt(mean + 1e-6)).astype(h.dtype)
