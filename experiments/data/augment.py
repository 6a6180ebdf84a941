"""Random crops and flips on the device, as one gather.

Computing the source of every pixel and gathering the batch by it reads the resident uint8 images
once, where gathering, padding, slicing and flipping one after the other copy the batch each time.
"""

import jax
import jax.numpy as jnp


def draw_crop_flip(key: jax.Array, batch_size: int, *, padding: int) -> tuple[jax.Array, jax.Array]:
  """Draws the augmentation of each image of a batch.

  Args:
    key: `[]` random key.
    batch_size: number of images, `B`.
    padding: largest shift in either direction.

  Returns:
    `[B, 2]` int32 shifts (down, right) in `[-padding, padding]`, and `[B]` bool, True where the
    image is to be mirrored.
  """
  shift_key, flip_key = jax.random.split(key)
  shifts = jax.random.randint(shift_key, (batch_size, 2), -padding, padding + 1)
  return shifts, jax.random.bernoulli(flip_key, 0.5, (batch_size,))


def gather_crop_flip(
  images: jax.Array, indices: jax.Array, shifts: jax.Array, flips: jax.Array
) -> jax.Array:
  """Gathers images, shifted over their own reflection at the border and then mirrored.

  The result is that of padding by reflection, cropping to the original size, and flipping the
  crop horizontally.

  Args:
    images: `[N, H, W, C]`.
    indices: `[B]` int, which images.
    shifts: `[B, 2]` int (down, right), smaller in absolute value than `H` and `W`.
    flips: `[B]` bool.

  Returns:
    `[B, H, W, C]` of the type of `images`.
  """
  height, width = images.shape[1:3]
  columns = jnp.arange(width)[None, :]
  columns = jnp.where(flips[:, None], width - 1 - columns, columns) + shifts[:, 1:]
  rows = jnp.arange(height)[None, :] + shifts[:, :1]
  return images[
    indices[:, None, None],
    _reflect(rows, height)[:, :, None],
    _reflect(columns, width)[:, None, :],
  ]


def _reflect(positions: jax.Array, size: int) -> jax.Array:
  """Folds positions beyond either border back inside, without repeating the border."""
  return size - 1 - jnp.abs(size - 1 - jnp.abs(positions))
