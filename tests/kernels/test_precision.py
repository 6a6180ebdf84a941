"""Products of 8 and 16 bits against the rounded numbers, on every target and backend."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import condensed_conv, condensed_matmul, make_condensed, prepare
from srigl_kernels.backends.cpu import library
from srigl_kernels.precision import DTYPES, convert, dequantize, precision_of, round_inputs
from tests.helpers import mostly_slow

# Targets that differ in their kernels, the simplest one first.
ISAS = {
  "bfloat16": ("generic", "avx512", "avx512_bf16", "avx512_fp16"),
  "int8": ("generic", "avx2", "avx512", "avx512_vnni"),
  "int8_weights": ("generic", "avx512"),
}

# (inputs, neurons, active neurons, fan-in): batch sizes
SHAPES = {
  (300, 200, 150, 40): (1, 17, 75),
  (33, 17, 17, 5): (3,),
  (7, 3, 2, 3): (3,),
  (1, 1, 1, 1): (3,),
  (40, 50, 0, 0): (3,),
}
PRECISIONS = (
  ("bfloat16", None),
  ("int8", None),
  ("int8", (-2.0, 1.5)),
  ("int8", (0.0, 2.0)),
  ("int8_weights", None),
)


def layer(num_inputs, num_neurons, num_active, fan_in, kernel_shape=None):
  rng = np.random.default_rng(0)
  columns = [rng.choice(num_inputs, fan_in, replace=False) for _ in range(num_active)]
  sizes = 10.0 ** rng.integers(-3, 3, (num_active, 1))
  return make_condensed(
    jnp.asarray(rng.normal(size=(num_active, fan_in)) * sizes, jnp.float32),
    np.sort(np.array(columns, int).reshape(num_active, fan_in), axis=1),
    np.sort(rng.choice(num_neurons, num_active, replace=False)),
    jnp.asarray(rng.normal(size=num_neurons), jnp.float32),
    kernel_shape=kernel_shape or (num_inputs, num_neurons),
  )


def rows(batch, num_inputs):
  rng = np.random.default_rng(batch)
  return jnp.asarray(rng.normal(size=(batch, num_inputs)), jnp.float32)


def matrix(condensed):
  plain = dequantize(condensed)
  dense = np.zeros((condensed.in_features, condensed.out_features))
  if condensed.num_active:
    dense[np.asarray(plain.indices), np.asarray(plain.active)[:, None]] = np.asarray(plain.values)
  return dense


def assert_product(y, x, condensed):
  """Sums of float32, of inputs that were rounded as the layer says, or (16 bits) were not."""
  w, bias = matrix(condensed), np.asarray(condensed.bias, np.float64)
  rounded = np.asarray(round_inputs(x, condensed), np.float64)
  size = np.abs(np.asarray(x)) @ np.abs(w) + np.abs(rounded) @ np.abs(w) + np.abs(bias)
  allowed = 2**-8 if precision_of(condensed) == "bfloat16" else 2e-6
  assert np.all(np.abs(np.asarray(y) - (rounded @ w + bias)) <= allowed * size + 1e-12)


@pytest.mark.skipif(not library.is_available(), reason="the native library is not built")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_native_products_on_every_target(shape):
  before = library.isa()
  condensed = layer(*shape)
  is_large = shape[0] == 300
  try:
    for dtype, input_range in PRECISIONS if is_large else (("bfloat16", None), ("int8", None)):
      want = convert(condensed, dtype, input_range)
      results = {}
      for isa in ISAS[dtype] if is_large else (before,):
        try:
          library.set_isa(isa)
        except ValueError:
          continue
        prepared = prepare(condensed, backend="cpu", dtype=dtype, input_range=input_range)
        for batch in SHAPES[shape] if input_range is None else (17,):
          x = rows(batch, shape[0])
          y = condensed_matmul(x, prepared)
          assert_product(y, x, want)
          if dtype == "int8":  # integers are summed exactly, whatever multiplies them
            np.testing.assert_array_equal(results.setdefault(batch, y), y, err_msg=isa)
      # Packed for the best target, run on the simplest one.
      library.set_isa("generic")
      assert_product(condensed_matmul(x, prepared), x, want)
  finally:
    library.set_isa(before)


@pytest.mark.skipif(not library.is_available(), reason="the native library is not built")
@pytest.mark.parametrize("dtype", ("bfloat16", "int8"))
def test_patterns_larger_than_a_cache(dtype):
  """More than 2 MB, in groups of an odd number, whose rows are cut in all ways."""
  prepared = prepare(layer(4096, 1970, 1961, 410), backend="cpu", dtype=dtype)
  for batch in (16, 37, 79):
    x = rows(batch, 4096)
    assert_product(condensed_matmul(x, prepared), x, prepared.condensed)


@pytest.mark.parametrize("dtype", mostly_slow(DTYPES[1:], keep=("int8",)))
def test_other_backends_compute_the_same(dtype):
  condensed, x = layer(60, 40, 30, 12), rows(5, 60)
  prepared = prepare(condensed, backend=("xla", "reference"), dtype=dtype)
  for backend in ("xla", "reference"):
    assert_product(condensed_matmul(x, prepared, backend=backend), x, prepared.condensed)


def test_not_a_number_is_not_hidden():
  x = rows(3, 60).at[1, 4].set(jnp.nan).at[2, 4].set(jnp.inf)
  for dtype in ("bfloat16", "int8"):
    y = np.asarray(condensed_matmul(x, prepare(layer(60, 40, 40, 60), dtype=dtype)))
    assert np.isfinite(y[0]).all() and not np.isfinite(y[1:]).any()


@pytest.mark.parametrize("dtype", ("bfloat16", "int8"))
def test_derivatives_are_those_of_the_weights(dtype):
  prepared, x = prepare(layer(60, 40, 30, 12), dtype=dtype), rows(5, 60)
  got = jax.grad(lambda x: condensed_matmul(x, prepared).sum())(x)
  want = jnp.ones((5, 40)) @ matrix(prepared.condensed).T
  np.testing.assert_allclose(got, want, rtol=0.01, atol=1e-3 * np.abs(want).max())


@pytest.mark.parametrize("dtype", mostly_slow(DTYPES[1:], keep=("int8",)))
def test_convolutions(dtype):
  condensed = layer(27, 8, 8, 9, (3, 3, 3, 8))
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 5, 3)), jnp.float32)
  want = condensed_conv(x, prepare(convert(condensed, dtype), backend="reference"))
  got = condensed_conv(x, prepare(condensed, dtype=dtype))
  np.testing.assert_allclose(got, want, rtol=0, atol=2**-6 * np.abs(want).max())
  # Transposed, in sub-pixel form.
  spaced = {"input_dilation": 2, "padding": 2}
  dilated = prepare(convert(condensed, dtype), backend="reference")
  want = condensed_conv(x, dilated, backend="reference", **spaced)
  got = condensed_conv(x, prepare(condensed, dtype=dtype, input_dilation=2), **spaced)
  np.testing.assert_allclose(got, want, rtol=0, atol=2**-6 * np.abs(want).max())


CONVOLUTIONS = (
  # kernel, strides, dilation, padding, channels, fan-in: nearly dense and not
  ((3, 3), 1, (2, 1), ((1, 1), (1, 1)), 24, 25),
  ((3, 2), 2, (1, 2), ((2, 0), (1, 3)), 5, 24),
  ((1, 1), (1, 2), 1, ((0, 0), (0, 0)), 40, 36),
)


@pytest.mark.skipif(not library.is_available(), reason="the native library is not built")
@pytest.mark.parametrize("geometry", CONVOLUTIONS, ids=str)
def test_native_convolutions_on_every_target(geometry):
  kernel, strides, dilation, padding, channels, fan_in = geometry
  kernel_shape = (*kernel, channels, 37)
  condensed = layer(kernel[0] * kernel[1] * channels, 37, 35, fan_in, kernel_shape)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 9, 11, channels)), jnp.float32)
  arguments = {"strides": strides, "padding": padding, "kernel_dilation": dilation}
  run = jax.jit(lambda x, layer: condensed_conv(x, layer, backend="cpu", **arguments))
  before = library.isa()
  try:
    for dtype, bounds in (("float32", None), *PRECISIONS[:4]):
      rounded = convert(condensed, dtype, bounds)
      inputs, clean = np.asarray(round_inputs(x, rounded, 3)), dequantize(rounded)
      plain = dataclasses.replace(clean, values=clean.values.astype(jnp.float32))
      exact = condensed_conv(jnp.asarray(inputs), plain, backend="reference", **arguments)
      for isa in ISAS.get(dtype, ISAS["int8"][:3]):
        try:
          library.set_isa(isa)
        except ValueError:
          continue  # this CPU does not have it
        prepared = prepare(condensed, backend="cpu", dtype=dtype, input_range=bounds)
        got = np.asarray(run(x, prepared))
        allowed = 2**-7 if dtype == "bfloat16" else 1e-5
        scale = np.abs(exact).max(axis=(0, 1, 2))
        assert np.all(np.abs(got - exact) <= allowed * scale), (dtype, bounds, isa)
        spoilt = np.asarray(run(x.at[1, 4, 4:6].set(jnp.nan), prepared))
        assert np.array_equal(spoilt[::2], got[::2]) and np.isnan(spoilt[1]).any()
  finally:
    library.set_isa(before)


def test_weights_survive_a_second_conversion():
  once = convert(layer(60, 40, 30, 12), "int8")
  twice = convert(dequantize(once), "int8")
  np.testing.assert_array_equal(once.values, twice.values)
  assert [precision_of(convert(once, dtype)) for dtype in DTYPES] == list(DTYPES)


def test_what_is_refused():
  condensed = layer(60, 40, 30, 12)
  with pytest.raises(ValueError, match="`dtype` must be one of"):
    prepare(condensed, dtype="int4")
  with pytest.raises(ValueError, match="`input_range` is for dtype='int8'"):
    prepare(condensed, dtype="bfloat16", input_range=(0, 1))
  with pytest.raises(ValueError, match="two finite numbers in order"):
    prepare(condensed, dtype="int8", input_range=(1, 0))
  with pytest.raises(ValueError, match="values may change"):
    prepare(condensed, dtype="int8", gradients=True)
  with pytest.raises(ValueError, match="not finite"):
    prepare(dataclasses.replace(condensed, values=condensed.values * jnp.inf), dtype="int8")
