"""Random condensed layers with their dense twins, for the tests of this folder."""

import jax.numpy as jnp
import numpy as np

from srigl_kernels.format import index_dtype
from srigl_kernels.pattern import Pattern


def random_layer(rng, num_inputs, num_neurons, budget, num_active=None, draw=None):
  """values `[C]`, pattern, and the dense `[I, N]` weights and mask of the same layer."""
  num_active = num_active or num_neurons
  fan_in = budget // num_active
  neurons = np.sort(rng.choice(num_neurons, num_active, replace=False))
  rows = np.stack([np.sort(rng.choice(num_inputs, fan_in, replace=False)) for _ in neurons])
  values, indices = np.zeros(budget, np.float32), np.zeros(budget, index_dtype(num_inputs))
  drawn = rng.normal(size=rows.shape) if draw is None else draw(rng, rows.shape)
  values[: rows.size], indices[: rows.size] = drawn.reshape(-1), rows.reshape(-1)
  active = np.full(num_neurons, num_neurons, np.int32)
  active[:num_active] = neurons
  sizes = jnp.asarray([num_active, fan_in], jnp.int32)
  pattern = Pattern(jnp.asarray(indices), jnp.asarray(active), sizes, (num_inputs, num_neurons))
  weights, mask = dense(values, pattern)
  return jnp.asarray(values), pattern, weights, mask


def dense(values, pattern):
  """The dense `[I, N]` weights and mask; checks that the pattern is a valid one on the way."""
  num_active, fan_in = map(int, pattern.sizes)
  used = num_active * fan_in
  assert used <= pattern.capacity
  active = np.asarray(pattern.active)
  assert np.all(np.diff(active[:num_active]) > 0) and np.all(active[num_active:] == len(active))
  assert not np.any(np.asarray(values)[used:]) and not np.any(np.asarray(pattern.indices)[used:])
  rows = np.asarray(pattern.indices)[:used].reshape(num_active, fan_in).astype(np.int64)
  assert np.all(np.diff(rows, axis=1) > 0) and (not used or rows.max() < pattern.in_features)
  weights = np.zeros((pattern.in_features, len(active)), np.float32)
  mask = np.zeros(weights.shape, bool)
  where = rows, active[:num_active, None]
  weights[where] = np.asarray(values)[:used].reshape(num_active, fan_in)
  mask[where] = True
  return weights, mask
