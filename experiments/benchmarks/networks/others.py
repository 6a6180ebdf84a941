"""Recurrent and graph networks in NNX, and small networks of Equinox and Haiku."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx
from experiments.benchmarks.networks.network import (
  Network,
  floats,
  from_equinox,
  from_haiku,
  from_nnx,
)


class Recurrent(nnx.Module):
  """A recurrent cell over a sequence, and a classifier of its last output."""

  def __init__(self, cell: Any, *, rngs: nnx.Rngs):
    self.rnn = nnx.RNN(cell(12, 24, rngs=rngs))
    self.head = nnx.Linear(24, 5, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits `[B, 5]` of sequences `[B, T, 12]`."""
    return self.head(self.rnn(x)[:, -1])


def recurrent(cell: Any) -> Network:
  """A network of a cell of NNX: `nnx.GRUCell`, `nnx.LSTMCell`."""
  return from_nnx(Recurrent(cell, rngs=nnx.Rngs(0)), floats(6, 12))


class Graph(NamedTuple):
  """Graphs of so many nodes; all of a batch are disjoint parts of one.

  Attributes:
    nodes: `[B, V, features]` float32.
    senders: `[B, E]` int32.
    receivers: `[B, E]` int32.
  """

  nodes: jax.Array
  senders: jax.Array
  receivers: jax.Array


class MessagePassing(nnx.Module):
  """Two rounds of messages along edges, and a sum over nodes."""

  def __init__(self, *, rngs: nnx.Rngs):
    self.encode = nnx.Linear(6, 24, rngs=rngs)
    self.messages = nnx.List([nnx.Linear(48, 24, rngs=rngs) for _ in range(2)])
    self.updates = nnx.List([nnx.Linear(48, 24, rngs=rngs) for _ in range(2)])
    self.head = nnx.Linear(24, 4, rngs=rngs)

  def __call__(self, graph: Graph) -> jax.Array:
    """Outputs `[B, 4]`."""
    num_nodes = graph.nodes.shape[1]
    x = self.encode(graph.nodes)
    read = jax.vmap(lambda x, places: x[places])
    add = jax.vmap(lambda x, places: jax.ops.segment_sum(x, places, num_nodes))
    for message, update in zip(self.messages, self.updates, strict=True):
      ends = jnp.concatenate([read(x, graph.senders), read(x, graph.receivers)], -1)
      received = add(nnx.relu(message(ends)), graph.receivers)
      x = x + nnx.relu(update(jnp.concatenate([x, received], -1)))
    return self.head(x.sum(1))


def message_passing() -> Network:
  """A message-passing network on graphs of 10 nodes and 30 edges."""

  def graphs(batch: int) -> Graph:
    rng = np.random.default_rng(0)
    ends = lambda: jnp.asarray(rng.integers(0, 10, (batch, 30)), jnp.int32)
    return Graph(jnp.asarray(rng.normal(size=(batch, 10, 6)), jnp.float32), ends(), ends())

  return from_nnx(MessagePassing(rngs=nnx.Rngs(0)), graphs)


def equinox_mlp() -> Network:
  """`equinox.nn.MLP`."""
  import equinox as eqx

  model = eqx.nn.MLP(12, 5, 24, 2, key=jax.random.key(0))
  return from_equinox(model, floats(12), ablate=sx.all_but("layers/2/"))


def equinox_transformer() -> Network:
  """A transformer block of Equinox, and a classifier of the mean token."""
  import equinox as eqx

  class Transformer(eqx.Module):
    attention: eqx.nn.MultiheadAttention
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array):
      keys = jax.random.split(key, 4)
      self.attention = eqx.nn.MultiheadAttention(4, 24, key=keys[0])
      self.norm1, self.norm2 = eqx.nn.LayerNorm(24), eqx.nn.LayerNorm(24)
      self.up = eqx.nn.Linear(24, 48, key=keys[1])
      self.down = eqx.nn.Linear(48, 24, key=keys[2])
      self.head = eqx.nn.Linear(24, 5, key=keys[3])

    def __call__(self, x: jax.Array) -> jax.Array:
      y = jax.vmap(self.norm1)(x)
      x = x + self.attention(y, y, y)
      mlp = lambda y: self.down(jax.nn.gelu(self.up(y)))
      return self.head((x + jax.vmap(mlp)(jax.vmap(self.norm2)(x))).mean(0))

  return from_equinox(Transformer(jax.random.key(0)), floats(6, 24))


def haiku_mlp() -> Network:
  """`haiku.nets.MLP`."""
  import haiku as hk

  model = lambda x: hk.nets.MLP([24, 24, 5])(x)
  return from_haiku(model, floats(12), ablate=sx.all_but("linear_2/"))
