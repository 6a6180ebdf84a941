"""One view of all data sets for the training loop: examples in memory and images that are streamed.

A step gets a batch, which comes from the host, and what lies on the devices all the time; from
these it makes the inputs and targets of the network. For images in memory a batch is indices, for
streamed ones it is the images themselves.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.batch_order import batch_indices
from experiments.data.dataset import Dataset
from experiments.data.stream import ImageStream, ProcessShard
from experiments.processes.sharding import Batch

Array = jax.Array


class Experience(NamedTuple):
  """Examples that the network in training makes by acting, in place of a data set's.

  What it carries from step to step (environments, a replay buffer, a target network) is part of the
  run's state: saved, resumed, and the same on all devices, each of which acts for itself and takes
  its part of the batch from what comes of it. `network` is `(weights, inputs) -> outputs`, not in
  training mode; `weights` are a pytree of arrays, the network's at the time.

  Attributes:
    init: `(key, network, weights) -> carried`, a pytree of arrays, at the start of a run.
    advance: `(key, carried, network, weights) -> (carried, device_data)`, before every step: what
      `train_inputs` then gets as what lies on the devices. `key` is the step's; jitted.
  """

  init: Callable[[Array, Any, Any], Any]
  advance: Callable[[Array, Any, Any, Any], tuple[Any, Any]]


def _outputs(network: Callable[[Any], Any], inputs: Any) -> Any:
  return network(inputs)


class InputPipeline(NamedTuple):
  """What to train and to test on. `B` is the part of a batch that a process or a device has.

  Attributes:
    device_data: arrays that every device needs, once.
    train_batches: `(start, stop) -> iterator`, this process's part of the batches of steps `start`
      to `stop - 1`: arrays `[B, ...]` by name, of the same shapes in every step.
    test_batches: `(passes=1) -> iterator`, this process's part of batches that have every test
      example once; as many of the same shapes in every process. One at a time. `passes` is how
      often it will be called, this time included: what loads them stays as long.
    train_inputs: `(key, places, device_data, batch) -> (inputs, targets)`, of images `[B, H, W, C]`
      and `[B, num_classes]` float32; of another task any pytrees. `key` is the step's, the same on
      all devices; `places` `[B]` int32 are those of the examples in the batch of all devices
      together, so that what is drawn for an example does not depend on the device.
    test_inputs: `(device_data, batch) -> (inputs, targets, valid)`, of images `[B, H, W, C]`
      float32 and labels `[B]` int32; `valid` `[B]` bool is False for what only fills up the last
      batch. Both can be jitted.
    is_stream: whether batches take long to come, and bytes to pass: to be fetched ahead, and one
      at a time.
    close: ends what loads test batches, if there are fewer passes than were said.
    experience: where training examples come from if the network makes them by acting; None: they
      are a data set's.
    test_outputs: `(network, inputs) -> outputs` of a test batch, where `network` is a function of
      inputs: to act with it, for one. Default: `network(inputs)`.
  """

  device_data: Any
  train_batches: Callable[[int, int], Iterator[Batch]]
  test_batches: Callable[..., Iterator[Batch]]
  train_inputs: Callable[[Array, Array, Any, dict[str, Array]], tuple[Array, Array]]
  test_inputs: Callable[[Any, dict[str, Array]], tuple[Array, Array, Array]]
  is_stream: bool
  close: Callable[[], None] = lambda: None
  experience: Experience | None = None
  test_outputs: Callable[[Callable[[Any], Any], Any], Any] = _outputs


def make_input_pipeline(
  data: Dataset | ImageStream,
  *,
  batch_size: int,
  eval_batch_size: int,
  seed: int,
  shard: ProcessShard | None = None,
) -> InputPipeline:
  """Makes the pipeline of images.

  Args:
    data: the data set.
    batch_size: images of a training step, in all processes together.
    eval_batch_size: images of a test batch, in all processes together.
    seed: of the order and of augmentation.
    shard: this process's part. Default: that of this JAX process.

  Raises:
    ValueError: if a batch cannot be divided among the processes.
  """
  shard = shard or ProcessShard.of_this_process()
  make = _stream_pipeline if isinstance(data, ImageStream) else _dataset_pipeline
  return make(data, batch_size, eval_batch_size, seed, shard)  # type: ignore[arg-type]


def test_examples(
  data: Dataset | ImageStream, *, batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """The test images in order, `[B, H, W, C]` uint8, and labels `[B]`; the last may be fewer.

  Args:
    data: the data set.
    batch_size: images at a time.
  """
  if isinstance(data, ImageStream):
    for batch in data.test_batches(batch_size=batch_size, shard=ProcessShard()):
      yield batch["image"][batch["valid"]], batch["label"][batch["valid"]]
    return
  for start in range(0, data.num_test, batch_size):
    stop = start + batch_size
    yield data.test_images[start:stop], data.test_labels[start:stop]


def _stream_pipeline(
  data: ImageStream, batch_size: int, eval_batch_size: int, seed: int, shard: ProcessShard
) -> InputPipeline:
  """Batches are images."""

  def train_inputs(key, places, device_data, batch):
    del places, device_data
    return data.augment_fn(key, batch["image"], batch["label"])

  def test_inputs(device_data, batch):
    del device_data
    return data.preprocess_fn(batch["image"]), batch["label"], batch["valid"]

  passes = _Passes(data, eval_batch_size, shard)
  return InputPipeline(
    device_data=(),
    train_batches=lambda start, stop: data.train_batches(
      start, stop, batch_size=batch_size, seed=seed, shard=shard
    ),
    test_batches=passes.one,
    train_inputs=train_inputs,
    test_inputs=test_inputs,
    is_stream=True,
    close=passes.close,
  )


class _Passes:
  """Passes over the test images, by processes that stay from one to the next.

  Starting them takes seconds, for which the devices would wait at every evaluation. In between they
  hold the first batches of the next pass.
  """

  def __init__(self, data: ImageStream, batch_size: int, shard: ProcessShard):
    self._open = lambda passes: data.test_batches(batch_size=batch_size, shard=shard, passes=passes)
    self._per_pass = -(-data.num_test // batch_size)
    self._left = 0
    self._batches: Iterator[Batch] | None = None

  def one(self, passes: int = 1) -> Iterator[Batch]:
    """The batches of a pass, if `passes` are to come, this one included."""
    if self._batches is None:
      self._batches, self._left = self._open(passes), passes
    try:
      for _ in range(self._per_pass):
        yield next(self._batches)
    except BaseException:  # broken off: the next pass has to begin at its beginning
      self.close()
      raise
    self._left -= 1
    if not self._left:
      self.close()

  def close(self) -> None:
    """Ends the processes; another pass would start them again."""
    batches, self._batches = self._batches, None
    if batches is not None and hasattr(batches, "close"):
      batches.close()


def _dataset_pipeline(
  data: Dataset, batch_size: int, eval_batch_size: int, seed: int, shard: ProcessShard
) -> InputPipeline:
  """Batches are indices of images."""

  def train_examples(keys, device_data, index):
    images, labels = map(jnp.asarray, device_data["train"])
    augment = lambda key, i: data.augment_fn(key, images, i[None])[0]
    return jax.vmap(augment)(keys, index), jax.nn.one_hot(labels[index], data.num_classes)

  def test_examples(device_data, index):
    images, labels = device_data["test"]
    return data.preprocess_fn(images[index]), labels[index]

  return memory_pipeline(
    num_train=data.num_train,
    num_test=data.num_test,
    device_data={
      "train": (data.train_images, data.train_labels),
      "test": (data.test_images, data.test_labels),
    },
    train_examples=train_examples,
    test_examples=test_examples,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    seed=seed,
    shard=shard,
  )


def memory_pipeline(
  *,
  num_train: int,
  num_test: int,
  device_data: Any,
  train_examples: Callable[[Array, Any, Array], tuple[Any, Any]],
  test_examples: Callable[[Any, Array], tuple[Any, Any]],
  batch_size: int,
  eval_batch_size: int,
  seed: int,
  shard: ProcessShard | None = None,
) -> InputPipeline:
  """The pipeline of examples that lie on the devices: a batch is their indices.

  Each epoch visits the training examples in a new order.

  Args:
    num_train: training examples.
    num_test: test examples.
    device_data: arrays that every device needs.
    train_examples: `(keys, device_data, index) -> (inputs, targets)` of the examples `index` `[B]`;
      `keys` `[B]` are random keys, of the step and of an example's place in the whole batch.
    test_examples: `(device_data, index) -> (inputs, targets)`, likewise. Both can be jitted.
    batch_size: examples of a training step, in all processes together.
    eval_batch_size: examples of a test batch, in all processes together.
    seed: of the order.
    shard: this process's part. Default: that of this JAX process.

  Raises:
    ValueError: if a batch cannot be divided among the processes.
  """
  shard = shard or ProcessShard.of_this_process()
  places, test_places = shard.of_batch(batch_size), shard.of_batch(eval_batch_size)

  def train_batches(start, stop):
    for step in range(start, stop):
      yield {"index": batch_indices(step, 1, batch_size, num_train, seed)[0, places]}

  def test_batches(passes=1):
    del passes
    for start in range(0, num_test, eval_batch_size):
      index = np.arange(start, start + eval_batch_size, dtype=np.int32)[test_places]
      yield {"index": np.minimum(index, num_test - 1), "valid": index < num_test}

  def train_inputs(key, places, device_data, batch):
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    return train_examples(keys, device_data, batch["index"])

  def test_inputs(device_data, batch):
    return *test_examples(device_data, batch["index"]), batch["valid"]

  return InputPipeline(
    device_data=device_data,
    train_batches=train_batches,
    test_batches=test_batches,
    train_inputs=train_inputs,
    test_inputs=test_inputs,
    is_stream=False,
  )
