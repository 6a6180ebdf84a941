"""How alike two sets of images are, in their pixels: for images too small for a network's features.

Means and covariances of pixels say whether samples vary as images do, not whether each could be
one of them. Distances to the nearest training image tell copies of it.
"""

import numpy as np


def frechet_distance(one: np.ndarray, other: np.ndarray) -> float:
  """The Fréchet distance of two sets of images, each taken for a normal distribution of pixels.

  With few images it is more than 0 also for two sets of one distribution: compare it with that of
  training and test images.

  Args:
    one: `[N, H, W, C]`, two images or more.
    other: `[M, H, W, C]`, likewise.

  Returns:
    The squared distance of the means and covariances, in squares of the pixels' unit.

  Raises:
    ValueError: if there are fewer than two images, or their sizes differ.

  Source: Heusel et al., GANs Trained by a Two Time-Scale Update Rule (arXiv:1706.08500), equation
  6, of pixels in place of features.
  """
  one, other = _flat(one, other)
  if min(len(one), len(other)) < 2:
    raise ValueError(f"There are {len(one)} and {len(other)} images; give two or more of each.")
  covariances = [np.cov(images, rowvar=False) for images in (one, other)]
  root = _root(covariances[0])
  shared = np.trace(_root(root @ covariances[1] @ root))
  means = ((one.mean(0) - other.mean(0)) ** 2).sum()
  # Rounding can make what is 0 a little less.
  return float(max(0.0, means + sum(map(np.trace, covariances)) - 2 * shared))


def nearest_distances(images: np.ndarray, others: np.ndarray) -> np.ndarray:
  """The distance from each of `[N, H, W, C]` images to the nearest of some others, `[N]`.

  Raises:
    ValueError: if their sizes differ.
  """
  one, other = _flat(images, others)
  squares = (one**2).sum(1)[:, None] + (other**2).sum(1)[None] - 2 * one @ other.T
  return np.sqrt(np.maximum(squares.min(1), 0))


def _flat(*sets: np.ndarray) -> list[np.ndarray]:
  shapes = {images.shape[1:] for images in sets}
  if len(shapes) != 1:
    raise ValueError(f"The images have the shapes {sorted(shapes)}; they must be of one size.")
  return [images.reshape(len(images), -1).astype(np.float64) for images in sets]


def _root(matrix: np.ndarray) -> np.ndarray:
  """The square root of a symmetric matrix without negative eigenvalues."""
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
