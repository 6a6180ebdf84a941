"""Convolutions of activations in tiles give what those of arrays give, on every CPU target."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels.backends.cpu import conv, library, matmul, tiled_conv
from srigl_kernels.conv_geometry import Geometry
from tests.kernels.cpu_targets import targets

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)
RNG = np.random.default_rng(5)

# Size of the images, channels, neurons, geometry.
CALLS = {
  "pointwise": ((9, 9), 100, 70, tiled_conv.POINTWISE),
  "pointwise of whole tiles": ((8, 16), 17, 33, tiled_conv.POINTWISE),
  "strided": ((15, 14), 30, 65, Geometry((1, 1), (2, 2), (1, 1), ((0, 0), (0, 0)), 1)),
  "patches": ((10, 13), 9, 20, Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1)),
  "strided patches": ((28, 28), 5, 16, Geometry((3, 3), (2, 2), (1, 1), ((1, 1), (1, 1)), 1)),
  "dilated": ((12, 7), 4, 8, Geometry((3, 2), (1, 3), (2, 1), ((2, 0), (0, 1)), 1)),
  "few pixels": ((3, 3), 40, 50, Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1)),
}


def to_tiles(images):
  """The definition: 64 pixels make a tile `[C, 64]`, the last one is 16, 32 or 64 wide."""
  *leading, height, width, channels = images.shape
  rows = images.reshape(-1, height * width, channels)
  parts = []
  for first in range(0, height * width, 64):
    tile = rows[:, first : first + 64].swapaxes(1, 2)
    last = next(n for n in (16, 32, 64) if n >= tile.shape[2])
    tile = np.pad(tile, ((0, 0), (0, 0), (0, last - tile.shape[2])), constant_values=np.nan)
    parts.append(tile.reshape(len(rows), -1))
  data = np.concatenate(parts, axis=1).reshape(*leading, -1)
  return tiled_conv.Tiled(jnp.asarray(data), (height, width, channels))


def from_tiles(tiled):
  height, width, channels = tiled.size
  data, pixels = np.asarray(tiled.data), height * width
  rows = data.reshape(-1, data.shape[-1])
  images = np.zeros((len(rows), pixels, channels), np.float32)
  for first in range(0, pixels, 64):
    count = min(64, pixels - first)
    last = next(n for n in (16, 32, 64) if n >= count)
    tile = rows[:, first * channels : (first + last) * channels].reshape(-1, channels, last)
    images[:, first : first + 64] = tile[..., :count].swapaxes(1, 2)
  return images.reshape(*data.shape[:-1], *tiled.size)


def case(name, dtype):
  size, channels, neurons, geometry = CALLS[name]
  num_inputs = int(np.prod(geometry.kernel_size)) * channels
  active = np.sort(RNG.choice(neurons, neurons - 3, replace=False)).astype(np.int32)
  order = np.argsort(RNG.random((len(active), num_inputs)), axis=1)
  indices = np.sort(order[:, : num_inputs // 2], axis=1).astype(np.int32)
  values = np.asarray(jnp.asarray(RNG.normal(size=indices.shape), dtype))
  packed = matmul.pack(values, indices, active, num_inputs, neurons)
  x = RNG.normal(size=(2, *size, channels)).astype(np.float32)
  residual = RNG.normal(size=(2, *geometry.output_size(size), neurons)).astype(np.float32)
  return x, packed, jnp.asarray(RNG.normal(size=neurons), jnp.float32), geometry, residual


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("name", CALLS)
def test_equals_the_convolution_of_arrays(isa, name, dtype):
  x, packed, bias, geometry, residual = case(name, dtype)
  for activation, added in itertools.product((None, "relu", "gelu"), (None, residual)):
    want = conv.conv(jnp.asarray(x), packed, bias, activation, geometry, added)
    for x_tiled, tiled in itertools.product((False, True), repeat=2):
      for added_tiled in {tiled, True}:
        given = to_tiles(x) if x_tiled else jnp.asarray(x)
        summand = to_tiles(added) if added is not None and added_tiled else added
        y = tiled_conv.conv(given, packed, bias, activation, geometry, summand, tiled)
        got = from_tiles(y) if tiled else y
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)


def test_under_vmap():
  x, packed, bias, geometry, residual = case("patches", "float32")
  call = lambda x, residual: tiled_conv.conv(x, packed, bias, None, geometry, residual, True)
  y = jax.vmap(call)(to_tiles(x), to_tiles(residual))
  want = call(to_tiles(x), to_tiles(residual))
  np.testing.assert_array_equal(from_tiles(y), from_tiles(want))


def test_a_residual_of_another_form_is_refused():
  x, packed, bias, geometry, residual = case("patches", "float32")
  with pytest.raises(ValueError, match="residual in tiles"):
    tiled_conv.conv(x, packed, bias, None, geometry, residual, True)


@pytest.mark.parametrize("isa", targets()[-1:])
def test_buffers_of_another_size_are_refused(isa):
  x, packed, bias, geometry, _ = case("patches", "float32")
  tiled = to_tiles(x)
  shorter = tiled_conv.Tiled(tiled.data[..., :-16], tiled.size)
  with pytest.raises(Exception, match="shapes that their sizes tell"):
    jax.block_until_ready(tiled_conv.conv(shorter, packed, bias, None, geometry, None, False))
