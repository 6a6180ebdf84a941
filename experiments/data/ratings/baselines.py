"""Recommenders that need no training loop, as bars for those that do."""

import numpy as np

from experiments.data.ratings.dataset import Interactions


def seen_matrix(data: Interactions) -> np.ndarray:
  """`[users, items]` float64, 1 for what a user is learned from, else 0."""
  seen = np.zeros((data.num_train, data.num_items))
  seen[np.repeat(np.arange(data.num_train), np.diff(data.seen.starts)), data.seen.items] = 1
  return seen


def popularity(data: Interactions) -> np.ndarray:
  """Scores `[tested users, items]` by how many users have an item: the same for all."""
  counts = np.bincount(data.seen.items, minlength=data.num_items).astype(float)
  return np.broadcast_to(counts, (data.num_test, data.num_items))


def ease(data: Interactions, *, l2: float) -> np.ndarray:
  """Scores `[tested users, items]` by EASE, the linear autoencoder in closed form.

  Item by item weights `B` that rebuild what users have from the rest of it, the diagonal being 0:
  with `P = (XᵀX + l2 I)⁻¹`, `B = I − P / diag(P)` by columns. It takes items² memory.

  Args:
    data: users and items.
    l2: of the weights, above 0.

  Raises:
    ValueError: if `l2` is not above 0.

  Source: Steck (2019), Embarrassingly shallow autoencoders for sparse data (arXiv:1905.03375).
  """
  if not l2 > 0:
    raise ValueError(f"l2 is {l2}; it must be above 0, such as 500 for MovieLens.")
  seen = seen_matrix(data)
  inverse = np.linalg.inv(seen.T @ seen + l2 * np.eye(data.num_items))
  weights = -inverse / np.diag(inverse)
  np.fill_diagonal(weights, 0)
  return seen[data.tested] @ weights


def ranks(data: Interactions, scores: np.ndarray) -> np.ndarray:
  """Where each wanted item stands among all that its user has not seen, from 1.

  Items of the same score stand before it.

  Args:
    data: users and items.
    scores: `[tested users, items]`.
  """
  candidates = seen_matrix(data)[data.tested] == 0
  rows = np.arange(data.num_test)
  own = scores[rows, data.wanted][:, None]
  candidates[rows, data.wanted] = False
  return 1 + (candidates & ~(scores < own)).sum(-1)


def hit_rate(ranks: np.ndarray, k: int = 10) -> float:
  """HR@k: the share of wanted items among the first `k`."""
  return float((ranks <= k).mean())


def ndcg(ranks: np.ndarray, k: int = 10) -> float:
  """NDCG@k of one wanted item each: the mean of 1 / log2(1 + rank), 0 beyond rank `k`."""
  return float(np.where(ranks <= k, 1 / np.log2(1 + ranks), 0).mean())
