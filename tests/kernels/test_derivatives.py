"""Forward mode, reverse mode, and one over the other, against the dense layer."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_kernels import condensed_conv, condensed_matmul, prepare
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.format import make_condensed

RNG = np.random.default_rng(0)


def layer(kernel_shape, active, fan_in):
  inputs = int(np.prod(kernel_shape[:-1]))
  indices = np.sort([RNG.permutation(inputs)[:fan_in] for _ in active], axis=1)
  values = RNG.normal(size=indices.shape).astype(np.float32)
  bias = RNG.normal(size=kernel_shape[-1]).astype(np.float32)
  return make_condensed(
    values, indices, active, bias, kernel_shape=kernel_shape, neuron_axes=(len(kernel_shape) - 1,)
  )


def dense_matrix(condensed, values):
  rows = jnp.zeros((condensed.out_features, condensed.in_features))
  return rows.at[condensed.active[:, None], condensed.indices].set(values).T


def check_all_orders(got, want, args):
  """Both functions of `(x, values, bias)` have the same derivatives."""
  tangents = tuple(jnp.cos(x) for x in args)

  @functools.partial(jax.jit, static_argnums=0)
  def derivatives(f):
    loss = lambda *args: (f(*args) ** 2).sum()
    gradient = jax.grad(loss, argnums=(0, 1, 2))
    norm = lambda *args: sum((g**2).sum() for g in gradient(*args))
    first = jax.jvp(f, args, tangents)
    return first, jax.jvp(gradient, args, tangents), jax.grad(norm, argnums=(0, 1, 2))(*args)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-3)
  jax.tree.map(close, derivatives(got), derivatives(want))


@pytest.mark.parametrize(
  "backend",
  ["cpu", *(pytest.param(name, marks=pytest.mark.slow) for name in ("xla", "structured"))],
)
def test_product(backend):
  if not BACKENDS[backend].is_available():
    pytest.skip("the native library is not here")
  condensed = layer((9, 5), [0, 2, 3], 4)
  prepared = prepare(condensed, backend=backend, gradients=True)

  def got(x, values, bias):
    weights = {"values": values, "bias": bias}
    return condensed_matmul(x, prepared.with_weights(weights), activation="gelu")

  want = lambda x, values, bias: jax.nn.gelu(x @ dense_matrix(condensed, values) + bias[None])
  x = jnp.asarray(RNG.normal(size=(2, 9)), jnp.float32)
  check_all_orders(got, want, (x, condensed.values, condensed.bias))


def test_one_example_without_gradients_prepared():
  condensed = layer((9, 5), [0, 2, 3], 4)
  prepared = prepare(condensed, backend="xla")
  f = lambda x: jnp.tanh(condensed_matmul(x, prepared)).sum()
  g = lambda x: jnp.tanh(x @ dense_matrix(condensed, condensed.values) + condensed.bias).sum()
  x = jnp.asarray(RNG.normal(size=9), jnp.float32)
  np.testing.assert_allclose(*(jax.jit(jax.hessian(h))(x) for h in (f, g)), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_convolution():
  condensed = layer((3, 3, 2, 4), [0, 1, 3], 5)

  def got(x, values, bias):
    changed = dataclasses.replace(condensed, values=values, bias=bias)
    return condensed_conv(x, changed, backend="xla", activation="gelu")

  def want(x, values, bias):
    kernel = dense_matrix(condensed, values).reshape(3, 3, 2, 4)
    y = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.gelu(y + bias[None, None, None])

  x = jnp.asarray(RNG.normal(size=(1, 4, 4, 2)), jnp.float32)
  check_all_orders(got, want, (x, condensed.values, condensed.bias))


@pytest.mark.parametrize("recorded", [False, True])
def test_the_precision_asked_for_inside_a_program_is_that_of_all_its_products(recorded):
  condensed = layer((9, 5), [0, 2, 3], 4)
  prepared = prepare(condensed, backend="structured", gradients=True)

  def run(x, weights):
    with jax.default_matmul_precision("highest"):
      loss = lambda *args: condensed_matmul(args[0], prepared.with_weights(args[1])).sum()
      return jax.grad(sx.fuse(loss) if recorded else loss, (0, 1))(x, weights)

  text = jax.jit(run).lower(jnp.ones((2, 9)), prepared.weights).as_text()
  products = [line for line in text.splitlines() if "dot_general" in line]
  assert products and all("precision = [HIGHEST, HIGHEST]" in line for line in products)
