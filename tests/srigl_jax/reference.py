"""The topology updates written out neuron by neuron, in numpy doubles and Python loops.

Slow and obvious: what `srigl_jax.methods` is tested against. Everything is a matrix `[I, N]` of
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


def srigl(
  weights, grads, mask, *, budget, drop_fraction, gamma_sal, salient_base, block_size=None, group=1
):
  """One SRigL update of a layer; returns an `Update`.

  With `block_size`, the fan-in is that of each block of inputs; with `group`, neurons are groups.
  """
  if group > 1:
    update = srigl(
      _of_groups(np.where(mask, weights, 0), group),
      _of_groups(grads, group),
      _of_groups(mask, group) > 0,
      budget=budget // group,
      drop_fraction=drop_fraction,
      gamma_sal=gamma_sal,
      salient_base=salient_base,
      block_size=block_size,
    )
    return update._replace(mask=np.repeat(update.mask, group, axis=1))
  num_inputs, num_neurons = mask.shape
  magnitude, gradient = _magnitudes(weights, grads, mask)
  positions = [(i, j) for i in range(num_inputs) for j in range(num_neurons)]
  block_size = block_size or num_inputs
  num_blocks = num_inputs // block_size

  num_active = sum(bool(mask[p]) for p in positions)
  num_pruned = int(num_active * float(drop_fraction))
  num_kept = num_active - num_pruned
  num_nonzero = sum(magnitude[p] > 0 for p in positions)
  if num_nonzero < num_kept:
    num_kept = num_nonzero
    num_pruned = num_active - num_kept

  ablated, threshold = [], 0
  if gamma_sal > 0:
    salient = {*_topk_mask(positions, magnitude, num_kept)}
    salient |= {*_topk_mask(positions, gradient, num_pruned)}
    counts = [sum((i, j) in salient for i in range(num_inputs)) for j in range(num_neurons)]
    if gamma_sal >= 1:
      threshold = gamma_sal
    else:
      constant = budget // (num_neurons * num_blocks) * num_blocks
      bases = {"constant_fan_in": constant, "dense_fan_in": num_inputs}
      threshold = max(1, int(gamma_sal * bases[salient_base]))
    threshold = min(threshold, sorted(counts, reverse=True)[budget // num_inputs])
    ablated = [j for j in range(num_neurons) if counts[j] < threshold]
  fan_in = budget // ((num_neurons - len(ablated)) * num_blocks)

  candidates = [(i, j) for i, j in positions if j not in ablated and magnitude[i, j] > 0]
  kept = _topk_mask(candidates, magnitude, num_kept)
  new_mask = np.zeros_like(mask)
  for j, block in np.ndindex(num_neurons, num_blocks):
    if j in ablated:
      continue
    here = [(i, j) for i in range(block * block_size, (block + 1) * block_size)]
    chosen = _topk_mask([p for p in kept if p in here], magnitude, fan_in)
    others = [p for p in here if p not in chosen]
    chosen += _topk_mask(others, gradient, fan_in - len(chosen))
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
  kept = _topk_mask(active, magnitude, len(active) - num_pruned)
  others = [p for p in np.ndindex(*mask.shape) if p not in kept]
  new_mask = np.zeros_like(mask)
  for p in kept + _topk_mask(others, gradient, num_pruned):
    new_mask[p] = True
  return new_mask


def snfs(layers, *, drop_fraction):
  """One SNFS update: `[(weights, scores, mask)]` of all layers; returns their new masks."""
  kept, means, lost = [], [], 0
  for weights, scores, mask in layers:
    magnitude, momentum = _magnitudes(weights, scores, mask)
    active = [p for p in np.ndindex(*mask.shape) if mask[p]]
    num_pruned = int(len(active) * float(drop_fraction))
    kept.append(_topk_mask(active, magnitude, len(active) - num_pruned))
    means.append(sum(momentum[p] for p in active) / max(len(active), 1))
    lost += num_pruned
  parts = divide(lost, means, [m.size - len(k) for (_, _, m), k in zip(layers, kept, strict=True)])
  new_masks = []
  for (weights, scores, mask), stays, part in zip(layers, kept, parts, strict=True):
    _, momentum = _magnitudes(weights, scores, mask)
    others = [p for p in np.ndindex(*mask.shape) if p not in stays]
    new_masks.append(np.zeros_like(mask))
    for p in stays + _topk_mask(others, momentum, part):
      new_masks[-1][p] = True
  return new_masks


def divide(total, weights, room):
  """Whole parts of `total` in proportion to `weights`, none above `room`."""
  parts = [0] * len(room)
  while sum(parts) < total:
    rest, given, running = total - sum(parts), 0, 0.0
    shares = [w if n < r else 0.0 for w, n, r in zip(weights, parts, room, strict=True)]
    if not any(shares):
      shares = [float(n < r) for n, r in zip(parts, room, strict=True)]
    last = max(i for i, s in enumerate(shares) if s)
    for i, s in enumerate(shares):
      running += s
      bound = rest if i >= last else int(rest * (running / sum(shares)))
      parts[i] = min(parts[i] + bound - given, room[i])
      given = bound
  return parts


def largest_of_all(arrays, masks, num_kept):
  """The `num_kept` largest magnitudes of several arrays, among active entries; returns masks."""
  flat = [(-abs(float(x[p])), i, p) for i, (x, m) in enumerate(zip(arrays, masks, strict=True))
          for p in np.ndindex(*m.shape) if m[p]]  # fmt: skip
  new_masks = [np.zeros_like(m) for m in masks]
  for _, i, p in sorted(flat)[:num_kept]:
    new_masks[i][p] = True
  return new_masks


def n_of_m(weights, n, m):
  """The n largest magnitudes in every m consecutive rows of each column; returns the mask."""
  mask = np.zeros(weights.shape, bool)
  for j, block in np.ndindex(weights.shape[1], len(weights) // m):
    here = [(i, j) for i in range(block * m, (block + 1) * m)]
    for p in _topk_mask(here, np.abs(weights), n):
      mask[p] = True
  return mask


def _of_groups(x, group):
  return np.stack(
    [np.abs(np.asarray(x[:, j : j + group], np.float64)).sum(1)
     for j in range(0, x.shape[1], group)], 1
  )  # fmt: skip


def _magnitudes(weights, grads, mask):
  weights, grads = np.asarray(weights, np.float64), np.asarray(grads, np.float64)
  return np.abs(np.where(mask, weights, 0.0)), np.abs(grads)


def _topk_mask(positions, score, k):
  """The k positions of largest score; among equals those that come first in row-major order."""
  return sorted(positions, key=lambda p: (-score[p], p))[: max(k, 0)]
