"""How diverse a layer's features are, and how alike those of two layers: streamed over batches.

`add_moments` and `effective_rank` tell in how many directions features spread; `add_hsic` and `cka`
how similar the features of layers are, of one network or of several. All are pure and may be
jitted; sums are kept in the type of the state that they start from.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike


class Moments(NamedTuple):
  """First and second moments of features seen so far.

  Attributes:
    num_seen: `[]` float, feature vectors.
    mean: `[C]`.
    scatter: `[C, C]`, sum of outer products of deviations from the mean.
  """

  num_seen: Array
  mean: Array
  scatter: Array


def zero_moments(num_features: int, dtype: DTypeLike = jnp.float32) -> Moments:
  """The moments of nothing, of `num_features` features, in floats of a type."""
  return Moments(
    jnp.zeros((), dtype),
    jnp.zeros((num_features,), dtype),
    jnp.zeros((num_features, num_features), dtype),
  )


def add_moments(moments: Moments, features: Array) -> Moments:
  """Takes a batch into account.

  Args:
    moments: of the batches before.
    features: `[..., C]` float; every position of a convolution's output is a vector of its own.

  Returns:
    The moments of all, merged by deviations (Chan, Golub and LeVeque 1979), so that a large mean
    costs no digits.
  """
  x = features.reshape(-1, features.shape[-1]).astype(moments.mean.dtype)
  added = jnp.asarray(x.shape[0], x.dtype)
  mean = x.mean(0)
  num_seen = moments.num_seen + added
  apart = mean - moments.mean
  x = x - mean[None]
  between = jnp.outer(apart, apart) * (moments.num_seen * added / num_seen)
  return Moments(
    num_seen, moments.mean + apart * (added / num_seen), moments.scatter + x.T @ x + between
  )


def neuron_scales(moments: Moments) -> Array:
  """`[C]`, what each feature is multiplied with to have variance 1; 0 if it is constant.

  A variance below C times the type's precision times the largest cannot be told from 0.
  """
  variances = jnp.diagonal(moments.scatter) / jnp.maximum(moments.num_seen, 1)
  floor = variances.shape[0] * jnp.finfo(variances.dtype).eps * variances.max()
  varies = variances > floor
  return jnp.where(varies, 1 / jnp.sqrt(jnp.where(varies, variances, 1)), 0)


def scaled_moments(moments: Moments, scales: Array) -> Moments:
  """The moments of features multiplied by `scales` `[C]`."""
  return Moments(
    moments.num_seen, moments.mean * scales, moments.scatter * jnp.outer(scales, scales)
  )


def effective_rank(moments: Moments) -> Array:
  """Effective rank of the centred features: `[]`, from 1 to C; 0 if they are constant.

  The exponential of the entropy of the singular values, taken as shares of their sum (Roy and
  Vetterli, The effective rank, EUSIPCO 2007). Singular values are square roots of the scatter's
  eigenvalues. An eigenvalue below C times the type's precision times the largest cannot be told
  from 0 and is taken as 0. In float32 these are the directions with less than about half a per cent
  of the widest one's spread, many of which would count: start from `zero_moments(C, jnp.float64)`.
  """
  eigenvalues = jnp.linalg.eigvalsh(moments.scatter)
  floor = eigenvalues.shape[0] * jnp.finfo(eigenvalues.dtype).eps * eigenvalues.max()
  singular = jnp.sqrt(jnp.where(eigenvalues > floor, eigenvalues, 0))
  total = singular.sum()
  shares = singular / jnp.where(total > 0, total, 1)
  entropy = -jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0).sum()
  return jnp.where(total > 0, jnp.exp(entropy), 0)


def centred_gram(features: Array) -> Array:
  """The U-centred Gram matrix of a batch, `[B, B]`: zero diagonal, rows and columns sum to 0.

  Args:
    features: `[B, ...]` float, B at least 4; each example's are flattened.

  Raises:
    ValueError: if the batch is smaller.
  """
  size = features.shape[0]
  if size < 4:
    raise ValueError(
      f"The batch has {size} examples; the unbiased similarity needs at least 4: give larger "
      "batches."
    )
  x = features.reshape(size, -1)
  x = x - x.mean(0, keepdims=True)  # without effect but on rounding
  off_diagonal = ~jnp.eye(size, dtype=bool)
  gram = jnp.where(off_diagonal, x @ x.T, 0)
  rows = gram.sum(0) / (size - 2)
  centred = gram - rows[None, :] - rows[:, None] + rows.sum() / (size - 1)
  return jnp.where(off_diagonal, centred, 0)


def add_hsic(total: Array, grams: Array) -> Array:
  """Adds a batch's Hilbert-Schmidt independence criterion of all pairs of layers.

  It is the unbiased estimate with linear kernels (Song et al., Feature selection via dependence
  maximization, JMLR 2012), which Székely and Rizzo's U-centring turns into an inner product of
  centred Gram matrices.

  Args:
    total: `[M, M]`, of the batches before; zeros at first.
    grams: `[M, B, B]`, `centred_gram` of the same B examples in each of M layers.

  Returns:
    `[M, M]` in the type of `total`.
  """
  size = grams.shape[1]
  flat = grams.reshape(grams.shape[0], -1).astype(total.dtype)
  return total + flat @ flat.T / (size * (size - 3))


def cka(total: Array) -> Array:
  """Debiased linear CKA of all pairs of layers, `[M, M]`; nan for a layer of constant features.

  Source: Kornblith et al., Similarity of neural network representations revisited
  (arXiv:1905.00414), in the minibatch form of Nguyen, Raghu and Kornblith (arXiv:2010.15327): the
  ratio is formed of sums over batches of equal size. 1 if one layer's features are the other's
  rotated and scaled; 0 on average if they are unrelated, so it may be slightly negative.

  Args:
    total: from `add_hsic`.
  """
  own = jnp.diagonal(total)
  norm = jnp.sqrt(own[:, None] * own[None, :])
  return jnp.where(norm > 0, total / jnp.where(norm > 0, norm, 1), jnp.nan)
