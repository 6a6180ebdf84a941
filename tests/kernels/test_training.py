"""The product of a layer in training and its gradients, against the dense layer's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import training
from srigl_kernels.backends import xla
from srigl_kernels.training import sparse_linear
from tests.srigl_jax.condensed_training.layers import random_layer


@pytest.mark.parametrize("temporary_bytes", [16 * 2**20, 4000])
@pytest.mark.parametrize(("num_active", "rows"), [(11, 3), (5, 3), (5, 70)])
def test_product_and_gradients_are_the_dense_layers(monkeypatch, temporary_bytes, num_active, rows):
  monkeypatch.setattr(xla, "TEMPORARY_BYTES", temporary_bytes)
  rng = np.random.default_rng(0)
  values, pattern, weights, mask = random_layer(rng, 24, 11, 60, num_active)
  x, bias = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, rows, 24), (11,)))
  probe = jnp.zeros((2 * rows, 24)), jnp.zeros((2 * rows, 11))

  def loss(x, values, bias, probe):
    y = sparse_linear(x, values, pattern, bias, probe=probe)
    return jnp.sum(jnp.sin(y)), y

  def dense_loss(x, weights, bias):
    y = x @ weights + bias[None, None]
    return jnp.sum(jnp.sin(y)), y

  grad = lambda f, n: jax.jit(jax.grad(f, argnums=tuple(range(n)), has_aux=True))
  (dx, dvalues, dbias, (px, pg)), y = grad(loss, 4)(x, values, bias, probe)
  (dx_dense, dweights, dbias_dense), y_dense = grad(dense_loss, 3)(x, jnp.asarray(weights), bias)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
  close(y, y_dense)
  close(dx, dx_dense)
  close(dbias, dbias_dense)
  close(dvalues[: mask.sum()], np.asarray(dweights).T[mask.T])
  assert not np.any(dvalues[mask.sum() :])
  np.testing.assert_array_equal(px, x.reshape(-1, 24))
  close(px.T @ pg, dweights)


def test_memory_of_the_portable_product_is_bounded():
  rng = np.random.default_rng(0)
  values, pattern, *_ = random_layer(rng, 4096, 2048, 2048 * 4)
  x = jnp.zeros((8, 4096))
  for function, arguments in (
    (training.forward, (x, values, pattern)),
    (training.input_gradient, (jnp.zeros((8, 2048)), values, pattern)),
    (training.values_gradient, (jnp.zeros((8, 2048)), x, pattern)),
  ):
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 1.2 * xla.TEMPORARY_BYTES, function


def test_bfloat16_inputs():
  rng = np.random.default_rng(1)
  values, pattern, weights, _ = random_layer(rng, 24, 11, 60)
  x = jnp.asarray(rng.normal(size=(4, 24)), jnp.bfloat16)
  y, pull = jax.vjp(lambda x, v: sparse_linear(x, v, pattern), x, values)
  dx, dvalues = pull(jnp.ones_like(y))
  assert (y.dtype, dx.dtype, dvalues.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)
  np.testing.assert_allclose(np.float32(y), np.float32(x) @ weights, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
  ("name", "message"),
  [("x", "x must be"), ("values", "different layers"), ("bias", "bias must be")],
)
def test_wrong_shapes_are_refused(name, message):
  values, pattern, *_ = random_layer(np.random.default_rng(0), 24, 11, 60)
  arguments = {"x": jnp.zeros((2, 24)), "values": values, "bias": jnp.zeros(11)}
  arguments[name] = jnp.zeros((2, 7) if name == "x" else 7)
  with pytest.raises(ValueError, match=message):
    sparse_linear(arguments["x"], arguments["values"], pattern, arguments["bias"])
