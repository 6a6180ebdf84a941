"""Native depthwise convolutions against the definition, in float64, on every CPU target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels.backends.cpu import depthwise, library
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.epilogue import ACTIVATIONS

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)

# Shape of x; kernel size, strides, dilation, padding.
CONVOLUTIONS = {
  "same": ((2, 9, 11, 20), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
  "wide": ((1, 14, 14, 72), (5, 5), (2, 2), (1, 1), ((2, 2), (2, 2))),
  "small": ((1, 3, 2, 40), (5, 5), (1, 1), (1, 1), ((2, 2), (2, 2))),
  "few channels": ((2, 8, 30, 3), (3, 2), (1, 3), (1, 1), ((0, 1), (1, 0))),
  "dilated": ((1, 12, 20, 33), (3, 3), (1, 2), (2, 3), ((4, 0), (1, 5))),
  "cut": ((2, 9, 10, 16), (2, 3), (1, 1), (1, 1), ((-2, 1), (3, -1))),
  "padding alone": ((1, 4, 4, 17), (2, 2), (3, 3), (1, 1), ((6, 6), (5, 7))),
  "many lines": ((5, 20, 17, 100), (1, 7), (1, 1), (1, 1), ((0, 0), (3, 3))),
  "no image": ((0, 5, 5, 8), (3, 3), (1, 1), (1, 1), ((1, 1), (1, 1))),
  "no output": ((2, 2, 2, 8), (3, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
}


def case(name, seed=0):
  shape, size, strides, dilation, padding = CONVOLUTIONS[name]
  geometry = Geometry(size, strides, dilation, padding, shape[-1])
  rng = np.random.default_rng(seed)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  x, kernel, bias = draw(*shape), draw(*size, 1, shape[-1]), draw(shape[-1])
  residual = draw(shape[0], *geometry.output_size(shape[1:3]), shape[-1])
  return geometry, x, kernel, bias, residual


def definition(geometry, x, kernel):
  """The sums in float64, tap by tap."""
  x, kernel = np.asarray(x, float), np.asarray(kernel, float)
  size = geometry.output_size(x.shape[1:3])
  pads = [(max(a, 0), max(b, 0)) for a, b in geometry.padding]
  cut = [slice(max(-a, 0), min(b, 0) or None) for a, b in geometry.padding]
  padded = np.pad(x, [(0, 0), *pads, (0, 0)])[:, cut[0], cut[1]]
  sums = np.zeros((x.shape[0], *size, x.shape[-1]))
  for ky, kx in np.ndindex(*geometry.kernel_size):
    starts = np.multiply((ky, kx), geometry.dilation)
    rows, columns = (
      a + s * np.arange(n) for a, s, n in zip(starts, geometry.strides, size, strict=True)
    )
    sums += padded[:, rows[:, None], columns] * kernel[ky, kx, 0]
  return sums


conv = jax.jit(depthwise.conv, static_argnums=(4, 5))


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_equals_the_definition(isa, name):
  geometry, x, kernel, bias, residual = case(name)
  want = definition(geometry, x, kernel)
  within = {"rtol": 1e-5, "atol": 1e-5}
  np.testing.assert_allclose(conv(x, kernel, None, None, None, geometry), want, **within)
  want = np.maximum(want + np.asarray(bias, float) + np.asarray(residual, float), 0)
  got = conv(x, kernel, bias, residual, "relu", geometry)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, **within)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_those_of_jax(isa, activation):
  geometry, x, kernel, bias, _ = case("wide")
  sums = definition(geometry, x, kernel) + np.asarray(bias)
  want = ACTIVATIONS[activation](jnp.asarray(sums, jnp.float32))
  got = conv(x, kernel, bias, None, activation, geometry)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_images_do_not_know_of_each_other_nor_of_the_threads(isa):
  geometry, x, kernel, bias, residual = case("many lines")
  y = conv(x, kernel, bias, residual, "silu", geometry)
  for i in range(x.shape[0]):
    one = conv(x[i : i + 1], kernel, bias, residual[i : i + 1], "silu", geometry)
    np.testing.assert_array_equal(one, y[i : i + 1])


def test_vmap_is_one_call():
  geometry, x, kernel, bias, residual = case("same")
  some, rest = jnp.stack([x, 2 * x, -x]), jnp.stack([residual] * 3)
  run = lambda x, residual: depthwise.conv(x, kernel, bias, residual, None, geometry)
  mapped = jax.jit(jax.vmap(run))
  assert str(jax.make_jaxpr(mapped)(some, rest)).count("srigl_depthwise_conv") == 1
  np.testing.assert_array_equal(mapped(some, rest), jnp.stack([*map(run, some, rest)]))
  kernels = jnp.stack([kernel, -kernel])
  each = jax.jit(jax.vmap(lambda kernel: depthwise.conv(x, kernel, bias, None, None, geometry)))
  np.testing.assert_array_equal(each(kernels)[0], run(x, None))


def test_what_it_does_not_take():
  geometry, x, kernel, bias, _ = case("same")
  refused = (
    (x.astype(jnp.bfloat16), kernel, None, geometry, "float32"),
    (x[0], kernel, None, geometry, "two"),
    (x, jnp.repeat(kernel, 2, axis=-1), None, geometry, "channel of its own"),
    (x, kernel, None, geometry._replace(groups=1), "channel of its own"),
    (x, kernel, "tanh", geometry, "activation"),
  )
  for x_, kernel_, activation, geometry_, message in refused:
    with pytest.raises(ValueError, match=message):
      depthwise.conv(x_, kernel_, bias, None, activation, geometry_)
