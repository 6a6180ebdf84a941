"""Structures finer or coarser than a neuron: blocks of its inputs, groups of neurons.

A neuron of `I = B * M` inputs has `B` blocks of `M` consecutive ones, in the order of the `[I, N]`
view: for convolutions (window row, window column, input channel).
"""

import math
import numbers

import jax.numpy as jnp
from jax import Array

from srigl_jax.layers import Layer
from srigl_jax.topk import count_per_column, topk_mask_per_column


def check_structure(block_size: int | None, group_size: int) -> None:
  """Raises a ValueError if a size is not a whole number from 1 on."""
  for name, size in (("block_size", block_size), ("group_size", group_size)):
    if size is not None and (not isinstance(size, numbers.Integral) or size < 1):
      raise ValueError(
        f"{name} is {size!r}; it must be a whole number, 1 or more"
        + (", or None for one block of all inputs." if name == "block_size" else ".")
      )


def check_n_of_m(n: int, m: int) -> None:
  """Raises a ValueError unless n and m are whole numbers with `1 <= n <= m`."""
  if not all(isinstance(x, numbers.Integral) for x in (n, m)) or not 1 <= n <= m:
    raise ValueError(
      f"n is {n!r} and m is {m!r}: n connections in each block of m inputs need whole numbers with "
      "1 <= n <= m, such as 2 and 4."
    )


def num_blocks(layer: Layer, block_size: int | None) -> int:
  """Blocks that each neuron's inputs fall into; None: a single one.

  Raises:
    ValueError: if the inputs are no multiple of `block_size`.
  """
  if block_size is None:
    return 1
  if layer.dense_fan_in % block_size:
    raise ValueError(
      f"Layer {layer.path!r} of shape {layer.shape} has {layer.dense_fan_in} inputs to each "
      f"neuron, no multiple of block_size={block_size}. Choose a block_size that divides them, or "
      f"keep all such layers dense with sparse=all_but(inputs_multiple_of={block_size})."
    )
  return layer.dense_fan_in // block_size


def num_in_group(layer: Layer, group_size: int) -> int:
  """Neurons of a layer that share their inputs: the largest common divisor of N and `group_size`.

  So a classifier of 10 classes has groups of 2 where other layers have groups of 16.
  """
  return math.gcd(layer.num_neurons, group_size)


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
