"""Data sets too large for the device: images are read, decoded and augmented as they are needed.

Every batch is a function of the seed and the step alone, whatever the number of worker processes,
of hosts and of devices. So the position in the data is the step of the training state: a run goes
on at any step, on other machines too, and there is no iterator whose state would have to be saved.

A worker's unit of work is a piece of a batch: small enough that the first batch comes soon and
that what is under way fits into memory, large enough that its way between processes costs nothing.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from experiments.data.batch_order import batch_indices
from experiments.data.loader_processes import in_workers
from experiments.data.record_rng import Draw, record_rng
from experiments.processes.sharding import Batch

_PIECE = 32  # images
_PADDING = -1  # in place of the index of a record


class Split(Protocol):
  """Labelled images in files. Worker processes get a pickled copy."""

  def __len__(self) -> int:
    """The number of records."""

  def load(self, record: int, draw: Draw | None) -> tuple[np.ndarray, int]:
    """Reads one record.

    Args:
      record: its index.
      draw: random numbers to augment the image by; None for evaluation.

    Returns:
      `[H, W, C]` uint8 and the label.

    Raises:
      ValueError: if the record is damaged, saying which it is.
    """


class ProcessShard(NamedTuple):
  """The part of every batch that one of several processes takes, in their order.

  Attributes:
    process_index: which of them, from 0.
    process_count: how many there are.
  """

  process_index: int = 0
  process_count: int = 1

  @classmethod
  def of_this_process(cls) -> "ProcessShard":
    """The shard of this JAX process."""
    return cls(jax.process_index(), jax.process_count())

  def of_batch(self, batch_size: int) -> slice:
    """The places of a batch that belong to this shard.

    Raises:
      ValueError: if the batch cannot be divided evenly, or there is no such process.
    """
    if not 0 <= self.process_index < self.process_count:
      raise ValueError(
        f"process_index is {self.process_index}; with process_count={self.process_count} it must "
        f"lie in 0..{self.process_count - 1}."
      )
    if batch_size < 1 or batch_size % self.process_count:
      raise ValueError(
        f"The batch size is {batch_size}; it must be a positive multiple of the number of "
        f"processes, {self.process_count}."
      )
    size = batch_size // self.process_count
    return slice(self.process_index * size, (self.process_index + 1) * size)


@dataclasses.dataclass(frozen=True, eq=False)
class ImageStream:
  """Labelled images that stay on disk, and how to turn them into batches.

  `B` is this process's share of a batch.

  Attributes:
    name: as in `experiments.data.DATASETS`.
    train: the training images.
    test: the images to test on.
    num_classes: number of classes.
    image_shape: `(H, W, C)` of an image as it comes out.
    preprocess_fn: `images -> batch`, `[B, H, W, C]` uint8 to float32, on the device.
    augment_fn: `(key, images, labels) -> (batch, targets)`: uint8 images as they come and `[B]`
      int labels to float32 images and `[B, num_classes]` float32 targets, on the device, for
      training. The key must be the same on all devices that share a batch.
    num_workers: processes that load images; 0: the thread that iterates does it itself.
  """

  name: str
  train: Split
  test: Split
  num_classes: int
  image_shape: tuple[int, int, int]
  preprocess_fn: Callable[[jax.Array], jax.Array]
  augment_fn: Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
  num_workers: int = 0

  @property
  def num_train(self) -> int:
    """Number of training images."""
    return len(self.train)

  @property
  def num_test(self) -> int:
    """Number of test images."""
    return len(self.test)

  def train_batches(
    self, start: int, stop: int, *, batch_size: int, seed: int, shard: ProcessShard | None = None
  ) -> Iterator[Batch]:
    """Loads the batches of steps `start` to `stop - 1`.

    Each epoch visits the images in a new order; its last, partial batch is dropped. An image is
    augmented by the seed, the epoch and its index.

    Args:
      start: the first step, counted from 0 over the whole run.
      stop: the step after the last one.
      batch_size: images per step in all processes together.
      seed: of the run, `0 <= seed < 2**64`.
      shard: the part to load. Default: that of this JAX process.

    Returns:
      An iterator of `{"image": [B, H, W, C] uint8, "label": [B] int32}`, to be closed if it is
      not used up: `experiments.data.prefetch` does. What is raised while loading comes out of it.

    Raises:
      ValueError: if an argument is out of range.
    """
    batch_indices(start, min(1, stop - start), batch_size, self.num_train, seed)  # checks them
    order = _TrainingOrder(self.num_train, batch_size, seed)
    return self._batches(self.train, order, range(start, stop), batch_size, shard)

  def test_batches(
    self, *, batch_size: int, shard: ProcessShard | None = None, passes: int = 1
  ) -> Iterator[Batch]:
    """Loads every test image once, in order.

    Args:
      batch_size: images per batch in all processes together.
      shard: the part to load. Default: that of this JAX process.
      passes: how many times over.

    Returns:
      An iterator of as many batches in every process: `{"image": [B, H, W, C] uint8, "label": [B]
      int32, "valid": [B] bool}`. The last batch is filled up with black images, whose `valid` is
      False.

    Raises:
      ValueError: if the batch cannot be divided among the processes.
    """
    order = _TestOrder(self.num_test, batch_size)
    return self._batches(self.test, order, range(passes * order.num_batches), batch_size, shard)

  def _batches(self, split, order, steps, batch_size, shard) -> Iterator[Batch]:
    places = (shard or ProcessShard.of_this_process()).of_batch(batch_size)
    pieces = _Pieces(split, order, steps, places, self.image_shape)
    return _assemble(pieces, self.num_workers)


class _TrainingOrder(NamedTuple):
  """The records of a step, and their random numbers."""

  num_examples: int
  batch_size: int
  seed: int

  def records(self, step: int) -> np.ndarray:
    return batch_indices(step, 1, self.batch_size, self.num_examples, self.seed)[0]

  def draw(self, step: int, record: int) -> Draw | None:
    epoch = step // (self.num_examples // self.batch_size)
    return record_rng(self.seed, epoch, record)


class _TestOrder(NamedTuple):
  """The records of a batch, one after the other, pass after pass."""

  num_examples: int
  batch_size: int

  @property
  def num_batches(self) -> int:
    """Batches in a pass."""
    return -(-self.num_examples // max(1, self.batch_size))

  def records(self, step: int) -> np.ndarray:
    records = step % self.num_batches * self.batch_size + np.arange(self.batch_size)
    return np.where(records < self.num_examples, records, _PADDING)

  def draw(self, step: int, record: int) -> Draw | None:
    return None


@dataclasses.dataclass(frozen=True)
class _Pieces:
  """The pieces of all batches in a row, for random access.

  Attributes:
    split: where images come from.
    order: which images.
    steps: the steps whose batches are loaded.
    places: the part of each batch that is loaded.
    image_shape: `(H, W, C)`.
  """

  split: Split
  order: _TrainingOrder | _TestOrder
  steps: range
  places: slice
  image_shape: tuple[int, int, int]

  @property
  def batch_size(self) -> int:
    """Images in the part of a batch that is loaded."""
    return self.places.stop - self.places.start

  @property
  def per_batch(self) -> int:
    """Pieces in a batch."""
    return -(-self.batch_size // _PIECE)

  def __len__(self) -> int:
    return len(self.steps) * self.per_batch

  def __getitem__(self, index: Any) -> Batch:
    batch, piece = divmod(int(index), self.per_batch)
    step = self.steps[batch]
    records = self.order.records(step)[self.places][piece * _PIECE : (piece + 1) * _PIECE]
    images = np.zeros((len(records), *self.image_shape), np.uint8)
    labels = np.zeros(len(records), np.int32)
    for i, record in enumerate(records):
      if record != _PADDING:
        images[i], labels[i] = self.split.load(int(record), self.order.draw(step, int(record)))
    loaded: Batch = {"image": images, "label": labels}
    if isinstance(self.order, _TestOrder):
      loaded["valid"] = records != _PADDING
    return loaded


def _assemble(pieces: _Pieces, num_workers: int) -> Iterator[Batch]:
  """Puts the pieces of each batch together, in order."""
  with contextlib.ExitStack() as stack:
    alone = num_workers == 0 or len(pieces) == 0
    loaded = iter(pieces) if alone else stack.enter_context(in_workers(pieces, num_workers))
    for _ in pieces.steps:
      parts = [next(loaded) for _ in range(pieces.per_batch)]
      yield {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
