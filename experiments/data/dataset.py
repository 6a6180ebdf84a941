"""What a data set is to the training loop."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

Preprocess = Callable[[jax.Array], jax.Array]
Augment = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
  """Labelled images held in memory, and how to turn them into batches on the device.

  The training images are meant to be put on the device once; each step then passes nothing but
  the indices of its batch. `N` is the number of images, `B` the batch.

  Attributes:
    name: as in `experiments.data.DATASETS`.
    train_images: `[N, H, W, C]` uint8.
    train_labels: `[N]` int32 in `[0, num_classes)`.
    test_images: `[M, H, W, C]` uint8.
    test_labels: `[M]` int32.
    num_classes: number of classes.
    preprocess_fn: `images -> batch`, `[B, H, W, C]` uint8 to float32, for evaluation.
    augment_fn: `(key, images, indices) -> batch`, gathers `indices` `[B]` from the images
      `[N, H, W, C]` and augments them, for training. Both functions can be jitted.
  """

  name: str
  train_images: np.ndarray
  train_labels: np.ndarray
  test_images: np.ndarray
  test_labels: np.ndarray
  num_classes: int
  preprocess_fn: Preprocess
  augment_fn: Augment

  @property
  def num_train(self) -> int:
    """Number of training images."""
    return len(self.train_labels)

  @property
  def num_test(self) -> int:
    """Number of test images."""
    return len(self.test_labels)

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`(H, W, C)` of one image."""
    height, width, channels = self.train_images.shape[1:]
    return height, width, channels


def scale(images: jax.Array, *, maximum: float = 255.0) -> jax.Array:
  """Maps uint8 images from `[0, maximum]` to float32 in `[0, 1]`."""
  return images.astype(jnp.float32) / maximum


def without_augmentation(preprocess_fn: Preprocess) -> Augment:
  """Makes an `augment_fn` that gathers and preprocesses and does nothing else."""

  def augment_fn(key, images, indices):
    del key
    return preprocess_fn(images[indices])

  return augment_fn
