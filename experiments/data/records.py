"""Images of a data set on disk, one by one and in any order."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from experiments.data import tfds_folder
from experiments.data.crops import decode
from experiments.data.record_rng import Draw


class Encoded(NamedTuple):
  """One record.

  Attributes:
    image: the bytes of an image file.
    label: in `[0, num_classes)`.
    name: the file's name, for messages.
  """

  image: bytes
  label: int
  name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The records of a split as they are in its files.

  Attributes:
    source: a data source of TensorFlow Datasets that leaves images encoded.
    split: its name, for messages.
    folder: where the files are, for messages.
  """

  source: Any
  split: str
  folder: Path

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, record: int) -> Encoded:
    try:
      example = self.source[record]
      return Encoded(example["image"], int(example["label"]), example["file_name"].decode())
    except Exception as error:  # of whatever kind a damaged file raises
      raise ValueError(f"{self.locate(record)} cannot be read: {error}. {self.advice}") from error

  def locate(self, record: int) -> str:
    """Names a record in a sentence."""
    return f"Record {record} of the split {self.split!r} in {self.folder}"

  @property
  def advice(self) -> str:
    """What to do about a damaged record."""
    return "If its file is damaged, copy the data set again, or prepare it again."


def open_records(folder: Path) -> tuple[Records, Records]:
  """Opens the training and the validation split of a prepared ImageNet.

  Raises:
    ValueError: if the files are in a format that only TensorFlow reads.
  """
  import tensorflow_datasets as tfds

  decoders = {"image": tfds.decode.SkipDecoding()}
  splits = dict.fromkeys(("train", "validation"), decoders)
  _, sources = tfds_folder.open_splits(folder, "imagenet2012", splits)
  train, test = (Records(source, split, folder) for split, source in sources.items())
  return train, test


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
  """The images of a split, decoded, cropped and augmented; a `Split`.

  Attributes:
    records: where they are.
    augment_fn: `(image, draw) -> image`, for training.
    crop_fn: `image -> image`, for evaluation.
  """

  records: Records
  augment_fn: Callable[[Image.Image, Draw], Image.Image]
  crop_fn: Callable[[Image.Image], Image.Image]

  def __len__(self) -> int:
    return len(self.records)

  def load(self, record: int, draw: Draw | None) -> tuple[np.ndarray, int]:
    """Reads one record, see `Split`."""
    encoded = self.records[record]
    try:
      image = decode(encoded.image)
    except Exception as error:  # PIL has many for damaged files
      raise ValueError(
        f"{self.records.locate(record)}, {encoded.name}, is not an image that can be used: "
        f"{error}. "
        f"{self.records.advice}"
      ) from error
    cropped = self.crop_fn(image) if draw is None else self.augment_fn(image, draw)
    return np.asarray(cropped), encoded.label


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated:
  """A few images over and over; a `Split`. Labels go round too.

  Attributes:
    images: `[N, H, W, C]` uint8.
    length: the number of records.
    num_classes: labels are the index modulo this.
  """

  images: np.ndarray
  length: int
  num_classes: int

  def __len__(self) -> int:
    return self.length

  def load(self, record: int, draw: Draw | None) -> tuple[np.ndarray, int]:
    """Takes one record, see `Split`."""
    del draw
    return self.images[record % len(self.images)], record % self.num_classes
