"""The topology updates written out neuron by neuron, in numpy doubles and Python loops.

Slow and obvious: what `srigl_jax.topology` is tested against. Everything is a matrix `[I, N]` of
inputs and neurons. Follows the authors' code, except that an over-full neuron keeps its largest
weights (row 1 of docs/algorithm.md) and that exact zeros are never kept (row 2). Ties, which the
authors' code leaves to chance, go to the lower flat index.
"""

from typing import NamedTuple

import numpy as np


class Update(NamedTuple):
  """The new mask and how it came about: `kept` weights, `ablated` neurons, counts."""

  mask: np.ndarray
  kept: np.ndarray
  ablated: list[int]
  fan_in: int
  threshold: float
  num_kept: int
  num_pruned: int


def srigl(weights, grads, mask, *, budget, drop_fraction, gamma_sal, salient_base):
  """One SRigL update of a layer; returns an `Update`."""
  num_inputs, num_neurons = mask.shape
  magnitude, gradient = _magnitudes(weights, grads, mask)
  positions = [(i, j) for i in range(num_inputs) for j in range(num_neurons)]

  num_active = sum(bool(mask[p]) for p in positions)
  num_pruned = int(num_active * float(drop_fraction))
  num_kept = num_active - num_pruned
  num_nonzero = sum(magnitude[p] > 0 for p in positions)
  if num_nonzero < num_kept:
    num_kept = num_nonzero
    num_pruned = num_active - num_kept

  ablated, threshold = [], 0
  if gamma_sal > 0:
    salient = {*_largest(positions, magnitude, num_kept)}
    salient |= {*_largest(positions, gradient, num_pruned)}
    counts = [sum((i, j) in salient for i in range(num_inputs)) for j in range(num_neurons)]
    if gamma_sal >= 1:
      threshold = gamma_sal
    else:
      bases = {"constant_fan_in": budget // num_neurons, "dense_fan_in": num_inputs}
      threshold = max(1, int(gamma_sal * bases[salient_base]))
    threshold = min(threshold, sorted(counts, reverse=True)[budget // num_inputs])
    ablated = [j for j in range(num_neurons) if counts[j] < threshold]
  fan_in = budget // (num_neurons - len(ablated))

  candidates = [(i, j) for i, j in positions if j not in ablated and magnitude[i, j] > 0]
  kept = _largest(candidates, magnitude, num_kept)
  new_mask = np.zeros_like(mask)
  for j in range(num_neurons):
    if j in ablated:
      continue
    chosen = _largest([p for p in kept if p[1] == j], magnitude, fan_in)
    others = [(i, j) for i in range(num_inputs) if (i, j) not in chosen]
    chosen += _largest(others, gradient, fan_in - len(chosen))
    for p in chosen:
      new_mask[p] = True
  kept_mask = np.zeros_like(mask)
  for p in kept:
    kept_mask[p] = True
  return Update(new_mask, kept_mask, ablated, fan_in, threshold, num_kept, num_pruned)


def rigl(weights, grads, mask, *, drop_fraction):
  """One RigL update of a layer; returns the new mask."""
  magnitude, gradient = _magnitudes(weights, grads, mask)
  active = [(i, j) for i, j in np.ndindex(*mask.shape) if mask[i, j]]
  num_pruned = int(len(active) * float(drop_fraction))
  kept = _largest(active, magnitude, len(active) - num_pruned)
  others = [p for p in np.ndindex(*mask.shape) if p not in kept]
  new_mask = np.zeros_like(mask)
  for p in kept + _largest(others, gradient, num_pruned):
    new_mask[p] = True
  return new_mask


def _magnitudes(weights, grads, mask):
  weights, grads = np.asarray(weights, np.float64), np.asarray(grads, np.float64)
  return np.abs(np.where(mask, weights, 0.0)), np.abs(grads)


def _largest(positions, score, k):
  """The k positions of largest score; among equals those that come first in row-major order."""
  return sorted(positions, key=lambda p: (-score[p], p))[: max(k, 0)]
