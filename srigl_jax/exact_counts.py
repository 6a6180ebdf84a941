"""`trunc(n * fraction)` as IEEE double forms it, inside jitted code that has no doubles.

How many weights an update prunes is `trunc(n * fraction)` with n counted on the device, and one
unit more or less is another topology. Float32 is wrong for one layer in thousands, and exact
rational arithmetic is wrong too (10 * 0.3 is 3 in double, since the product is rounded before it
is truncated). So the product is formed in integers, and its rounding to 53 bits imitated.
"""

import fractions
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_DIGITS = 7  # 16-bit digits of a fraction in units of 2**-96; the last holds its integer part
_POINT = 6  # digits behind the point


class ExactFraction(NamedTuple):
  """A double in [0, 1] that can be traced: `[..., 7]` uint32 digits in units of `2**-96`."""

  digits: np.ndarray | Array


Fraction = float | Array | ExactFraction


def fraction_digits(fraction: Fraction | np.ndarray) -> np.ndarray | Array:
  """Fixed-point digits of fractions in [0, 1], as `truncated_product` takes them.

  Args:
    fraction: Python floats or a numpy array, taken as doubles; or a jax array, traced or not,
      taken at its own precision (float32 or less); or an `ExactFraction`, passed through.

  Returns:
    `[..., 7]` uint32 16-bit digits in units of `2**-96`, least significant first: numpy for
    Python and numpy input, so that the digits are constants of a jitted program.
  """
  if isinstance(fraction, ExactFraction):
    return fraction.digits
  if isinstance(fraction, Array):
    return _device_digits(fraction.astype(jnp.float32))
  values = np.asarray(fraction, np.float64)
  scaled = [int(fractions.Fraction(float(v)) * 2 ** (16 * _POINT)) for v in values.flat]
  digits = [[(v >> (16 * j)) & 0xFFFF for j in range(_DIGITS)] for v in scaled]
  return np.asarray(digits, np.uint32).reshape((*values.shape, _DIGITS))


def _device_digits(fraction: Array) -> Array:
  """The digits of float32 numbers in [0, 1], by shifting their 24-bit mantissas into place."""
  bits = lax.bitcast_convert_type(fraction, jnp.uint32)
  exponent = (bits >> 23).astype(jnp.int32) & 0xFF
  mantissa = jnp.where(exponent > 0, (bits & 0x7FFFFF) | 0x800000, 0)
  digit = lax.broadcasted_iota(jnp.int32, (*fraction.shape, _DIGITS), fraction.ndim)
  shift = exponent[..., None] - 150 + 16 * (_POINT - digit)
  mantissa = mantissa[..., None]
  left = jnp.where(shift < 16, mantissa << jnp.clip(shift, 0, 15).astype(jnp.uint32), 0)
  right = jnp.where(shift > -32, mantissa >> jnp.clip(-shift, 0, 31).astype(jnp.uint32), 0)
  return jnp.where(shift >= 0, left, right) & 0xFFFF


def truncated_product(n: Array | int, digits: np.ndarray | Array) -> Array:
  """`trunc(n * fraction)`, the product rounded to double before it is truncated.

  Args:
    n: `[]` int32, not negative.
    digits: `[7]` uint32 from `fraction_digits`.

  Returns:
    `[]` int32.
  """
  n = jnp.asarray(n, jnp.uint32)
  columns = [jnp.uint32(0)] * (_DIGITS + 3)
  for i, part in enumerate((n & 0xFFFF, n >> 16)):
    for j in range(_DIGITS):
      product = part * jnp.asarray(digits[..., j], jnp.uint32)
      columns[i + j] += product & 0xFFFF
      columns[i + j + 1] += product >> 16
  carry = jnp.uint32(0)
  for j, column in enumerate(columns):
    total = column + carry
    columns[j], carry = total & 0xFFFF, total >> 16
  whole = columns[_POINT] | (columns[_POINT + 1] << 16)
  high = columns[_POINT - 2] | (columns[_POINT - 1] << 16)
  low = columns[_POINT - 4] | (columns[_POINT - 3] << 16)
  # The double nearest to whole + fraction is whole + 1 from half a unit in the last place below
  # it on (the tie goes to the even whole + 1): when the 53 - b bits behind the point are all
  # ones, 2**b being the binade of `whole`, and b = -1 for a product below 1.
  ones = 53 - (31 - lax.clz(whole).astype(jnp.int32))
  in_high, in_low = jnp.clip(ones, 0, 32), jnp.clip(ones - 32, 0, 32)
  rounds_up = (_leading_ones(high) >= in_high) & (_leading_ones(low) >= in_low)
  return (whole + rounds_up.astype(jnp.uint32)).astype(jnp.int32)


def truncated_count(n: Array | int, fraction: Fraction) -> Array:
  """`trunc(n * fraction)`: how many a fraction of n is, counted as in IEEE double.

  Args:
    n: `[]` int32, not negative.
    fraction: in [0, 1]; a Python float, or what a `LayerView` has.

  Returns:
    `[]` int32.
  """
  return truncated_product(n, fraction_digits(fraction))


def _leading_ones(word: Array) -> Array:
  return lax.clz(~word).astype(jnp.int32)
