"""A GPT with tied embedding, fused query-key-value and SwiGLU, in NNX and Linen, scanned or not."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from experiments.benchmarks.networks.network import Network, from_linen, from_nnx, tokens

VOCABULARY, LENGTH = 32, 8
WIDTH, HEADS, HIDDEN, LAYERS = 16, 2, 24, 2


class Block(nnx.Module):
  """Causal attention and SwiGLU, each behind a norm and beside a shortcut."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.norm1 = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.qkv = nnx.LinearGeneral(WIDTH, (3, HEADS, WIDTH // HEADS), use_bias=False, rngs=rngs)
    self.out = nnx.LinearGeneral((HEADS, WIDTH // HEADS), WIDTH, axis=(-2, -1), rngs=rngs)
    self.norm2 = nnx.RMSNorm(WIDTH, rngs=rngs)
    self.gate = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
    self.up = nnx.Linear(WIDTH, HIDDEN, use_bias=False, rngs=rngs)
    self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, T, width]` to the same shape."""
    x = x + self.out(attend(self.qkv(self.norm1(x))))
    y = self.norm2(x)
    return x + self.down(nnx.silu(self.gate(y)) * self.up(y))


def attend(qkv: jax.Array) -> jax.Array:
  """Causal attention, from `[B, T, 3, heads, size]` to `[B, T, heads, size]`."""
  q, k, v = jnp.moveaxis(qkv, -3, 0)
  return jax.nn.dot_product_attention(q, k, v, is_causal=True)


class GPT(nnx.Module):
  """A language model; its blocks are stacked and scanned, or a list."""

  def __init__(self, *, scanned: bool, rngs: nnx.Rngs):
    self.embedding = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
    self.scanned = scanned
    keys = jax.random.split(rngs.params(), LAYERS)
    make = lambda key: Block(rngs=nnx.Rngs(key))
    self.blocks: Any = nnx.vmap(make)(keys) if scanned else nnx.List([make(k) for k in keys])
    self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits `[B, T, vocabulary]` of `[B, T]` tokens."""
    x = self.embedding(tokens)
    if self.scanned:
      run = nnx.scan(lambda x, block: block(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
      x = run(x, self.blocks)
    else:
      for block in self.blocks:
        x = block(x)
    return self.embedding.attend(self.norm(x))


class LinenBlock(nn.Module):
  """`Block` in Linen."""

  @nn.compact
  def __call__(self, x: jax.Array, _: Any = None) -> tuple[jax.Array, None]:
    """Maps `[B, T, width]` to the same shape."""
    dense = lambda n, name, bias=False: nn.Dense(n, use_bias=bias, name=name)
    size = WIDTH // HEADS
    qkv = nn.DenseGeneral((3, HEADS, size), use_bias=False, name="qkv")(nn.RMSNorm()(x))
    x = x + nn.DenseGeneral(WIDTH, axis=(-2, -1), name="out")(attend(qkv))
    y = nn.RMSNorm()(x)
    y = nn.silu(dense(HIDDEN, "gate")(y)) * dense(HIDDEN, "up")(y)
    return x + dense(WIDTH, "down", bias=True)(y), None


class LinenGPT(nn.Module):
  """`GPT` in Linen."""

  scanned: bool

  @nn.compact
  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits `[B, T, vocabulary]` of `[B, T]` tokens."""
    embedding = nn.Embed(VOCABULARY, WIDTH, name="embedding")
    x = embedding(tokens)
    if self.scanned:
      blocks = nn.scan(
        LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=LAYERS
      )
      x, _ = blocks(name="blocks")(x, None)
    else:
      for i in range(LAYERS):
        x, _ = LinenBlock(name=f"blocks_{i}")(x)
    return embedding.attend(nn.RMSNorm()(x))


def gpt_nnx(*, scanned: bool) -> Network:
  """The network in NNX."""
  inputs = tokens(LENGTH, VOCABULARY)
  return from_nnx(GPT(scanned=scanned, rngs=nnx.Rngs(0)), inputs)


def gpt_linen(*, scanned: bool) -> Network:
  """The network in Linen; both have the same weights."""
  inputs = tokens(LENGTH, VOCABULARY)
  network = from_linen(LinenGPT(scanned=False), inputs)
  if not scanned:
    return network
  params = dict(network.params)
  blocks = [params.pop(f"blocks_{i}") for i in range(LAYERS)]
  params["blocks"] = jax.tree.map(lambda *x: jnp.stack(x), *blocks)
  return from_linen(LinenGPT(scanned=True), inputs)._replace(params=params)
