"""Convolutions in float32 pass on tiles, and compute what they did."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_kernels import BACKENDS

pytestmark = pytest.mark.skipif(
  not BACKENDS["cpu"].is_available(), reason="needs the native kernels"
)


@functools.cache
def layer(shape, dtype="float32", seed=0):
  """A convolution of random weights, whose neuron 1 is ablated."""
  rng = np.random.default_rng(seed)
  inputs = int(np.prod(shape[:-1]))
  mask = np.argsort(rng.random((inputs, shape[-1])), axis=0) < inputs // 3
  mask[:, 1] = False
  kernel = np.where(mask, rng.normal(size=mask.shape) / inputs**0.5, 0).astype(np.float32)
  bias = rng.normal(size=shape[-1]).astype(np.float32)
  with jax.ensure_compile_time_eval():
    condensed = sx.condense(kernel.reshape(shape), mask.reshape(shape), bias)
    return sx.prepare(condensed, backend="cpu", dtype=dtype)


def images(count=2, size=(14, 13)):
  return jnp.asarray(np.random.default_rng(9).normal(size=(count, *size, 3)), jnp.float32)


def blocks(x):
  """Two residual blocks, the second one strided."""
  y = nnx.relu(sx.condensed_conv(x, layer((3, 3, 3, 24))))
  z = nnx.relu(sx.condensed_conv(y, layer((1, 1, 24, 16))))
  y = nnx.relu(sx.condensed_conv(z, layer((3, 3, 16, 24))) + y)
  z = nnx.relu(sx.condensed_conv(y, layer((3, 3, 24, 40)), strides=2))
  y = nnx.relu(z + sx.condensed_conv(y, layer((1, 1, 24, 40)), strides=2))
  return y.mean((1, 2))


def calls(function, *args):
  """The names of native calls in a program."""
  text = str(jax.make_jaxpr(function)(*args))
  return [word for word in text.replace('"', " ").split() if word.startswith("target_name=")]


def in_tiles(function, *args):
  return sum("tiled" in name for name in calls(function, *args))


def test_a_network_gives_what_it_gave():
  x = images()
  fused = jax.jit(sx.fuse(blocks))
  assert in_tiles(fused, x) == 5
  np.testing.assert_allclose(fused(x), blocks(x), rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_arrays():
  x, fused = images(), sx.fuse(blocks)
  loss = lambda function: jax.jit(jax.grad(lambda x: (function(x) ** 2).sum()))
  np.testing.assert_allclose(loss(fused)(x), loss(blocks)(x), rtol=1e-3, atol=1e-4)


def test_under_vmap():
  x = jnp.stack([images(), -images()])
  fused = jax.jit(jax.vmap(sx.fuse(blocks)))
  np.testing.assert_allclose(fused(x), jax.vmap(blocks)(x), rtol=1e-4, atol=1e-5)
  outside = jax.jit(sx.fuse(jax.vmap(blocks)))
  np.testing.assert_allclose(outside(x), jax.vmap(blocks)(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ("bfloat16", "int8_weights"))
def test_layers_of_fewer_bits_pass_on_arrays(dtype):
  def chain(x):
    y = sx.condensed_conv(x, layer((3, 3, 3, 24)))
    return sx.condensed_conv(y, layer((3, 3, 24, 24), dtype))

  assert in_tiles(jax.jit(sx.fuse(chain)), images()) == 0


def test_what_others_read_is_an_array():
  """An output of the program, a reader that is no convolution, a residual that is an array."""

  def chain(x):
    y = sx.condensed_conv(x, layer((3, 3, 3, 24)))
    z = sx.condensed_conv(y, layer((1, 1, 24, 24)))
    u = sx.condensed_conv(z, layer((3, 3, 24, 24))) + jnp.sin(y)
    return sx.condensed_conv(u, layer((1, 1, 24, 8))), z

  x, fused = images(), jax.jit(sx.fuse(chain))
  assert in_tiles(fused, x) == 0
  for got, want in zip(fused(x), chain(x), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def pooled(x, window=(3, 3)):
  """A convolution, a max-pooling, and two that read it."""
  y = nnx.relu(sx.condensed_conv(x, layer((3, 3, 3, 24))))
  y = nnx.max_pool(y, window, strides=(2, 2), padding="SAME")
  z = nnx.relu(sx.condensed_conv(y, layer((1, 1, 24, 16))))
  return sx.condensed_conv(z, layer((3, 3, 16, 24))) + sx.condensed_conv(y, layer((1, 1, 24, 24)))


def test_a_max_pooling_passes_on_tiles():
  x, fused = images(), jax.jit(sx.fuse(pooled))
  assert in_tiles(fused, x) == 5
  np.testing.assert_allclose(fused(x), pooled(x), rtol=1e-4, atol=1e-5)
  loss = lambda function: jax.jit(jax.grad(lambda x: (function(x) ** 2).sum()))
  np.testing.assert_allclose(loss(sx.fuse(pooled))(x), loss(pooled)(x), rtol=1e-3, atol=1e-4)
  both = jnp.stack([x, -x])
  want = jnp.stack([pooled(x), pooled(-x)])
  np.testing.assert_allclose(jax.jit(jax.vmap(sx.fuse(pooled)))(both), want, rtol=1e-4, atol=1e-5)


def test_a_max_pooling_that_the_kernel_does_not_take_reads_an_array():
  x, fused = images(), jax.jit(sx.fuse(lambda x: pooled(x, (9, 8))))
  assert in_tiles(fused, x) == 3  # the three behind it
  np.testing.assert_allclose(fused(x), pooled(x, (9, 8)), rtol=1e-4, atol=1e-5)


def test_a_max_pooling_that_others_read_reads_an_array():
  def chain(x):
    y = nnx.relu(sx.condensed_conv(x, layer((3, 3, 3, 24))))
    y = nnx.max_pool(y, (2, 2), strides=(2, 2))
    return sx.condensed_conv(y, layer((1, 1, 24, 16))), y.mean()

  x, fused = images(), jax.jit(sx.fuse(chain))
  assert in_tiles(fused, x) == 0
  for got, want in zip(fused(x), chain(x), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_a_max_pooling_of_a_given_image_reads_an_array():
  def chain(x):
    y = nnx.max_pool(x, (2, 2), strides=(2, 2))
    y = sx.condensed_conv(y, layer((3, 3, 3, 24)))
    return sx.condensed_conv(y, layer((1, 1, 24, 16)))

  x, fused = images(), jax.jit(sx.fuse(chain))
  assert in_tiles(fused, x) == 2
  np.testing.assert_allclose(fused(x), chain(x), rtol=1e-4, atol=1e-5)
