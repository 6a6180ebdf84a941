"""Extreme classification: examples of few features and few labels among very many.

Read is what the Extreme Classification Repository publishes (http://manikvarma.org/downloads/XC/).
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.registry import check_arguments
from experiments.data.batch_order import batch_indices
from experiments.data.input_pipeline import InputPipeline
from experiments.data.stream import ProcessShard
from experiments.data.xmc.files import Split, bags, read_examples

_WHERE_FROM = (
  "python -m experiments.build_reverse_dictionary makes one, and "
  "http://manikvarma.org/downloads/XC/ has others; give the folder as config.data.data_dir."
)


@dataclasses.dataclass(frozen=True, eq=False)
class XmcData:
  """A data set.

  Attributes:
    train: to train on.
    test: to test on.
    num_features: kinds of features.
    num_labels: labels there are.
    max_features: the most features of an example that count, those of the largest values.
    inverse_propensities: `[num_labels]` float32, how much finding a label counts in PSP@k.
  """

  train: Split
  test: Split
  num_features: int
  num_labels: int
  max_features: int
  inverse_propensities: np.ndarray

  @property
  def num_train(self) -> int:
    """Number of training examples."""
    return len(self.train.labels.starts) - 1

  @property
  def num_test(self) -> int:
    """Number of test examples."""
    return len(self.test.labels.starts) - 1

  @property
  def max_labels(self) -> int:
    """The most labels of an example."""
    return max(self.train.labels.widest, self.test.labels.widest)


def load_xmc(
  name: str,
  *,
  data_dir: str | None = None,
  train: str = "train.txt",
  test: str = "test.txt",
  max_features: int = 256,
  a: float = 0.55,
  b: float = 1.5,
) -> XmcData:
  """Reads a data set from a folder.

  Args:
    name: `"files"`, or `"synthetic_labels"` for one made up (see `make_synthetic`).
    data_dir: the folder.
    train: file of the training examples. What ends in `.json` or `.json.gz` is raw text: an object
      a line with `title`, `content` (either may be missing) and `target_ind`. All else is a bag of
      words: a line `examples features labels`, then `label,label feature:value feature:value`.
    test: file of the test examples.
    max_features: the most features of an example that count.
    a: of the propensities, which the repository lists for its data sets (Jain et al. 2016).
    b: likewise.

  Raises:
    FileNotFoundError: if a file is not there.
    ValueError: if it is damaged, or both are not of one data set.
  """
  if name != "files":
    raise ValueError(f"config.data.name is {name!r}; it must be one of files, synthetic_labels.")
  if max_features < 1:
    raise ValueError(f"config.data.kwargs.max_features is {max_features}; it must be 1 or more.")
  places = [Path(data_dir or ".") / file for file in (train, test)]
  for place in places:
    if not place.is_file():
      raise FileNotFoundError(f"There is no {place}. {_WHERE_FROM}")
  (one, *sizes), (other, *other_sizes) = map(read_examples, places)
  if places[0].suffix == ".txt" and sizes != other_sizes:
    raise ValueError(
      f"{places[0]} has {sizes[0]} features and {sizes[1]} labels, {places[1]} {other_sizes[0]} "
      f"and {other_sizes[1]}: they are not of one data set."
    )
  return make_xmc(one, other, *map(max, sizes, other_sizes), max_features=max_features, a=a, b=b)


def make_xmc(
  train: Split,
  test: Split,
  num_features: int,
  num_labels: int,
  *,
  max_features: int = 256,
  a: float = 0.55,
  b: float = 1.5,
) -> XmcData:
  """A data set of these parts; arguments as `load_xmc`'s and `XmcData`'s.

  Args:
    train: to train on.
    test: to test on.
    num_features: kinds of features.
    num_labels: labels there are.
    max_features: the most features of an example that count.
    a: of the propensities.
    b: likewise.
  """
  widest = min(max_features, max(train.features.widest, test.features.widest))
  counts = np.bincount(train.labels.items, minlength=num_labels)
  number = len(train.labels.starts) - 1
  c = (np.log(max(number, 3)) - 1) * (b + 1) ** a
  inverse = (1 + c * (counts + b) ** -a).astype(np.float32)
  return XmcData(train, test, num_features, num_labels, widest, inverse)


def make_synthetic(
  *,
  num_labels: int = 1000,
  num_features: int = 200,
  num_train: int = 2000,
  num_test: int = 200,
  features_of_label: int = 6,
) -> XmcData:
  """Labels that are a random set of features each, of which an example has most.

  Args:
    num_labels: labels there are.
    num_features: kinds of features.
    num_train: training examples.
    num_test: test examples.
    features_of_label: features of a label, all but one of which an example has.
  """
  random = np.random.default_rng(0)

  def split(number: int) -> Split:
    labels = random.integers(0, num_labels, number)
    rows = []
    for label in labels:
      own = np.random.default_rng([1, int(label)]).integers(0, num_features, features_of_label)
      kept = np.delete(own, random.integers(features_of_label))
      rows.append([(int(x), 1.0) for x in np.unique(kept)])
    return Split(bags(rows), bags([[(int(label), 1.0)] for label in labels]))

  return make_xmc(split(num_train), split(num_test), num_features, num_labels)


def load(name: str, *, data_dir: str | None = None, **kwargs: Any) -> XmcData:
  """Loads `"files"` (`load_xmc`) or `"synthetic_labels"` (`make_synthetic`).

  Args:
    name: of the data set.
    data_dir: folder of its files.
    **kwargs: further arguments of the function.

  Raises:
    ValueError: if the name or an argument is unknown, or a file damaged.
    FileNotFoundError: if a file is not there.
  """
  function: Any = make_synthetic if name == "synthetic_labels" else load_xmc
  what = f"config.data.kwargs of {name!r}"
  check_arguments(function, kwargs, reserved=["name", "data_dir"], what=what)
  return (
    function(**kwargs)
    if name == "synthetic_labels"
    else function(name, data_dir=data_dir, **kwargs)
  )


def xmc_pipeline(
  data: XmcData, *, batch_size: int, eval_batch_size: int, seed: int
) -> InputPipeline:
  """Batches of examples, made on the host.

  Inputs are `{"features": [B, F] int32, "weights": [B, F] float32, "labels": [B, L] int32}`, what
  is not there being feature 0 of weight 0 and label `num_labels`. Test targets are the labels and
  their inverse propensities `[B, L]` float32, 0 for what is not there.

  Args:
    data: the data set.
    batch_size: examples of a training step, in all processes together.
    eval_batch_size: examples of a test batch, in all processes together.
    seed: of the order.
  """
  shard = ProcessShard.of_this_process()
  places, test_places = shard.of_batch(batch_size), shard.of_batch(eval_batch_size)

  def arrays(split: Split, index: np.ndarray) -> dict[str, np.ndarray]:
    features, weights = split.features.padded(index, data.max_features, 0)
    labels, _ = split.labels.padded(index, data.max_labels, data.num_labels)
    return {"features": features, "weights": weights, "labels": labels}

  def train_batches(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, stop):
      yield arrays(data.train, batch_indices(step, 1, batch_size, data.num_train, seed)[0, places])

  def test_batches(passes: int = 1) -> Iterator[dict[str, np.ndarray]]:
    del passes
    padded = np.append(data.inverse_propensities, np.float32(0))
    for start in range(0, data.num_test, eval_batch_size):
      index = np.arange(start, start + eval_batch_size)[test_places]
      batch = arrays(data.test, np.minimum(index, data.num_test - 1))
      yield batch | {"inverse": padded[batch["labels"]], "valid": index < data.num_test}

  def train_inputs(key, places, device_data, batch):
    del key, places, device_data
    return dict(batch), ()

  def test_inputs(device_data, batch):
    del device_data
    inputs = {name: batch[name] for name in ("features", "weights", "labels")}
    targets = {name: batch[name] for name in ("labels", "inverse")}
    return inputs, targets, batch["valid"]

  return InputPipeline((), train_batches, test_batches, train_inputs, test_inputs, False)
