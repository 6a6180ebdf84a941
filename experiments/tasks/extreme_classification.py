"""Examples of few labels among very many."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments import models
from experiments.data.xmc.dataset import load, xmc_pipeline
from experiments.models.label_blocks import BagOfWords
from experiments.tasks.task import Task
from experiments.workdir.scores import Score

LABEL_MODELS = {"bag_of_words": BagOfWords}
"""Networks by name: from features and labels to `label_blocks.Labelled`."""
_SHAPES = ("num_features", "num_labels", "max_features", "max_labels")
_KS = (1, 3, 5)
_MOST = 100_000  # ranks beyond count as this one, which the median is not


def extreme_classification(*, label_smoothing: float = 0.0) -> Task:
  """The task; its score is P@1, the share of examples whose best label is one of theirs.

  Recorded are P@k and PSP@k (of labels weighted by inverse propensity, over the most that could be
  had) for k of 1, 3 and 5, accuracy@10 and @100 (whether one of the labels is among so many), and
  the median rank of an example's best label, exact up to 100,000.

  Args:
    label_smoothing: must be 0.

  Raises:
    ValueError: if it is not.
  """
  if label_smoothing:
    raise ValueError(
      f"config.train.label_smoothing is {label_smoothing}, but extreme_classification has none: "
      "set it to 0."
    )
  struct = jax.ShapeDtypeStruct

  def inputs(shapes, size):
    features = size, shapes["max_features"]
    return {
      "features": struct(features, jnp.int32),
      "weights": struct(features, jnp.float32),
      "labels": struct((size, shapes["max_labels"]), jnp.int32),
    }

  return Task(
    load=load,
    shapes=lambda data: {name: getattr(data, name) for name in _SHAPES},
    build=functools.partial(models.construct, LABEL_MODELS, _SHAPES),
    inputs=inputs,
    pipeline=xmc_pipeline,
    loss=lambda outputs, targets: (outputs.loss.mean(), {}),
    train_metrics=(),
    test_sums=_test_sums,
    score=Score("precision_at_1", "P@1", percent=True),
    finish=_finish,
  )


def _test_sums(outputs, targets, valid):
  labels, inverse = targets["labels"], targets["inverse"]
  is_there = inverse > 0
  hits = (outputs.labels[:, :, None] == labels[:, None]) & is_there[:, None]  # [B, k, L]
  gained = jnp.where(hits, inverse[:, None], 0).sum(-1)
  most = -jnp.sort(-inverse, axis=-1)
  total = lambda x: jnp.where(valid, x, 0).sum(dtype=jnp.float32)
  sums = {"loss": total(outputs.loss)}
  for k in _KS:
    sums[f"precision_at_{k}"] = total(hits[:, :k].any(-1).sum(-1) / k)
    sums[f"gained_{k}"] = total(gained[:, :k].sum(-1))
    sums[f"most_{k}"] = total(most[:, :k].sum(-1))
  for k in (10, 100):
    sums[f"accuracy_at_{k}"] = total(outputs.rank <= k)
  rank = jnp.where(valid, jnp.minimum(outputs.rank, _MOST), 0)
  sums["ranks"] = jnp.zeros(_MOST + 1, jnp.float32).at[rank].add(valid.astype(jnp.float32))
  return sums


def _finish(means):
  plain = ("loss", "precision", "accuracy")
  values = {name: float(mean) for name, mean in means.items() if name.startswith(plain)}
  if "ranks" not in means:
    return values
  for k in _KS:
    most = float(means[f"most_{k}"])
    values[f"psp_at_{k}"] = float(means[f"gained_{k}"]) / most if most else 0.0
  below = np.cumsum(means["ranks"])
  return values | {"median_rank": float(np.searchsorted(below, below[-1] / 2))}
