"""Sizes that kernels for accelerators take: powers of two, and rows of whole wide loads."""

import math

import jax.numpy as jnp
from jax import Array

_ALIGNMENT = 8  # weights; 16 bytes of the smallest type


def power(n: float) -> int:
  """The smallest power of two of at least `n` and 1."""
  return 1 << max(0, math.ceil(n) - 1).bit_length()


def pad_rows(rows: Array) -> Array:
  """`[..., K]` as `[..., K']`, zeros added; short rows to a power of two only."""
  fan_in = rows.shape[-1]
  missing = -fan_in % min(_ALIGNMENT, power(fan_in))
  return jnp.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(0, missing)])
