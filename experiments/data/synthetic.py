"""Images that are a pattern of their class plus noise: learnable, of any size, for tests."""

import math

import numpy as np

from experiments.data.dataset import Dataset, scale, without_augmentation

_MAX_SIZE = 2**28


def load_synthetic(
  *,
  data_dir: str | None = None,
  image_shape: tuple[int, int, int] = (8, 8, 1),
  num_classes: int = 10,
  num_train: int = 512,
  num_test: int = 128,
  noise: float = 0.2,
  seed: int = 0,
) -> Dataset:
  """Generates the data set; the same arguments give the same images.

  Args:
    data_dir: unused, nothing is read.
    image_shape: `(H, W, C)`.
    num_classes: number of patterns.
    num_train: number of training images.
    num_test: number of test images.
    noise: standard deviation of the noise; the patterns lie in `[0, 1]`.
    seed: of patterns, noise and labels.

  Raises:
    ValueError: if there is none of something, or more than 2**28 numbers in all.
  """
  del data_dir
  counts = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test}
  for name, value in counts.items():
    if value < 1:
      raise ValueError(f"{name} is {value}; it must be 1 or more.")
  size = math.prod(image_shape) * sum(counts.values())
  if size > _MAX_SIZE:
    raise ValueError(
      f"{num_train} and {num_test} images of shape {tuple(image_shape)} are {size:.3g} numbers; at "
      f"most {_MAX_SIZE} are generated."
    )
  generator = np.random.Generator(np.random.Philox(seed))
  patterns = generator.random((num_classes, *image_shape))

  def split(num_images):
    labels = generator.permutation(np.arange(num_images, dtype=np.int32) % num_classes)
    images = patterns[labels] + noise * generator.standard_normal((num_images, *image_shape))
    return np.rint(255 * images.clip(0, 1)).astype(np.uint8), labels

  train_images, train_labels = split(num_train)
  test_images, test_labels = split(num_test)
  return Dataset(
    name="synthetic",
    train_images=train_images,
    train_labels=train_labels,
    test_images=test_images,
    test_labels=test_labels,
    num_classes=num_classes,
    preprocess_fn=scale,
    augment_fn=without_augmentation(scale),
  )
