"""A validation part of the training images, on which settings are chosen."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.data.dataset import Dataset
from experiments.data.stream import ImageStream

_SEED = 20230503  # of the split: one and the same for all runs, whatever their seed


def hold_out(data: Dataset | ImageStream, fraction: float) -> Dataset:
  """The data set with a part of its training images in place of its test images.

  What is chosen by the accuracy on that part (a learning rate, γ_sal) leaves the test images to be
  the judge of what was chosen. The part is drawn once, the same number of each class, and does not
  depend on the seed of a run.

  Args:
    data: images in memory.
    fraction: of each class, to be held out; the nearest number of images, one at least.

  Returns:
    A data set whose training images are the others, in their order.

  Raises:
    ValueError: if the fraction is not between 0 and 1, the images are not in memory, or a class has
      too few of them to be trained on and tested.
  """
  if not 0 < fraction < 1:
    raise ValueError(
      f"config.data.validation_fraction is {fraction}; it must be 0 (test on the test images) or "
      "lie between 0 and 1."
    )
  if not isinstance(data, Dataset):
    raise ValueError(
      f"config.data.validation_fraction is {fraction}, but the images of {data.name!r} are read "
      "from disk as they are needed, and the training images are augmented there: set it to 0, or "
      "take a data set that is held in memory."
    )
  generator = np.random.default_rng(_SEED)
  held = np.zeros(data.num_train, bool)
  for label in range(data.num_classes):
    (of_class,) = np.nonzero(data.train_labels == label)
    if not len(of_class):
      continue
    count = max(1, round(fraction * len(of_class)))
    if count == len(of_class):
      raise ValueError(
        f"config.data.validation_fraction is {fraction}: of the {len(of_class)} training images of "
        f"class {label} none would be left. Hold out fewer."
      )
    held[generator.permutation(of_class)[:count]] = True
  return dataclasses.replace(
    data,
    train_images=data.train_images[~held],
    train_labels=data.train_labels[~held],
    test_images=data.train_images[held],
    test_labels=data.train_labels[held],
  )


def tested_on(settings: Mapping[str, Any]) -> str:
  """What the accuracy of a run is of, in words, by the `data` section of its config."""
  fraction = settings.get("validation_fraction", 0.0)
  return f"held-out {100 * fraction:g} % of the training images" if fraction else "test images"
