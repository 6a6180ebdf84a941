"""The handwritten digits that scikit-learn carries with it: 1,797 images, nothing to download."""

import functools

import numpy as np

from experiments.data.dataset import Dataset, scale, without_augmentation

# Every run is tested on the same images, whatever its own seed.
_SPLIT_SEED = 0
_TEST_SHARE = 0.25


def load_digits(*, data_dir: str | None = None) -> Dataset:
  """Loads the 8×8 digits, a quarter of each class held out for testing, without augmentation.

  Args:
    data_dir: unused, the images are part of scikit-learn.
  """
  # Imported here, as it takes a second and the other data sets do without it.
  import sklearn.datasets
  import sklearn.model_selection

  del data_dir
  digits = sklearn.datasets.load_digits()
  train_images, test_images, train_labels, test_labels = sklearn.model_selection.train_test_split(
    digits.images[..., None].astype(np.uint8),
    digits.target.astype(np.int32),
    test_size=_TEST_SHARE,
    random_state=_SPLIT_SEED,
    stratify=digits.target,
  )
  # Pixels count the dark points of a 4×4 cell of the original scan.
  preprocess_fn = functools.partial(scale, maximum=16.0)
  return Dataset(
    name="digits",
    train_images=train_images,
    train_labels=train_labels,
    test_images=test_images,
    test_labels=test_labels,
    num_classes=10,
    preprocess_fn=preprocess_fn,
    augment_fn=without_augmentation(preprocess_fn),
  )
