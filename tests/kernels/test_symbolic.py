"""Programs of `jax.export` for any batch size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from srigl_kernels import BACKENDS, condensed_conv, condensed_matmul, make_condensed, prepare

NATIVE = ("matmul", "conv")


def layer(*kernel_shape, fan_in=4):
  """Groups of 16 neurons that share their inputs; the last ones are ablated."""
  rng = np.random.default_rng(0)
  inputs, active = int(np.prod(kernel_shape[:-1])), kernel_shape[-1] - 8
  groups = rng.random((-(-active // 16), inputs)).argsort(1)[:, :fan_in]
  indices = np.sort(np.repeat(groups, 16, axis=0)[:active], axis=1)
  values = rng.normal(size=indices.shape).astype(np.float32)
  bias = np.ones(kernel_shape[-1], np.float32)
  return make_condensed(values, indices, np.arange(active), bias, kernel_shape=kernel_shape)


def check(function, shape, *sizes):
  """Exports a function of an array with symbolic sizes, and calls what is exported."""
  checks = [export.DisabledSafetyCheck.custom_call(f"srigl_condensed_{name}") for name in NATIVE]
  x = jax.ShapeDtypeStruct(export.symbolic_shape(shape), jnp.float32)
  exported = export.export(jax.jit(function), disabled_checks=checks)(x)
  for size in sizes:
    x = np.random.default_rng(1).normal(size=size).astype(np.float32)
    np.testing.assert_allclose(exported.call(x), function(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "backend", ["auto", "cpu", "dense", "grouped", "reference", "structured", "xla"]
)
def test_any_batch_size(backend):
  if backend == "cpu" and not BACKENDS[backend].is_available():
    pytest.skip("the native kernels are not installed")
  linear = prepare(layer(12, 40), backend=backend)
  check(lambda x: condensed_matmul(x, linear), "a, b, 12", (3, 100, 12))
  conv = prepare(layer(3, 3, 2, 40), backend=backend)
  check(lambda x: condensed_conv(x, conv, activation="relu"), "b, h, 5, 2", (2, 4, 5, 2))


def test_gradients_at_any_batch_size():
  linear = prepare(layer(12, 40), backend="xla", gradients=True)
  loss = lambda x: lambda w: (condensed_matmul(x, linear.with_weights(w)) ** 2).mean()
  check(lambda x: jax.grad(loss(x))(linear.weights)["values"], "b, 12", (3, 12))
