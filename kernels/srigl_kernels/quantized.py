"""What layers of 8 bits pass on to each other: integers that stand for the numbers of a range."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array, lax


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

  A loop over the window's places: XLA's own on CPU compares one number after the other, and took
  many times as long.

  Args:
    x: the array.
    window: its size along each axis of x, 1 along the last.
    strides: likewise.
    padding: of places that are in no window alone, before and after, likewise.
  """
  zero = jnp.where(x.range[0] < 0, 1, 0).astype(jnp.uint8)  # of the least number
  arrays = []
  for array, nothing in ((x.integers, zero), (x.scales, jnp.float32(-jnp.inf))):
    n = array.ndim
    padded = lax.pad(array, nothing, [(*pads, 0) for pads in padding[:n]])
    sizes = [(m - w) // s + 1 for m, w, s in zip(padded.shape, window, strides, strict=False)]
    ends = [(k - 1) * s + 1 for k, s in zip(sizes, strides, strict=False)]
    places = [
      lax.slice(padded, at, [a + e for a, e in zip(at, ends, strict=True)], strides[:n])
      for at in itertools.product(*map(range, window[:n]))
    ]
    arrays.append(functools.reduce(jnp.maximum, places))
  integers, scales = arrays
  return Quantized(integers, scales, x.range)
