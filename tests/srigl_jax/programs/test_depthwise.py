"""Depthwise convolutions in fused programs: native, with what follows, and the same derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)

CHANNELS = 20


def primitives(function, *args):
  """Names of the operations of a fused function, and how often a native convolution is called."""
  text = str(jax.make_jaxpr(sx.fuse(function))(*args))
  return text, text.count("srigl_depthwise_conv")


class Block(nnx.Module):
  """A depthwise convolution with what may follow it."""

  def __init__(self, activation, use_bias, has_residual, **how):
    how = {"strides": 1, "dtype": None, **how}
    self.conv = nnx.Conv(
      CHANNELS, CHANNELS, (3, 3), feature_group_count=CHANNELS, use_bias=use_bias,
      rngs=nnx.Rngs(0), **how,
    )  # fmt: skip
    if use_bias:
      self.conv.bias.set_value(jnp.linspace(-1, 1, CHANNELS))
    self.activation, self.has_residual = activation, has_residual

  def __call__(self, x):
    y = self.conv(x)
    return self.activation(y + x if self.has_residual else y)


def image(batch=2):
  return jnp.asarray(np.random.default_rng(0).normal(size=(batch, 7, 9, CHANNELS)), jnp.float32)


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(
  "activation", [lambda y: y, jax.nn.hard_swish, nnx.relu, lambda y: y * jax.nn.sigmoid(y)]
)
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize("has_residual", [False, True])
def test_all_that_follows_is_in_one_call(activation, use_bias, has_residual, batch):
  block, x = Block(activation, use_bias, has_residual), image(batch)
  text, calls = primitives(block, x)
  assert calls == 1
  assert not any(f" {name} " in text for name in ("add", "max", "logistic", "clamp"))
  fused = jax.jit(sx.fuse(block))
  np.testing.assert_allclose(fused(x), block(x), rtol=1e-5, atol=1e-5)
  loss = lambda f: lambda x: (f(x) ** 2).sum()
  gradients = [jax.grad(loss(f))(x) for f in (block, fused)]
  np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)
  mapped = jax.jit(jax.vmap(sx.fuse(lambda x: block(x[None])[0])))
  np.testing.assert_allclose(mapped(x), block(x), rtol=1e-5, atol=1e-5)


def test_what_is_read_in_between_is_computed():
  conv, x = Block(nnx.relu, True, False).conv, image()
  both = lambda x: (conv(x), nnx.relu(conv(x)))
  for got, want in zip(jax.jit(sx.fuse(both))(x), both(x), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "shape", [(1, 7, 9, CHANNELS), (1, 1, 9, CHANNELS), (1, 1, 1, CHANNELS), (1, 1, 1, 1)]
)
def test_only_one_number_for_each_channel_is_a_bias(shape):
  conv, x = Block(nnx.relu, False, False).conv, image(1)
  added = jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
  function = lambda x, added: nnx.relu(conv(x) + added)
  got = jax.jit(sx.fuse(function))(x, added)
  np.testing.assert_allclose(got, function(x, added), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{"dtype": jnp.bfloat16}, {"kernel_dilation": 2}, {"strides": 2}])
def test_other_types_and_shapes(how):
  block, x = Block(nnx.relu, True, False, **how), image()
  assert primitives(block, x)[1] == ("dtype" not in how)
  within = {"rtol": 5e-2, "atol": 5e-2} if "dtype" in how else {"rtol": 1e-5, "atol": 1e-5}
  want, got = block(x), jax.jit(sx.fuse(block))(x)
  assert want.dtype == got.dtype
  np.testing.assert_allclose(got.astype(float), want.astype(float), **within)


class Separable(nnx.Module):
  def __init__(self, rngs):
    self.expand = nnx.Conv(8, 64, (1, 1), rngs=rngs)
    self.depthwise = nnx.Conv(64, 64, (3, 3), feature_group_count=64, rngs=rngs)

  def __call__(self, x):
    return jax.nn.hard_swish(self.depthwise(nnx.relu(self.expand(x))))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "int8"])
def test_masked_layers_are_native_unless_all_are_prepared_for_others(dtype):
  model = Separable(nnx.Rngs(0))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 10, 10, 8)), jnp.float32)
  masks = {
    "expand/kernel": np.random.default_rng(1).random((1, 1, 8, 64)).argsort(2) < 4,
    "depthwise/kernel": np.random.default_rng(2).random((9, 64)).argsort(0).reshape(3, 3, 1, 64)
    < 5,
  }
  for name, mask in masks.items():
    kernel = getattr(model, name.split("/")[0]).kernel
    kernel.set_value(kernel.get_value() * mask)
  condensed = sx.condense_model(model, masks, (x,), dtype=dtype)
  plain = sx.condense_model(model, masks, (x,), dtype=dtype, backend="xla")
  programs = [str(jax.make_jaxpr(lambda x, m=m: m(x))(x)) for m in (condensed, plain)]
  assert [text.count("srigl_depthwise_conv") for text in programs] == [1, 0]
  within = {None: 1e-4, "bfloat16": 2e-2, "int8": 5e-2}[dtype]
  want, got = jax.jit(plain)(x), jax.jit(condensed)(x)
  assert np.abs(want - got).max() < within * np.abs(want).max()
  loss = lambda model: lambda x: (model(x) ** 2).sum()
  want, got = (jax.grad(loss(m))(x) for m in (plain, condensed))
  assert np.abs(want - got).max() < within * np.abs(want).max()
