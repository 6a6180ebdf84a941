"""The data sets of the experiments, by name."""

from collections.abc import Callable
from typing import Any

from experiments.data.batch_order import batch_indices, epoch_order
from experiments.data.cifar10 import load_cifar10
from experiments.data.dataset import Dataset
from experiments.data.digits import load_digits
from experiments.data.synthetic import load_synthetic
from experiments.registry import check_arguments, choose

__all__ = [
  "DATASETS",
  "Dataset",
  "batch_indices",
  "epoch_order",
  "load",
  "load_cifar10",
  "load_digits",
  "load_synthetic",
]

DATASETS: dict[str, Callable[..., Dataset]] = {
  "cifar10": load_cifar10,
  "digits": load_digits,
  "synthetic": load_synthetic,
}


def load(name: str, *, data_dir: str | None = None, **kwargs: Any) -> Dataset:
  """Loads a data set by name.

  Args:
    name: a key of `DATASETS`.
    data_dir: folder of the TensorFlow Datasets, for those that are read from disk. Default: the
      environment variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    **kwargs: further arguments of the loader.

  Raises:
    ValueError: if the name is unknown.
    FileNotFoundError: if the data set is not in the folder.
  """
  loader = choose(DATASETS, name, "data set name")
  check_arguments(loader, kwargs, reserved=["data_dir"], what=f"config.data.kwargs of {name!r}")
  return loader(data_dir=data_dir, **kwargs)
