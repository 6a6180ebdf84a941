"""Tasks made of one data set of images, to be learnt one after the other."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import data
from experiments.data.batch_order import batch_indices
from experiments.data.dataset import Dataset
from experiments.data.input_pipeline import InputPipeline
from experiments.data.stream import ProcessShard

SPLITS = ("classes", "permutations")
SCENARIOS = ("task", "head", "class")
_PERMUTATION_SEED = 0  # tasks are the same in all runs, whatever their seed


@dataclasses.dataclass(frozen=True, eq=False)
class Tasks:
  """A data set divided into tasks.

  Attributes:
    images: the data set.
    num_tasks: how many.
    num_classes: outputs of all tasks together; those of a task stand side by side, in its place.
    train: for each task the indices of its training images, `[n]` int32.
    test: for each task the indices of its test images.
    pixels: `[num_tasks, H * W]` int32, where each pixel of a task's images comes from; None: where
      it is.
  """

  images: Dataset
  num_tasks: int
  num_classes: int
  train: tuple[np.ndarray, ...]
  test: tuple[np.ndarray, ...]
  pixels: np.ndarray | None

  @property
  def num_train(self) -> int:
    """Training examples of all tasks: an epoch of the run sees each once."""
    return sum(map(len, self.train))

  @property
  def num_test(self) -> int:
    """Test examples of all tasks."""
    return sum(map(len, self.test))

  @property
  def image_shape(self) -> tuple[int, int, int]:
    """`(H, W, C)` of one image."""
    return self.images.image_shape


def load_tasks(
  name: str,
  *,
  data_dir: str | None = None,
  validation_fraction: float = 0.0,
  num_tasks: int = 5,
  split: str = "classes",
  **kwargs: Any,
) -> Tasks:
  """Makes tasks of a data set.

  Args:
    name: of the data set, a key of `experiments.data.DATASETS`.
    data_dir: see `experiments.data.load`.
    validation_fraction: see `experiments.data.load`.
    num_tasks: how many.
    split: `"classes"`: each task has as many of the classes, in their order; or `"permutations"`:
      each has all images, their pixels in another order, the first task as they are, and outputs of
      its own for all classes.
    **kwargs: further arguments of the loader.

  Raises:
    ValueError: if an argument is out of range, or the images are not held in memory.
    FileNotFoundError: if the data set is not there.
  """
  found = data.load(name, data_dir=data_dir, validation_fraction=validation_fraction, **kwargs)
  if not isinstance(found, Dataset):
    raise ValueError(
      f"config.data.name is {name!r}, whose images are read from disk as they are needed: "
      "tasks are made of a data set that is held in memory, such as cifar10 or digits."
    )
  classes = found.num_classes
  if split not in SPLITS or num_tasks < 1 or (split == "classes" and classes % num_tasks):
    raise ValueError(
      f"config.data.kwargs.split is {split!r} and num_tasks {num_tasks}; the former must be one of "
      f"{', '.join(SPLITS)}, the latter 1 or more, and of classes divide the {classes} there are."
    )
  if split == "permutations":
    every = tuple(np.arange(n, dtype=np.int32) for n in (found.num_train, found.num_test))
    train, test = ((part,) * num_tasks for part in every)
    return Tasks(found, num_tasks, classes * num_tasks, train, test, _orders(found, num_tasks))
  of_each = classes // num_tasks
  train, test = (
    tuple(np.nonzero(labels // of_each == task)[0].astype(np.int32) for task in range(num_tasks))
    for labels in (found.train_labels, found.test_labels)
  )
  if empty := [t for t in range(num_tasks) if not (len(train[t]) and len(test[t]))]:
    raise ValueError(f"Task {empty[0]} of {name!r} has no images of its classes.")
  return Tasks(found, num_tasks, classes, train, test, None)


def _orders(images: Dataset, num_tasks: int) -> np.ndarray:
  height, width, _ = images.image_shape
  orders = [np.arange(height * width)]
  for task in range(1, num_tasks):
    philox = np.random.Philox(key=np.array([_PERMUTATION_SEED, task], np.uint64))
    orders.append(np.argsort(philox.random_raw(height * width), kind="stable"))
  return np.stack(orders).astype(np.int32)


def tasks_pipeline(
  tasks: Tasks,
  *,
  batch_size: int,
  eval_batch_size: int,
  seed: int,
  total_steps: int | None = None,
  scenario: str = "task",
) -> InputPipeline:
  """Batches of one task after the other, each for as many steps; tests of all tasks.

  Inputs are images `[B, H, W, C]` float32. Targets are `{"label", "task", "up_to": [B] int32,
  "classes": [B, num_classes] bool}`: the class among those of all tasks, the task, the last task
  whose connections a test may use, and which classes can be meant. A batch is of one task.

  Args:
    tasks: the tasks.
    batch_size: examples of a training step, in all processes together.
    eval_batch_size: examples of a test batch, in all processes together.
    seed: of the order.
    total_steps: of the run, a multiple of the number of tasks; None: all tasks at once.
    scenario: what a test is told. `"task"`: which task an image is of, for the classes that can be
      meant and the connections that are used; `"head"`: for the classes alone; `"class"`: nothing.

  Raises:
    ValueError: if a task has fewer examples than a batch.
  """
  images, num_tasks = tasks.images, tasks.num_tasks
  shard = ProcessShard.of_this_process()
  places, test_places = shard.of_batch(batch_size), shard.of_batch(eval_batch_size)
  of_each = tasks.num_classes // num_tasks
  everywhere = [(task, i) for task in range(num_tasks) for i in tasks.train[task]]
  smallest = min(map(len, tasks.train))
  if total_steps is not None and batch_size > smallest:
    raise ValueError(
      f"config.data.batch_size is {batch_size}, but a task has {smallest} training examples."
    )

  def picture(x: Array, task: Array) -> Array:
    if tasks.pixels is None:
      return x
    order = jnp.asarray(tasks.pixels)[task]
    return jnp.take_along_axis(x.reshape(len(x), -1, x.shape[-1]), order[..., None], 1).reshape(
      x.shape
    )

  def targets(labels: Array, task: Array, *, known: bool, up_to: Array) -> Any:
    label = labels + of_each * task if tasks.pixels is not None else labels
    owner = np.arange(tasks.num_classes)[None] // of_each
    classes = (owner == task[:, None]) | (not known)
    return {"label": label, "task": task, "up_to": up_to, "classes": classes}

  def train_inputs(key, places, device_data, batch):
    keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(places)
    held, labels = map(jnp.asarray, device_data["train"])
    index, task = batch["index"], batch["task"]
    augment = lambda key, i: images.augment_fn(key, held, i[None])[0]
    x = jax.vmap(augment)(keys, index)
    return picture(x, task), targets(labels[index], task, known=True, up_to=task)

  def test_inputs(device_data, batch):
    held, labels = map(jnp.asarray, device_data["test"])
    index, task = batch["index"], batch["task"]
    up_to = task if scenario == "task" else jnp.full_like(task, num_tasks - 1)
    found = targets(labels[index], task, known=scenario != "class", up_to=up_to)
    return picture(images.preprocess_fn(held[index]), task), found, batch["valid"]

  def train_batches(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, stop):
      if total_steps is None:
        chosen = batch_indices(step, 1, batch_size, len(everywhere), seed)[0, places]
        task, index = np.array([everywhere[i] for i in chosen], np.int32).T
      else:
        now, within = divmod(step, total_steps // num_tasks)
        chosen = batch_indices(within, 1, batch_size, len(tasks.train[now]), seed)[0, places]
        index, task = tasks.train[now][chosen], np.full(len(chosen), now, np.int32)
      yield {"index": index, "task": task}

  def test_batches(passes: int = 1) -> Iterator[dict[str, np.ndarray]]:
    del passes
    for task, examples in enumerate(tasks.test):
      for start in range(0, len(examples), eval_batch_size):
        place = np.arange(start, start + eval_batch_size)[test_places]
        index = examples[np.minimum(place, len(examples) - 1)]
        of_task = np.full(len(index), task, np.int32)
        yield {"index": index, "task": of_task, "valid": place < len(examples)}

  return InputPipeline(
    device_data={
      "train": (images.train_images, images.train_labels),
      "test": (images.test_images, images.test_labels),
    },
    train_batches=train_batches,
    test_batches=test_batches,
    train_inputs=train_inputs,
    test_inputs=test_inputs,
    is_stream=False,
  )
