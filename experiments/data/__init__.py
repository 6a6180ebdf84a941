"""The data sets of the experiments, by name."""

from collections.abc import Callable
from typing import Any

from experiments.common.registry import check_arguments, choose
from experiments.data.batch_order import batch_indices, epoch_order
from experiments.data.cifar10 import load_cifar10
from experiments.data.dataset import Dataset
from experiments.data.digits import load_digits
from experiments.data.holdout import hold_out
from experiments.data.imagenet import load_imagenet2012, load_synthetic_imagenet
from experiments.data.input_pipeline import (
  Experience,
  InputPipeline,
  make_input_pipeline,
  memory_pipeline,
  test_examples,
)
from experiments.data.prefetch import Prefetch
from experiments.data.stream import ImageStream, ProcessShard
from experiments.data.synthetic import load_synthetic
from experiments.processes.sharding import put_on_devices

__all__ = [
  "DATASETS",
  "Dataset",
  "Experience",
  "ImageStream",
  "InputPipeline",
  "Prefetch",
  "ProcessShard",
  "batch_indices",
  "epoch_order",
  "hold_out",
  "load",
  "load_cifar10",
  "load_digits",
  "load_imagenet2012",
  "load_synthetic",
  "load_synthetic_imagenet",
  "make_input_pipeline",
  "memory_pipeline",
  "put_on_devices",
  "test_examples",
]

DATASETS: dict[str, Callable[..., Dataset | ImageStream]] = {
  "cifar10": load_cifar10,
  "digits": load_digits,
  "imagenet2012": load_imagenet2012,
  "synthetic": load_synthetic,
  "synthetic_imagenet": load_synthetic_imagenet,
}


def load(
  name: str, *, data_dir: str | None = None, validation_fraction: float = 0.0, **kwargs: Any
) -> Any:
  """Loads a data set by name.

  Args:
    name: a key of `DATASETS`.
    data_dir: folder of the TensorFlow Datasets, for those that are read from disk. Default: the
      environment variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    validation_fraction: of the training images, to test on in place of the test images; see
      `hold_out`.
    **kwargs: further arguments of the loader.

  Returns:
    A `Dataset` held in memory, or an `ImageStream` that is read as it is needed;
    `make_input_pipeline` makes them alike.

  Raises:
    ValueError: if the name or an argument is unknown, or an argument is out of range.
    FileNotFoundError: if the data set is not in the folder.
  """
  loader = choose(DATASETS, name, "data set name")
  reserved = ["data_dir", "validation_fraction"]
  check_arguments(loader, kwargs, reserved=reserved, what=f"config.data.kwargs of {name!r}")
  data = loader(data_dir=data_dir, **kwargs)
  return hold_out(data, validation_fraction) if validation_fraction else data
