"""The condensed product and its gradients in float64 numpy, and how close is close enough."""

import jax.numpy as jnp
import numpy as np


def dense_matrix(condensed):
  """`[I, N]` float64."""
  matrix = np.zeros((condensed.in_features, condensed.out_features))
  values, indices = np.asarray(condensed.values, float), np.asarray(condensed.indices)
  for row, neuron in enumerate(np.asarray(condensed.active)):
    matrix[indices[row], neuron] = values[row]
  return matrix


def activate(z, activation):
  """The activation and its derivative."""
  if activation == "relu":
    return np.maximum(z, 0), (z > 0).astype(float)
  if activation == "gelu":
    inner = np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)
    slope = np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * z**2)
    tanh = np.tanh(inner)
    return 0.5 * z * (1 + tanh), 0.5 * (1 + tanh) + 0.5 * z * (1 - tanh**2) * slope
  return z, np.ones_like(z)


def matmul(x, condensed, activation=None):
  bias = 0 if condensed.bias is None else np.asarray(condensed.bias, float)
  return activate(np.asarray(x, float) @ dense_matrix(condensed) + bias, activation)[0]


def gradients(x, condensed, g, activation=None):
  """Gradients in x, values and bias of `sum(g * y)`."""
  z = matmul(x, condensed)
  g = (np.asarray(g, float) * activate(z, activation)[1]).reshape(-1, condensed.out_features)
  rows = np.asarray(x, float).reshape(-1, condensed.in_features)
  dx = (g @ dense_matrix(condensed).T).reshape(np.shape(x))
  active = np.asarray(condensed.active)[:, None]
  dvalues = (rows.T @ g)[np.asarray(condensed.indices), active]
  return dx, dvalues, g.sum(0)


def assert_close(actual, expected, num_terms):
  """Checks sums of `num_terms` products, added in float32 in any order.

  The tolerance is 8 units in the last place of the largest entry, times the square root of the
  number of terms; results in bfloat16 may also be off by their own rounding, twice.
  """
  scale = max(1.0, np.abs(expected).max(initial=0))
  rounding = 2**-7 if actual.dtype == jnp.bfloat16 else 0
  np.testing.assert_allclose(
    np.asarray(actual, float),
    expected,
    rtol=rounding,
    atol=8 * 2**-23 * np.sqrt(max(num_terms, 1)) * scale,
  )
