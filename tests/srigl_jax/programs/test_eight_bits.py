"""Products of 8 bits pass 8 bits on, and compute what they did."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_kernels import BACKENDS
from srigl_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(
  not BACKENDS["cpu"].is_available(), reason="needs the native kernels"
)
ISAS = ("generic", "avx2", "avx512", "avx512_vnni", "avx512_fp16")


@functools.cache
def layer(shape, fan_in, input_range=None, dtype="int8"):
  """A convolution of random weights, whose neuron 1 is ablated."""
  rng = np.random.default_rng(shape[-1])
  mask = np.argsort(rng.random((int(np.prod(shape[:-1])), shape[-1])), axis=0) < fan_in
  mask[:, 1] = False
  kernel = np.where(mask, rng.normal(size=mask.shape) / fan_in**0.5, 0).astype(np.float32)
  bias = rng.normal(size=shape[-1]).astype(np.float32)
  with jax.ensure_compile_time_eval():
    condensed = sx.condense(kernel.reshape(shape), mask.reshape(shape), bias)
    return sx.prepare(condensed, backend="cpu", dtype=dtype, input_range=input_range)


def images(size=2):
  return jnp.asarray(np.random.default_rng(9).normal(size=(size, 9, 7, 3)), jnp.float32)


def passed_on(function, *args):
  """The types of what native products give in a program."""
  text = str(jax.make_jaxpr(function)(*args))
  lines = [line for line in text.splitlines() if "ffi_call[" in line]
  return ["u8" if ":u8[" in line.partition("=")[0] else "f32" for line in lines]


STEM, INNER, WIDE = (3, 3, 3, 24), (3, 3, 24, 24), (3, 3, 24, 72)


def chain(x):
  """Unsigned and signed ranges, a max-pooling, strides, kernels of one pixel; windows of sparse
  patterns that lie in two lines of an image."""
  y = nnx.relu(sx.condensed_conv(x, layer(STEM, 9)))
  y = nnx.max_pool(y, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
  y = sx.condensed_conv(y, layer(INNER, 30, (0.0, 3.0)))
  y = nnx.relu(sx.condensed_conv(y, layer(WIDE, 40, (-2.0, 1.5)), strides=2))
  y = nnx.silu(sx.condensed_conv(y, layer((1, 1, 72, 37), 15, (0.0, 2.0)), strides=2))
  return sx.condensed_matmul(y, layer((37, 70), 20, (-0.5, 2.0)))


def test_a_chain_is_the_same_on_every_target():
  x, fused = images(3), jax.jit(sx.fuse(chain))
  want, spoilt = chain(x), x.at[1, 4, 4].set(jnp.nan)
  assert passed_on(sx.fuse(chain), x) == ["u8"] * 4 + ["f32"]
  before = library.isa()
  try:
    for isa in ISAS:
      try:
        library.set_isa(isa)
      except ValueError:
        continue  # this CPU does not have it
      np.testing.assert_allclose(fused(x), want, rtol=0, atol=2e-6)
      got = fused(spoilt)  # what is not a number stays one, and in its image
      np.testing.assert_array_equal(got[::2], fused(x)[::2])
      assert np.isnan(got[1]).any()
  finally:
    library.set_isa(before)


def residual_block(x):
  y = nnx.relu(sx.condensed_conv(x, layer(STEM, 9)))
  z = nnx.relu(sx.condensed_conv(y, layer(INNER, 30, (0.0, 8.0))))
  y = nnx.relu(sx.condensed_conv(z, layer(INNER, 40, (0.0, 8.0))) + y)
  y = nnx.relu(sx.condensed_conv(y, layer(INNER, 50, (0.0, 9.0))) + y)
  return y.mean((1, 2))


def test_residuals_are_of_8_bits_and_derivatives_are_not():
  x, fused = images(), sx.fuse(residual_block)
  assert passed_on(fused, x) == ["u8"] * 3 + ["f32"]
  got, want = jax.jit(fused)(x), residual_block(x)
  assert 0 < np.abs(got - want).max() < 0.01 * np.abs(want).max()
  np.testing.assert_array_equal(jax.jit(jax.vmap(fused))(x[:, None])[:, 0], got)
  grad = lambda f: jax.grad(lambda x: f(x).sum())(x)
  np.testing.assert_allclose(grad(jax.jit(fused)), grad(residual_block), rtol=1e-5, atol=1e-6)


def square(y, *bounds):
  return sx.condensed_matmul(y, layer((24, 24), 9, bounds or None))


@pytest.mark.parametrize(
  "function",
  [
    lambda y: square(y, 0.0, 2.0) + square(y, 0.0, 3.0),  # two ranges
    lambda y: square(y),  # none
    lambda y: (square(y, 0.0, 2.0), y),  # an output
    lambda y: square(y, 0.0, 2.0) * y.sum(),  # something else reads it
    lambda y: square(nnx.max_pool(y[None], (2,)), 0.0, 2.0) + nnx.max_pool(y[None], (2,)),
  ],
)
def test_what_must_be_exact_stays_in_float32(function):
  first = layer((24, 24), 8, (-3.0, 3.0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 24)), jnp.float32)
  both = lambda x: function(nnx.relu(sx.condensed_matmul(x, first)))
  assert "u8" not in passed_on(sx.fuse(both), x)


def test_a_layer_of_other_precision_writes_8_bits_too():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(70, 24)), jnp.float32)
  for dtype in ("float32", "bfloat16"):
    first = layer((24, 24), 8, dtype=dtype)
    both = lambda x, first=first: square(sx.condensed_matmul(x, first), 0.0, 2.0)
    assert passed_on(sx.fuse(both), x) == ["u8", "f32"]
    for rows in (1, 70):
      got, want = jax.jit(sx.fuse(both))(x[:rows]), both(x[:rows])
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
