"""Mixing the images of a batch and their labels, on the device: mixup and CutMix.

Images are mixed in pairs of neighbours in the batch. The order of the batch is random, so a
neighbour is as good as any other partner, and a pair stays on one device however many devices
share the batch, if each gets an even number of images. With the same key everywhere, the result
does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp
from jax import Array


def rectangle(key: Array, share: Array, height: int, width: int) -> Array:
  """Draws a rectangle for CutMix.

  It has the shape of the image and its centre anywhere in it; what is outside is cut off.

  Args:
    key: `[]` random key, for the centre.
    share: `[]` float in `[0, 1]`, of the image's area that stays, were nothing cut off.
    height: of the image.
    width: of the image.

  Returns:
    `[height, width]` bool, True inside.

  Source: arXiv:1905.04899; sizes and positions are rounded as in torchvision's references.
  """
  half_side = 0.5 * jnp.sqrt(1 - share)

  def inside(key, length):
    centre = jax.random.randint(key, (), 0, length)
    half = (half_side * length).astype(jnp.int32)
    position = jnp.arange(length)
    return (position >= centre - half) & (position < centre + half)

  y_key, x_key = jax.random.split(key)
  return inside(y_key, height)[:, None] & inside(x_key, width)[None, :]


def mix(images: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
  """Mixes each image with its neighbour: the first with the second, the third with the fourth.

  Args:
    images: `[B, H, W, C]` float, `B` even.
    targets: `[B, classes]` float.
    weights: `[H, W]` float in `[0, 1]`, how much of an image stays.

  Returns:
    Images and targets of the same shapes; targets are mixed by the mean weight.

  Raises:
    ValueError: if `B` is odd.
  """
  if images.shape[0] % 2:
    raise ValueError(
      f"Images are mixed in pairs, but a device got {images.shape[0]} of them: give a batch size "
      "that is a multiple of twice the number of devices."
    )

  def mixed(x, weight):
    partners = x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)
    return weight * x + (1 - weight) * partners

  return mixed(images, weights[None, :, :, None]), mixed(targets, weights.mean()[None, None])


def random_mix(
  key: Array, images: Array, targets: Array, *, mixup: float, cutmix: float
) -> tuple[Array, Array]:
  """Mixes a batch by mixup or CutMix, at equal odds for the batch as a whole.

  Mixup (arXiv:1710.09412) keeps the same share of every pixel, CutMix all of most and nothing of
  those in a rectangle. The share that stays is drawn from Beta(alpha, alpha).

  Args:
    key: `[]` random key; the same on every device that has a share of the batch.
    images: `[B, H, W, C]` float, `B` even.
    targets: `[B, classes]` float.
    mixup: alpha of mixup; 0: CutMix alone.
    cutmix: alpha of CutMix; 0: mixup alone. Without either nothing is changed.

  Returns:
    Images and targets of the same shapes.

  Raises:
    ValueError: if `B` is odd and there is something to mix.
  """
  if not mixup and not cutmix:
    return images, targets
  choice_key, share_key, place_key = jax.random.split(key, 3)
  odds_of_cutmix = (cutmix > 0) / ((cutmix > 0) + (mixup > 0))
  is_cutmix = jax.random.bernoulli(choice_key, odds_of_cutmix)
  alpha = jnp.where(is_cutmix, cutmix, mixup)
  share = jax.random.beta(share_key, alpha, alpha)
  cut_out = rectangle(place_key, share, *images.shape[1:3])
  return mix(images, targets, jnp.where(is_cutmix, 1.0 - cut_out, share))
