"""What fused programs compute in another way on a CPU is the same, and so is its derivative."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx


def text(function, *args):
  """The program of a function."""
  return str(jax.make_jaxpr(function)(*args))


POOLINGS = {
  "same": ((3, 3), (2, 2), "SAME", (2, 7, 8, 5)),
  "valid": ((2, 3), (2, 1), "VALID", (2, 7, 8, 5)),
  "wide": ((6, 6), (1, 1), ((2, 3), (0, 5)), (1, 6, 9, 3)),
  "line": ((4,), (3,), "SAME", (2, 17, 3)),
  "volume": ((2, 2, 2), (2, 2, 2), "VALID", (1, 4, 5, 6, 2)),
  "exact": ((4, 4), (4, 4), "VALID", (3, 4, 4, 2)),
}


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_max_poolings_are_of_shifted_images(name, dtype):
  window, strides, padding, shape = POOLINGS[name]
  rng = np.random.default_rng(0)
  x = rng.integers(-3, 2, shape).astype(np.float32)  # of which many are equal
  x.flat[:3] = np.nan, np.inf, -np.inf
  x = jnp.asarray(x, dtype)
  pool = lambda x: nnx.max_pool(x, window, strides, padding)
  fused = sx.fuse(pool)
  assert "reduce_window" in text(pool, x) and "reduce_window_max" not in text(jax.jit(fused), x)
  same = lambda a, b: np.testing.assert_array_equal(a.astype(jnp.float32), b.astype(jnp.float32))
  same(jax.jit(fused)(x), pool(x))
  weights = jnp.asarray(rng.normal(size=pool(x).shape), dtype)
  loss = lambda f: lambda x: (f(x) * weights).sum()
  finite = jnp.nan_to_num(x, posinf=5, neginf=-5)
  same(*(jax.grad(loss(f))(finite) for f in (pool, jax.jit(fused))))


@pytest.mark.parametrize("window", [(40, 40, 1), (2, 2, 2)])
def test_poolings_across_channels_or_of_large_windows_stay(window):
  x, largest = jnp.ones((1, 70, 70, 4)), (-jnp.inf, jax.lax.max)
  pool = lambda x: jax.lax.reduce_window(x, *largest, (1, *window), (1, 2, 2, 1), "VALID")
  assert "reduce_window" in text(sx.fuse(pool), x)


@pytest.mark.parametrize("shape", [(3, 7, 7, 40), (2, 11, 5), (1, 2, 3, 4, 6)])
def test_means_of_pixels_are_products(shape):
  x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
  axes = tuple(range(1, len(shape) - 1))
  mean = lambda x: x.mean(axes, keepdims=True)
  fused = sx.fuse(mean)
  assert "reduce_sum" in text(mean, x) and "reduce_sum" not in text(fused, x)
  want = np.asarray(x, np.float64).mean(axes, keepdims=True)
  np.testing.assert_allclose(jax.jit(fused)(x), want, rtol=1e-5, atol=1e-6)
  loss = lambda f: lambda x: (f(x) ** 2).sum()
  gradients = [jax.grad(loss(f))(x) for f in (mean, jax.jit(fused))]
  np.testing.assert_allclose(*gradients, rtol=1e-5, atol=1e-7)
  np.testing.assert_allclose(jax.jit(jax.vmap(fused))(x[None])[0], want, rtol=1e-5, atol=1e-6)
  infinite = x.at[0, 0].set(jnp.inf)
  np.testing.assert_array_equal(jax.jit(fused)(infinite)[0], mean(infinite)[0])


def test_other_sums_stay():
  x = jnp.ones((2, 3, 4, 5))
  for axes in ((1,), (2, 3), (0, 1, 2), (1, 2, 3)):
    assert "reduce_sum" in text(sx.fuse(functools.partial(jnp.sum, axis=axes)), x)
  assert "reduce_sum" in text(sx.fuse(lambda x: x.sum((1, 2))), jnp.ones((2, 3, 4, 5), int))


def test_the_number_of_images_may_be_left_open():
  pool = lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME").mean((1, 2))
  (n,) = jax.export.symbolic_shape("n")
  argument = jax.ShapeDtypeStruct((n, 9, 9, 4), jnp.float32)
  exported = jax.export.export(jax.jit(sx.fuse(pool)))(argument)
  assert "reduce_window" not in exported.mlir_module()
  x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 9, 9, 4)), jnp.float32)
  np.testing.assert_allclose(exported.call(x), pool(x), rtol=1e-6)


DEPTHWISE = {
  "same": {},
  "stride": {"strides": (2, 3)},
  "valid": {"padding": "VALID", "kernel_dilation": (2, 1)},
  "cut": {"padding": ((3, -1), (0, 2))},
  "several": {"features": 12},
  "empty": {"padding": "VALID", "size": (2, 2)},
  "bfloat16": {"dtype": jnp.bfloat16},
}


@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise_convolutions_are_sums_of_images(name):
  how = {"features": 6, "size": (7, 9), "dtype": None, **DEPTHWISE[name]}
  size, features = how.pop("size"), how.pop("features")
  conv = nnx.Conv(6, features, (3, 3), feature_group_count=6, rngs=nnx.Rngs(0), **how)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, *size, 6)), jnp.float32)
  fused = sx.fuse(conv)
  assert "conv_general_dilated" in text(conv, x)
  assert "conv_general_dilated" not in text(fused, x)
  within = {"rtol": 5e-2, "atol": 5e-2} if how["dtype"] else {"rtol": 1e-5, "atol": 1e-5}
  want, got = conv(x), jax.jit(fused)(x)
  assert want.dtype == got.dtype
  np.testing.assert_allclose(got.astype(float), want.astype(float), **within)
  loss = lambda f: lambda x: (f(x).astype(jnp.float32) ** 2).sum()
  gradients = [jax.grad(loss(f))(x) for f in (conv, jax.jit(fused))]
  np.testing.assert_allclose(*gradients, **within)


def test_other_grouped_convolutions_stay():
  x = jnp.ones((1, 5, 5, 6))
  conv = nnx.Conv(6, 6, (3, 3), feature_group_count=3, rngs=nnx.Rngs(0))
  assert "conv_general_dilated" in text(sx.fuse(conv), x)
