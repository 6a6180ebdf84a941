"""Views of the `[I, N]` matrix by blocks of inputs and groups of neurons.

A neuron of `I = B * M` inputs has `B` blocks of `M` consecutive ones; see `ConstantFanIn`.
"""

import jax.numpy as jnp
from jax import Array

from srigl_jax.topk import count_per_column, topk_mask_per_column


def to_blocks(x: Array, block_size: int) -> Array:
  """`[M, B * N]`: every block of every neuron as a column, from `[B * M, N]`."""
  num_neurons = x.shape[1]
  return x.reshape(-1, block_size, num_neurons).swapaxes(0, 1).reshape(block_size, -1)


def from_blocks(x: Array, num_neurons: int) -> Array:
  """`[B * M, N]`, back from `[M, B * N]`."""
  return x.reshape(len(x), -1, num_neurons).swapaxes(0, 1).reshape(-1, num_neurons)


def count_per_block(chosen: Array, block_size: int) -> Array:
  """True entries in each block of `[B * M, N]` bool, as `[B * M, N]` int32: its block's count."""
  counts = count_per_column(to_blocks(chosen, block_size))
  return from_blocks(jnp.broadcast_to(counts, (block_size, counts.size)), chosen.shape[1])


def topk_mask_per_block(keys: Array, k: Array | int, block_size: int) -> Array:
  """Marks the k largest keys of each block; see `topk.topk_mask_per_column`.

  Args:
    keys: `[B * M, N]` uint32.
    k: `[N]` or `[]` int32, for all blocks of a neuron.
    block_size: M.
  """
  num_neurons = keys.shape[1]
  k = jnp.broadcast_to(jnp.asarray(k, jnp.int32), (num_neurons,))
  blocks = to_blocks(keys, block_size)
  return from_blocks(
    topk_mask_per_column(blocks, jnp.tile(k, blocks.shape[1] // num_neurons)), num_neurons
  )


def group_sums(x: Array, group: int) -> Array:
  """`[I, N / group]` float32: sums of `|x|` over groups of consecutive neurons, from `[I, N]`."""
  x = jnp.abs(x.astype(jnp.float32))
  return x if group == 1 else x.reshape(len(x), -1, group).sum(-1)
