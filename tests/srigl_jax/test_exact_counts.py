import fractions
import math

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from srigl_jax import exact_counts, schedule

product = jax.jit(exact_counts.truncated_product)
products = jax.jit(jax.vmap(exact_counts.truncated_product))


def check_all(ns, values):
  """Compares with Python's double product, for many pairs in one call."""
  got = products(np.asarray(ns, np.int32), exact_counts.fraction_digits(np.asarray(values)))
  want = [int(int(n) * float(f)) for n, f in zip(ns, values, strict=True)]
  np.testing.assert_array_equal(got, want)


@hypothesis.given(st.integers(0, 2**31 - 1), st.floats(0, 1))
@hypothesis.example(2**31 - 1, 1.0)
@hypothesis.example(2**31 - 1, math.nextafter(1.0, 0.0))
@hypothesis.example(1, math.nextafter(1.0, 0.0))
@hypothesis.example(0, 1.0)
@hypothesis.example(2**31 - 1, 5e-324)
@hypothesis.example(10, 0.3)  # 3 in double, 2 in exact arithmetic
@hypothesis.example(100, 0.29)  # 28 in double, 29 in float32
def test_agrees_with_double(n, fraction):
  got = product(jnp.int32(n), exact_counts.fraction_digits(fraction))
  assert got.dtype == jnp.int32
  assert int(got) == int(n * fraction)


def test_every_two_digit_decimal():
  ns, percents = np.meshgrid(np.arange(1, 1001), np.arange(101))
  check_all(ns.ravel(), percents.ravel() / 100)


def test_products_near_integers():
  """Doubles within two units in the last place of w / n, where the rounding decides."""
  rng = np.random.default_rng(0)
  ns = np.exp2(rng.uniform(1, 31, 3000)).astype(np.int64)
  wholes = rng.integers(1, ns + 1)
  values = wholes / ns
  near = [values]
  for direction in (0.0, 1.0):
    near.append(np.nextafter(values, direction))
    near.append(np.nextafter(near[-1], direction))
  check_all(np.tile(ns, 5), np.concatenate(near))
  # The suite would miss nothing if the rounding never mattered, so see that it does.
  exact = [
    math.trunc(int(n) * fractions.Fraction(float(f))) for n, f in zip(ns, values, strict=True)
  ]
  assert any(e != int(int(n) * float(f)) for e, n, f in zip(exact, ns, values, strict=True))


def test_ties_of_the_rounding_go_up():
  """n * f exactly half a unit in the last place below an integer: to the even one, above."""
  for n, f in [(1, 1 - 2.0**-53), (3, (2**53 - 1) / 2**53), (5, 0.6 - 2.0**-54)]:
    check_all([n], [f])
  half_below = [(2**k + 1, f) for k in range(1, 31) for f in (1 - 2.0**-53, 1 - 2.0**-52)]
  check_all(*zip(*half_below, strict=True))


def test_cosine_schedule():
  ns, values = [], []
  for until in (70, 1000, 73125):
    for step in range(until // 10, until, until // 10):
      fraction = schedule.cosine_drop_fraction(step, 0.3, until)
      for n in (99, 1000, 23040, 2359296):
        ns.append(n)
        values.append(fraction)
  check_all(ns, values)


@hypothesis.given(st.integers(0, 2**31 - 1), st.floats(0, 1, width=32))
@hypothesis.example(2**31 - 1, 1.0)
@hypothesis.example(1, 2.0**-126)
@hypothesis.example(2**31 - 1, 2.0**-31)
@hypothesis.example(2**31 - 1, float(np.nextafter(np.float32(1), np.float32(0))))
def test_device_fractions_are_taken_at_their_own_precision(n, fraction):
  digits = exact_counts.fraction_digits(jnp.float32(fraction))
  assert int(product(jnp.int32(n), digits)) == int(n * fraction)


def test_traced_float32():
  """A traced 0.3 is the float32 0.3, and its product is exact, not a float32 product."""
  f = jax.jit(
    lambda n, fraction: exact_counts.truncated_product(n, exact_counts.fraction_digits(fraction))
  )
  differs = 0
  for n in (20, 100, 16777217, 123456789):
    for value in (0.29, 0.3, 0.35, 0.7):
      single = np.float32(value)
      want = int(n * float(single))
      assert int(f(n, single)) == want
      differs += want != int(np.float32(n) * single)
  assert differs


def test_digits_of_device_and_host_agree():
  values = np.float32([0.0, 1.0, 0.5, 0.3, 1e-3, 2.0**-60, 1.17549435e-38])
  np.testing.assert_array_equal(
    exact_counts.fraction_digits(jnp.asarray(values)), exact_counts.fraction_digits(values)
  )


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_floats(dtype):
  fraction = jnp.asarray(0.3, dtype)
  assert int(product(1000, exact_counts.fraction_digits(fraction))) == int(1000 * float(fraction))


def test_exact_fraction_passes_through_jit():
  exact = exact_counts.ExactFraction(exact_counts.fraction_digits(0.29))
  f = jax.jit(
    lambda n, fraction: exact_counts.truncated_product(n, exact_counts.fraction_digits(fraction))
  )
  assert int(f(100, exact)) == 28
