"""Mixing the images of a batch and their labels, on the device: mixup and CutMix.

Images are mixed in pairs of neighbours in the batch. The order of the batch is random, so a
neighbour is as good as any other partner, and a pair stays on one device however many devices
share the batch, if each gets an even number of images. With the same key everywhere, the result
does not depend on the number of devices.
"""

import jax
import jax.numpy as jnp
from jax import Array


def mixup_weights(key: Array, height: int, width: int, *, alpha: float) -> Array:
  """Draws how much of an image stays: the same share everywhere, from Beta(alpha, alpha).

  Returns:
    `[height, width]` float32 in `[0, 1]`.

  Source: arXiv:1710.09412.
  """
  return jnp.full((height, width), jax.random.beta(key, alpha, alpha))


def cutmix_weights(key: Array, height: int, width: int, *, alpha: float) -> Array:
  """Draws how much of an image stays: nothing in a rectangle, everything around it.

  The rectangle has the shape of the image, a share of its area that is `1 - Beta(alpha, alpha)`,
  and its centre anywhere in it; what is outside of the image is cut off.

  Returns:
    `[height, width]` float32, 0 or 1.

  Source: arXiv:1905.04899; sizes and positions are rounded as in torchvision's references.
  """
  share_key, y_key, x_key = jax.random.split(key, 3)
  side = 0.5 * jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha))

  def inside(key, length):
    centre = jax.random.randint(key, (), 0, length)
    half = (side * length).astype(jnp.int32)
    position = jnp.arange(length)
    return (position >= centre - half) & (position < centre + half)

  return 1.0 - (inside(y_key, height)[:, None] & inside(x_key, width)[None, :])


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
  choice_key, weights_key = jax.random.split(key)
  height, width = images.shape[1:3]
  weights = [
    weights_fn(weights_key, height, width, alpha=alpha)
    for weights_fn, alpha in ((mixup_weights, mixup), (cutmix_weights, cutmix))
    if alpha
  ]
  chosen = jnp.stack(weights)[jax.random.randint(choice_key, (), 0, len(weights))]
  return mix(images, targets, chosen)
