"""Which weights were ever active, a bit for each: what the ITOP rate counts."""

import jax.numpy as jnp
from jax import Array, lax

from srigl_kernels.backends.xla import tiles
from srigl_kernels.pattern import Pattern, dense_rows

_BLOCK_BYTES = 4 * 2**20  # of the rows of a block of neurons


def explored_bits(pattern: Pattern) -> Array:
  """The bits of a pattern's connections, `[N, ceil(I / 8)]` uint8, as `jnp.packbits` has them."""
  empty = jnp.zeros((pattern.out_features, -(-pattern.in_features // 8)), jnp.uint8)
  return add_explored(empty, pattern)


def add_explored(bits: Array, pattern: Pattern) -> Array:
  """The bits with those of a pattern's connections set."""
  ones = jnp.ones(pattern.capacity, bool)

  def step(first: Array | int, size: int, bits: Array) -> Array:
    new = jnp.packbits(dense_rows(ones, pattern, first, size), axis=1)
    old = lax.dynamic_slice_in_dim(bits, first, size, axis=0)
    return lax.dynamic_update_slice_in_dim(bits, old | new, first, axis=0)

  block = max(1, min(pattern.out_features, _BLOCK_BYTES // (8 * pattern.in_features)))
  return tiles(step, pattern.out_features, block, bits)
