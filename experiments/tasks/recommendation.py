"""Users to items that they have not seen."""

import functools

import jax
import jax.numpy as jnp

from experiments import models
from experiments.data.ratings.dataset import interactions_pipeline, load
from experiments.models.factors import MatrixFactorisation
from experiments.tasks.task import Task
from experiments.workdir.scores import Score

RECOMMENDERS = {"matrix_factorisation": MatrixFactorisation}
"""Networks by name: from users `[B]` int32 to scores `[B, items]` float32."""
_SHAPES = ("num_users", "num_items")
_K = 10


def recommendation(*, label_smoothing: float = 0.0) -> Task:
  """The task; its score is NDCG@10 over all items that a user was not learned from.

  The loss is the softmax cross-entropy of an item of a user's among all, mean over these items. In
  tests it is that of the item to be found among the candidates. Recorded is HR@10 besides. Items of
  the same score count as better than the one to be found.

  Args:
    label_smoothing: must be 0.

  Raises:
    ValueError: if it is not.
  """
  if label_smoothing:
    raise ValueError(
      f"config.train.label_smoothing is {label_smoothing}, but recommendation has none: set it to "
      "0."
    )
  return Task(
    load=load,
    shapes=lambda data: {"num_users": data.num_train, "num_items": data.num_items},
    build=functools.partial(models.construct, RECOMMENDERS, _SHAPES),
    inputs=lambda shapes, size: jax.ShapeDtypeStruct((size,), jnp.int32),
    pipeline=interactions_pipeline,
    loss=_loss,
    train_metrics=(),
    test_sums=_test_sums,
    score=Score("ndcg_at_10", "NDCG@10", percent=True),
    unit="users",
  )


def _loss(scores, targets):
  items, is_there = _known(scores, targets)
  nats = -jnp.take_along_axis(jax.nn.log_softmax(scores), items, axis=-1)
  mean = jnp.where(is_there, nats, 0).sum(-1) / jnp.maximum(is_there.sum(-1), 1)
  return mean.mean(), {}


def _known(scores, targets):
  """Items to learn from `[B, L]`, and which of them are there."""
  is_there = targets["items"] < scores.shape[-1]
  return jnp.where(is_there, targets["items"], 0), is_there


def _test_sums(scores, targets, valid):
  rows = jnp.arange(len(scores))
  seen = jnp.zeros(scores.shape, bool).at[rows[:, None], targets["items"]].set(True, mode="drop")
  own = scores[rows, targets["wanted"]]
  rank = (~(scores < own[:, None]) & ~seen).sum(-1)  # itself and what is not worse, NaN included
  is_hit = rank <= _K
  among = jax.nn.logsumexp(jnp.where(seen, -jnp.inf, scores), axis=-1)
  total = lambda x: jnp.where(valid, x, 0).sum(dtype=jnp.float32)
  return {
    "loss": total(among - own),
    "ndcg_at_10": total(jnp.where(is_hit, 1 / jnp.log2(1.0 + rank), 0.0)),
    "hr_at_10": total(is_hit),
  }
