"""A decoder-only transformer with a tied head, its blocks scanned or a list.

Scanned blocks compile in the time of one, and their kernels are stacks `[depth, in, out]`, each
layer of which is sparse by itself. Training in condensed form needs a list: `scan=False`.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.typing import DTypeLike

_normal = nnx.initializers.normal(0.02)


class Cache(NamedTuple):
  """Keys and values of the tokens so far.

  Attributes:
    keys: `[depth, B, length, heads, size]`.
    values: the same.
    position: `[]` int32, tokens so far.
  """

  keys: Array
  values: Array
  position: Array


class Block(nnx.Module):
  """Causal attention and an MLP, each behind a norm and beside a shortcut."""

  def __init__(
    self, width: int, num_heads: int, mlp_width: int, *, dtype: DTypeLike, rngs: nnx.Rngs
  ):
    """Creates the parameters; see `GPT`."""
    self.num_heads = num_heads
    linear = functools.partial(nnx.Linear, kernel_init=_normal, dtype=dtype, rngs=rngs)
    norm = functools.partial(nnx.LayerNorm, width, dtype=jnp.float32, rngs=rngs)
    self.norm1 = norm()
    self.query = linear(width, width)
    self.key = linear(width, width)
    self.value = linear(width, width)
    self.out = linear(width, width)
    self.norm2 = norm()
    self.up = linear(width, mlp_width)
    self.down = linear(mlp_width, width)

  def __call__(self, x: Array) -> Array:
    """Maps `[B, T, width]` to the same shape."""
    query, key, value = self._project(x)
    attended = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    return self._rest(x, attended)

  def extend(self, x: Array, keys: Array, values: Array, position: Array) -> tuple[Array, ...]:
    """The same for tokens that come after those of a cache.

    Args:
      x: `[B, T, width]`, the new tokens.
      keys: `[B, length, heads, size]` of all tokens, those from `position` on not yet there.
      values: the same.
      position: `[]` int32, of the first new token.

    Returns:
      `[B, T, width]`, and keys and values with those of the new tokens.
    """
    query, key, value = self._project(x)
    start = (0, position, 0, 0)
    keys = jax.lax.dynamic_update_slice(keys, key, start)
    values = jax.lax.dynamic_update_slice(values, value, start)
    places = position + jnp.arange(x.shape[1])
    seen = jnp.arange(keys.shape[1])[None] <= places[:, None]
    attended = jax.nn.dot_product_attention(query, keys, values, mask=seen[None, None])
    return self._rest(x, attended), keys, values

  def _project(self, x: Array) -> tuple[Array, ...]:
    y = self.norm1(x).astype(x.dtype)
    heads = (*x.shape[:-1], self.num_heads, x.shape[-1] // self.num_heads)
    return tuple(layer(y).reshape(heads) for layer in (self.query, self.key, self.value))

  def _rest(self, x: Array, attended: Array) -> Array:
    x = x + self.out(attended.reshape(x.shape))
    return x + self.down(nnx.gelu(self.up(self.norm2(x).astype(x.dtype))))


class GPT(nnx.Module):
  """A language model with learned positions.

  Parameter paths: `embedding/embedding`, `pos_embedding`, `blocks/query/kernel` (also key, value,
  out, up, down; `blocks/0/query/kernel` of a list), `norm/scale`.
  """

  def __init__(
    self,
    depth: int = 6,
    width: int = 384,
    num_heads: int = 6,
    mlp_width: int = 1536,
    *,
    vocab_size: int,
    length: int,
    rngs: nnx.Rngs,
    dtype: DTypeLike = jnp.float32,
    scan: bool = True,
  ):
    """Creates the parameters.

    Args:
      depth: number of blocks.
      width: size of a token.
      num_heads: attention heads.
      mlp_width: neurons between the two layers of a block's MLP.
      vocab_size: number of different tokens.
      length: the most tokens that attend to each other.
      rngs: source of the initial parameters.
      dtype: compute type, float32 or bfloat16; parameters and logits are float32.
      scan: whether blocks are stacked and scanned.

    Raises:
      ValueError: if the heads do not divide the width.
    """
    if width % num_heads:
      raise ValueError(f"num_heads is {num_heads}; it must divide the width, {width}.")
    self.length, self.scan, self.dtype = length, scan, dtype
    self.embedding = nnx.Embed(vocab_size, width, embedding_init=_normal, rngs=rngs)
    self.pos_embedding = nnx.Param(_normal(rngs.params(), (length, width), jnp.float32))
    make = lambda key: Block(width, num_heads, mlp_width, dtype=dtype, rngs=nnx.Rngs(key))
    keys = jax.random.split(rngs.params(), depth)
    self.blocks: Any = nnx.vmap(make)(keys) if scan else nnx.List([make(key) for key in keys])
    self.norm = nnx.LayerNorm(width, dtype=jnp.float32, rngs=rngs)

  def __call__(self, tokens: Array, *, train: bool = False, rngs: nnx.Rngs | None = None) -> Array:
    """Computes float32 logits `[B, T, vocab_size]` of what comes after each of `[B, T]` tokens."""
    del train, rngs
    x = self._embed(tokens, 0)
    if self.scan:
      run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      x = run(x, self.blocks)
    else:
      for block in self.blocks:
        x = block(x)
    return self._logits(x)

  def empty_cache(self, batch_size: int) -> Cache:
    """A cache of no tokens."""
    some = self.blocks if self.scan else self.blocks[0]
    depth = self.depth
    width = self.pos_embedding[...].shape[1]
    shape = (depth, batch_size, self.length, some.num_heads, width // some.num_heads)
    zeros = jnp.zeros(shape, self.dtype)
    return Cache(zeros, zeros, jnp.zeros((), jnp.int32))

  @property
  def depth(self) -> int:
    """The number of blocks."""
    return self.blocks.norm1.scale[...].shape[0] if self.scan else len(self.blocks)

  def extend(self, tokens: Array, cache: Cache) -> tuple[Array, Cache]:
    """Logits of tokens that come after those of a cache.

    Args:
      tokens: `[B, T]`; with those of the cache at most `length`, which is not checked.
      cache: of the tokens before.

    Returns:
      As `__call__`, and the cache with these tokens.
    """
    x = self._embed(tokens, cache.position)

    def step(x: Array, block: Block, keys: Array, values: Array) -> tuple[Array, Any]:
      x, keys, values = block.extend(x, keys, values, cache.position)
      return x, (keys, values)

    if self.scan:
      run = nnx.scan(step, in_axes=(nnx.Carry, 0, 0, 0), out_axes=(nnx.Carry, 0))
      x, (keys, values) = run(x, self.blocks, cache.keys, cache.values)
    else:
      found = []
      for i, block in enumerate(self.blocks):
        x, kept = step(x, block, cache.keys[i], cache.values[i])
        found.append(kept)
      keys, values = map(jnp.stack, zip(*found, strict=True))
    return self._logits(x), Cache(keys, values, cache.position + tokens.shape[1])

  def _embed(self, tokens: Array, position: int | Array) -> Array:
    table, size = self.pos_embedding[...], tokens.shape[1]
    places = jax.lax.dynamic_slice_in_dim(table, position, size)
    return (self.embedding(tokens) + places[None]).astype(self.dtype)

  def _logits(self, x: Array) -> Array:
    return self.embedding.attend(self.norm(x)).astype(jnp.float32)


def unstacked(model: GPT, masks: Mapping[str, Array]) -> tuple[GPT, dict[str, Array]]:
  """A model of scanned blocks as one with a list of them, and its masks; others as they are.

  Args:
    model: the model; it is left as it is.
    masks: by path, those of blocks stacked as the kernels are.
  """
  if not model.scan:
    return model, dict(masks)
  graphdef, state = nnx.split(model.blocks)
  block = lambda i: nnx.merge(graphdef, jax.tree.map(lambda x: x[i], state))
  twin, depth = nnx.clone(model), model.depth
  twin.blocks, twin.scan = nnx.List([block(i) for i in range(depth)]), False
  found = {path: mask for path, mask in masks.items() if not path.startswith("blocks/")}
  for path, mask in masks.items():
    if path not in found:
      rest = path.removeprefix("blocks/")
      found |= {f"blocks/{i}/{rest}": mask[i] for i in range(depth)}
  return twin, found
