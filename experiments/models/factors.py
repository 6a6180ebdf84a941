"""Matrix factorisation: a table of users, a table of items, and what lies between them."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike


class Table(nnx.Module):
  """An embedding for each row, kept as the kernel `[width, rows]` of a layer.

  So a row is a neuron and its connections are the entries of its embedding: what holds for kernels
  holds for the table. A leaf of this name is sparse by default, which an `nnx.Embed` is not.
  """

  def __init__(self, rows: int, width: int, *, rngs: nnx.Rngs):
    """Creates the parameters: `[width, rows]`."""
    self.kernel = nnx.Param(nnx.initializers.he_normal()(rngs.params(), (width, rows)))

  def __call__(self, index: Array) -> Array:
    """Rows `[B, width]` by index `[B]`."""
    return self.kernel[...].T[index]


class MatrixFactorisation(nnx.Module):
  """A user's embedding, through hidden layers if there are any, scores all items at once.

  The table of items is the kernel of the last layer. Parameter paths: `users/kernel`,
  `hidden/0/kernel`, ..., `items/kernel`, `items/bias`.
  """

  def __init__(
    self,
    width: int = 64,
    hidden: Sequence[int] = (),
    *,
    num_users: int,
    num_items: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
  ):
    """Creates the parameters.

    Args:
      width: of an embedding.
      hidden: neurons of layers between users and items (neural collaborative filtering); without
        them a score is the product of two embeddings, and the item's bias.
      num_users: rows of the one table.
      num_items: rows of the other.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters and scores are float32.
    """
    self.dtype = dtype
    self.users = Table(num_users, width, rngs=rngs)
    he = nnx.initializers.he_normal()
    sizes = [width, *hidden]
    self.hidden = nnx.List(
      nnx.Linear(*shape, kernel_init=he, dtype=dtype, rngs=rngs)
      for shape in itertools.pairwise(sizes)
    )
    self.items = nnx.Linear(sizes[-1], num_items, kernel_init=he, dtype=dtype, rngs=rngs)

  def __call__(self, users: Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Array:
    """Scores `[B, items]` float32 of users `[B]` int32."""
    del train, rngs
    h = self.users(users).astype(self.dtype)
    for layer in self.hidden:
      h = nnx.relu(layer(h))
    return self.items(h).astype(jnp.float32)
