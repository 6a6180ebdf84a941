"""What is served: networks of random weights under random masks of constant fan-in.

Nothing is trained, as speed depends on weights as little as on inputs. Every parameter differs from
its initial value, so that a comparison of outputs sees it.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx
from experiments.models.functional import flatten

GPT_LENGTH = 256
"""Tokens of a prompt; a cache holds one less."""


class FeedForward(nnx.Module):
  """The feed-forward pair of ViT-B/16 with the exact GELU, on rows of 768 features."""

  def __init__(self, rngs: nnx.Rngs):
    self.up = nnx.Linear(768, 3072, rngs=rngs)
    self.down = nnx.Linear(3072, 768, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, 768]` to the same shape."""
    return self.down(nnx.gelu(self.up(x), approximate=False))


class WideMLP(nnx.Module):
  """Three layers of 4096 neurons with ReLU between them."""

  def __init__(self, rngs: nnx.Rngs):
    self.layers = nnx.List([nnx.Linear(4096, 4096, rngs=rngs) for _ in range(3)])

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps `[B, 4096]` to the same shape."""
    for layer in self.layers[:-1]:
      x = nnx.relu(layer(x))
    return self.layers[-1](x)


class Block(nnx.Module):
  """Causal attention and an MLP, each behind a norm and beside a shortcut."""

  def __init__(self, width: int, num_heads: int, *, rngs: nnx.Rngs):
    self.num_heads = num_heads
    self.ln1, self.ln2 = (nnx.LayerNorm(width, rngs=rngs) for _ in range(2))
    self.qkv = nnx.Linear(width, 3 * width, rngs=rngs)
    self.out = nnx.Linear(width, width, rngs=rngs)
    self.up = nnx.Linear(width, 4 * width, rngs=rngs)
    self.down = nnx.Linear(4 * width, width, rngs=rngs)

  def __call__(self, x: jax.Array, past: tuple[jax.Array, jax.Array] | None = None) -> Any:
    """Maps `[B, T, width]` to the same shape; with keys and values of the past, also those of `x`.

    These are `[B, T', heads, size]` each, and all positions of `x` attend to all of them.
    """
    heads = (*x.shape[:-1], self.num_heads, -1)
    q, k, v = (part.reshape(heads) for part in jnp.split(self.qkv(self.ln1(x)), 3, axis=-1))
    keys, values = (k, v) if past is None else map(_append, past, (k, v))
    attended = jax.nn.dot_product_attention(q, keys, values, is_causal=past is None)
    x = x + self.out(attended.reshape(x.shape))
    x = x + self.down(nnx.gelu(self.up(self.ln2(x))))
    return x if past is None else (x, k, v)


def _append(past: jax.Array, new: jax.Array) -> jax.Array:
  return jnp.concatenate([past, new], axis=1)


class GPT(nnx.Module):
  """A language model of 6 blocks, 384 wide, on 256 of 65 characters; its head is its embedding."""

  def __init__(self, rngs: nnx.Rngs, *, depth: int = 6, width: int = 384, num_heads: int = 6):
    self.embedding = nnx.Embed(65, width, rngs=rngs)
    self.positions = nnx.Embed(GPT_LENGTH, width, rngs=rngs)
    self.blocks = nnx.List([Block(width, num_heads, rngs=rngs) for _ in range(depth)])
    self.ln = nnx.LayerNorm(width, rngs=rngs)

  def __call__(self, tokens: jax.Array) -> jax.Array:
    """Logits `[B, 65]` of what comes after `[B, T]` tokens."""
    x = self.embedding(tokens) + self.positions(jnp.arange(tokens.shape[1]))[None]
    for block in self.blocks:
      x = block(x)
    return self.embedding.attend(self.ln(x[:, -1]))


class GPTStep(GPT):
  """The same, called with the last token and a cache of all before it."""

  def __call__(self, tokens: jax.Array, keys: jax.Array, values: jax.Array) -> Any:  # type: ignore[override]
    """Logits `[B, 65]`, and the keys and values that are new.

    Args:
      tokens: `[B, 1]`.
      keys: `[depth, B, T, heads, size]`.
      values: the same.
    """
    last = jnp.full((1, 1), keys.shape[2])
    x = self.embedding(tokens) + self.positions(last)
    new = []
    for i, block in enumerate(self.blocks):
      x, *pair = block(x, (keys[i], values[i]))
      new.append(pair)
    logits = self.embedding.attend(self.ln(x[:, -1]))
    return logits, *(jnp.stack(each) for each in zip(*new, strict=True))


def build(make: Any, sparsity: float, distribution: str) -> tuple[nnx.Module, sx.Masks]:
  """A network and its masks, the same in every process.

  Args:
    make: takes `nnx.Rngs`, returns the network.
    sparsity: of all layers together.
    distribution: of it among them, see `srigl_jax.allocate`.
  """
  abstract = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
  allocation = sx.allocate(nnx.state(abstract, nnx.Param), sparsity, distribution)
  fan_ins = {
    path: budget // allocation.layers[path].shape[-1] for path, budget in allocation.budgets.items()
  }
  graphdef, state = nnx.split(abstract)
  rng = np.random.default_rng(0)
  arrays, masks = {}, {}
  for path, leaf in flatten(state).items():
    array = _random(path, leaf.shape, rng)
    if path in fan_ins:
      masks[path] = _mask(leaf.shape, fan_ins[path], rng)
      array *= masks[path] * np.sqrt(np.prod(leaf.shape[:-1]) / fan_ins[path])
    arrays[path] = jnp.asarray(array, leaf.dtype)
  leaves = [arrays[path] for path in flatten(state)]
  model = nnx.merge(graphdef, jax.tree.unflatten(jax.tree.structure(state), leaves))
  model.eval()
  return model, {path: jnp.asarray(mask) for path, mask in masks.items()}


def _random(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
  name = path.rpartition("/")[2]
  if name in ("scale", "var"):
    return rng.uniform(0.5, 1.0, shape)
  if name == "kernel":
    return rng.normal(0, np.sqrt(1.5 / np.prod(shape[:-1])), shape)
  return rng.normal(0, 0.1, shape)


def _mask(shape: tuple[int, ...], fan_in: int, rng: np.random.Generator) -> np.ndarray:
  """`fan_in` random inputs of every neuron, the last axis, none of which is ablated."""
  rows = rng.random((shape[-1], int(np.prod(shape[:-1]))), np.float32)
  chosen = np.argpartition(rows, fan_in - 1, axis=1)[:, :fan_in]
  mask = np.zeros(rows.shape, bool)
  np.put_along_axis(mask, chosen, True, axis=1)
  return mask.T.reshape(shape)
