"""Max-poolings of images in tiles give what those of arrays give, on every CPU target."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import pooling
from srigl_kernels.backends.cpu import library, tiled_max_pool
from srigl_kernels.conv_geometry import Geometry
from tests.kernels.backends.test_tiled_conv import from_tiles, to_tiles

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)


def geometry(window, strides, padding=((0, 0), (0, 0)), dilation=(1, 1)):
  return Geometry(window, strides, dilation, padding, 1)


# Size of the images, channels, geometry.
CALLS = {
  "ResNet's": ((30, 28), 40, geometry((3, 3), (2, 2), ((1, 1), (1, 1)))),
  "without padding": ((16, 16), 7, geometry((2, 2), (2, 2))),
  "overlapping": ((9, 21), 33, geometry((3, 2), (1, 1), ((1, 1), (0, 1)))),
  "a line": ((1, 50), 3, geometry((1, 5), (1, 3), ((0, 0), (2, 2)))),
  "a column": ((70, 1), 5, geometry((4, 1), (1, 1))),
  "cut off": ((12, 12), 4, geometry((3, 3), (2, 1), ((-1, 2), (0, -2)))),
  "padding alone": ((4, 4), 2, geometry((2, 2), (1, 1), ((3, 0), (0, 3)))),
}


def images(name, seed=0):
  size, channels, how = CALLS[name]
  x = np.random.default_rng(seed).normal(size=(2, *size, channels)).astype(np.float32)
  return x, how


def pool(x, how):
  return from_tiles(tiled_max_pool.max_pool(to_tiles(x), how))


def expected(x, how):
  wide = (1, *how.kernel_size, 1), (1, *how.strides, 1), ((0, 0), *how.padding, (0, 0))
  return np.asarray(pooling.max_pool(jnp.asarray(x), jnp.float32(-jnp.inf), *wide))


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_pooling_of_arrays(isa, name):
  x, how = images(name)
  np.testing.assert_array_equal(pool(x, how), expected(x, how))


def test_a_nan_is_the_largest(isa):
  x, how = images("ResNet's")
  x[np.random.default_rng(1).random(x.shape) < 0.05] = np.nan
  y = pool(x, how)
  assert np.isnan(y).any() and not np.isnan(y).all()
  np.testing.assert_array_equal(y, expected(x, how))


def test_under_vmap_it_is_one_call():
  x, how = images("overlapping")
  one = lambda images: tiled_max_pool.max_pool(images, how)
  each = jax.vmap(one)(to_tiles(x[:, None]))
  np.testing.assert_array_equal(from_tiles(each)[:, 0], expected(x, how))
  assert str(jax.make_jaxpr(jax.vmap(one))(to_tiles(x[:, None]))).count("ffi_call") == 1


@pytest.mark.parametrize(
  "size, how, why",
  (
    ((8, 8, 2), geometry((9, 8), (1, 1), ((4, 4), (4, 4))), "more than 64"),
    ((8, 8, 2), geometry((2, 2), (1, 1), dilation=(2, 1)), "dilated"),
    ((8, 8, 2), geometry((9, 2), (1, 1)), "empty"),
    ((40, 30000, 1), geometry((3, 3), (2, 2)), "too long"),
  ),
)
def test_what_it_does_not_take(size, how, why):
  assert why in tiled_max_pool.why_not(size, how)
  tiled = tiled_max_pool.Tiled(jnp.zeros((1, tiled_max_pool.image_floats(size))), size)
  with pytest.raises(ValueError, match=why):
    tiled_max_pool.max_pool(tiled, how)


@pytest.mark.parametrize(
  "size, how",
  (
    ((600, 60, 1), geometry((8, 8), (8, 8))),
    ((3, 4000, 1), geometry((3, 3), (2, 2))),
    ((5000, 2, 3), geometry((60, 1), (9, 1))),
  ),
)
def test_large_windows_and_lines_that_it_takes(size, how):
  """What `why_not` lets through, the kernel computes."""
  assert not tiled_max_pool.why_not(size, how)
  x = np.random.default_rng(2).normal(size=(1, *size)).astype(np.float32)
  np.testing.assert_array_equal(pool(x, how), expected(x, how))
