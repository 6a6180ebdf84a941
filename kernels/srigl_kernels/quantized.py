"""What layers of 8 bits pass on to each other: integers that stand for the numbers of a range."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels import pooling


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Quantized:
  """An array `[..., N]` in 8 bits, by the steps of a range as `precision` describes them.

  Attributes:
    integers: `[..., N]` uint8: the steps, plus 128 where the range has negative numbers.
    scales: `[...]` float32, what a step of each row stands for: the same of all but those that hold
      a NaN, which it is there.
    range: `[2]` float32, the least and the largest number; 0 lies between them, too.
  """

  integers: Array
  scales: Array
  range: Array

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the array."""
    return self.integers.shape


def max_pool(
  x: Quantized, window: Sequence[int], strides: Sequence[int], padding: Sequence[tuple[int, int]]
) -> Quantized:
  """The largest number of each window, as exact as its integers.

  Args:
    x: the array.
    window: its size along each axis of x, 1 along the last.
    strides: likewise.
    padding: of places that are in no window alone, before and after, likewise.
  """
  least = jnp.where(x.range[0] < 0, 1, 0).astype(jnp.uint8)
  integers = pooling.max_pool(x.integers, least, window, strides, padding)
  rows = window[:-1], strides[:-1], padding[:-1]
  scales = pooling.max_pool(x.scales, jnp.full((), -jnp.inf), *rows)
  return Quantized(integers, scales, x.range)
