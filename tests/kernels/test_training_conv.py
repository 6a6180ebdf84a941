"""The convolution of a layer in training and its gradients, against the dense convolution's."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import srigl_kernels as sk
from srigl_kernels import training_conv
from srigl_kernels.backends import xla
from srigl_kernels.backends.cpu import library
from srigl_kernels.backends.cpu import training as native_linear
from tests.srigl_jax.condensed_training.layers import random_layer

# Image, kernel, arguments; two, one and three spatial axes.
CASES = (
  ((9, 8), (3, 3), {}),
  ((9, 8), (3, 2), {"strides": (2, 3), "padding": ((1, 2), (0, 1)), "kernel_dilation": (2, 1)}),
  ((7, 6), (1, 1), {"strides": 2}),
  ((6, 7), (3, 3), {"padding": "CIRCULAR", "input_dilation": (1, 2)}),
  ((11,), (4,), {"padding": "CAUSAL", "strides": 2}),
  ((4, 3, 5), (2, 3, 1), {"padding": "VALID"}),
)
CHANNELS, NEURONS = 5, 7


@pytest.mark.parametrize("way", ["native", "blocks", "dense"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_product_and_gradients_are_the_dense_layers(monkeypatch, way, case):
  if way == "native" and not native_linear.is_available():
    pytest.skip("needs the native kernels")
  if way == "blocks":
    monkeypatch.setattr(native_linear, "is_available", lambda: False)
    monkeypatch.setattr(xla, "TEMPORARY_BYTES", 4000)
  if way == "dense":
    monkeypatch.setattr(training_conv, "_DENSE_FROM", 0)
    monkeypatch.setattr(training_conv, "_DENSE_GRADIENT_FROM", 0)
  size, window, arguments = case
  rng = np.random.default_rng(0)
  num_inputs = CHANNELS * int(np.prod(window))
  values, pattern, weights, mask = random_layer(
    rng, num_inputs, NEURONS, NEURONS * num_inputs // 2, num_active=6
  )
  pattern = sk.Pattern(
    pattern.indices, pattern.active, pattern.sizes, (*window, CHANNELS, NEURONS), (len(size) + 1,)
  )
  x, bias = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((2, *size, CHANNELS), NEURONS))
  probe = sk.conv_probe(x, pattern, **arguments)

  @jax.jit
  def run(x, values, bias, probe):
    def loss(x, values, bias, probe):
      y = sk.sparse_conv(x, values, pattern, bias, probe=probe, **arguments)
      return jnp.sum(jnp.sin(y)), y

    return jax.grad(loss, argnums=(0, 1, 2, 3), has_aux=True)(x, values, bias, probe)

  @jax.jit
  def run_dense(x, weights, bias):
    def loss(x, weights, bias):
      images, geometry = training_conv.resolve(
        x,
        pattern,
        **{"strides": 1, "padding": "SAME", "input_dilation": 1, "kernel_dilation": 1, **arguments},
        feature_group_count=1,
      )
      y = training_conv.dense.convolve(images, weights, geometry)
      y += bias.reshape((1,) * (y.ndim - 1) + (-1,))
      return jnp.sum(jnp.sin(y)), y

    return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, weights, bias)

  (dx, dvalues, dbias, signals), y = result = run(x, values, bias, probe)
  (dx_dense, dweights, dbias_dense), y_dense = run_dense(x, jnp.asarray(weights), bias)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  if way == "native":  # the same program on every CPU target of the machine
    isa = library.isa()
    for other in ("generic", "avx2"):
      with contextlib.suppress(ValueError):
        library.set_isa(other)
        jax.tree.map(close, run(x, values, bias, probe), result)
    library.set_isa(isa)
  close(y, y_dense)
  close(dx, dx_dense)
  close(dbias, dbias_dense)
  close(dvalues[: mask.sum()], np.asarray(dweights).T[mask.T])
  assert not np.any(dvalues[mask.sum() :])
  gradient = training_conv.kernel_gradient(signals.x, signals.g[..., 2:4], signals.geometry)
  close(gradient, dweights[:, 2:4])


def test_as_lax_has_it_in_bfloat16_and_under_vmap():
  rng = np.random.default_rng(1)
  values, pattern, weights, _ = random_layer(rng, 3 * 3 * 4, 6, 60)
  pattern = sk.Pattern(pattern.indices, pattern.active, pattern.sizes, (3, 3, 4, 6), (3,))
  x = jnp.asarray(rng.normal(size=(2, 2, 5, 5, 4)), jnp.bfloat16)
  y, pull = jax.vjp(lambda x: jax.vmap(lambda x: sk.sparse_conv(x, values, pattern))(x), x)
  (dx,) = pull(y)
  assert y.dtype == dx.dtype == jnp.bfloat16
  kernel = jnp.asarray(weights).reshape(3, 3, 4, 6)
  axes = ("NHWC", "HWIO", "NHWC")
  flat = x.astype(jnp.float32).reshape(-1, 5, 5, 4)
  want = lax.conv_general_dilated(flat, kernel, (1, 1), "SAME", dimension_numbers=axes)
  np.testing.assert_allclose(np.float32(y).reshape(want.shape), want, rtol=2e-2, atol=2e-2)


def test_memory_is_bounded():
  rng = np.random.default_rng(0)
  values, pattern, *_ = random_layer(rng, 9 * 64, 64, 64 * 60)
  pattern = sk.Pattern(pattern.indices, pattern.active, pattern.sizes, (3, 3, 64, 64), (3,))
  x = jnp.zeros((16, 32, 32, 64))
  geometry = sk.conv_probe(jax.ShapeDtypeStruct((1, 4, 4, 64), x.dtype), pattern).geometry
  for function, arguments in (
    (training_conv.forward, (x, values, pattern, geometry)),
    (training_conv.input_gradient, (x, values, pattern, geometry, (32, 32))),
    (training_conv.values_gradient, (x, x, pattern, geometry)),
  ):
    static = tuple(i for i, a in enumerate(arguments) if isinstance(a, tuple))
    compiled = jax.jit(function, static_argnums=static).lower(*arguments).compile()
    # XLA may hold the images once more in another order; their patches would be 9 times as much.
    limit = 1.2 * xla.TEMPORARY_BYTES + 2 * x.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < limit, function


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("x", jnp.zeros((2, 5, 5, 3)), "4 channels"),
    ("values", jnp.zeros(7), "different layers"),
    ("bias", jnp.zeros(5), "bias must be"),
    ("strides", 0, "`strides`"),
    ("probe", "other", "another convolution"),
  ],
)
def test_wrong_arguments_are_refused(name, value, message):
  values, pattern, *_ = random_layer(np.random.default_rng(0), 36, 6, 60)
  pattern = sk.Pattern(pattern.indices, pattern.active, pattern.sizes, (3, 3, 4, 6), (3,))
  arguments = {"x": jnp.zeros((2, 5, 5, 4)), "values": values, "pattern": pattern}
  if name == "probe":
    value = sk.conv_probe(arguments["x"], pattern, padding="VALID")
  with pytest.raises(ValueError, match=message):
    sk.sparse_conv(**{**arguments, name: value})
