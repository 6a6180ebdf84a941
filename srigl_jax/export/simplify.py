"""A `Network` with fewer steps and neurons that computes the same, up to rounding."""

import dataclasses
from typing import Any

import numpy as np

from srigl_jax.export import activations
from srigl_jax.export.layer_steps import is_affine
from srigl_jax.export.network import Add, Layer, Network, Pool, Step, Window, as_image, sources


def simplify(network: Network) -> Network:
  """Folds factors and activations into the steps beside them, and removes neurons in vain.

  An element-wise factor becomes part of the layer before or behind it, an activation part of the
  step before it. Neurons of a linear layer that output a constant, or that nothing reads, are
  removed where another linear layer alone reads them; constants go into its bias.
  """
  steps = [*network.steps]
  i = 0
  while i < len(steps):
    current = Network(network.input_shape, tuple(steps))
    folded = _fold(current, i)
    if folded is None:
      i += 1
    else:
      steps, i = folded, max(0, i - 2)
  for i in range(len(steps) - 2, -1, -1):
    reader = _single_reader(Network(network.input_shape, tuple(steps)), i)
    if reader is not None:
      steps[i], steps[reader] = _without_idle(steps[i], steps[reader])
  return Network(network.input_shape, tuple(steps))


def _single_reader(network: Network, i: int) -> int | None:
  """The step that alone reads what step `i` outputs; None if there are others, or the caller."""
  readers = [j for j, step in enumerate(network.steps) if i + 1 in sources(step)]
  return readers[0] if len(readers) == 1 and i + 1 < len(network.steps) else None


def _fold(network: Network, i: int) -> list[Step] | None:
  """The steps without step `i`, or None if it must stay."""
  steps, step = [*network.steps], network.steps[i]
  if not is_affine(step) or (i == len(steps) - 1 and step.source != i):
    return None
  assert isinstance(step, Layer)
  factor, shift = step.values[:, 0], step.bias
  is_identity = bool((factor == 1).all() and (shift == 0).all())
  before = step.source - 1
  if before >= 0 and _single_reader(network, before) == i:
    into = steps[before]
    if into.activation is None and not is_affine(into):
      merged: Any = None
      if is_identity and isinstance(into, Layer | Pool | Add):
        merged = into
      elif isinstance(into, Layer):
        scaled = into.values * factor[into.active, None]
        merged = dataclasses.replace(into, values=scaled, bias=into.bias * factor + shift)
      elif isinstance(into, Pool) and _is_one_factor(into, factor, shift):
        merged = dataclasses.replace(into, factor=into.factor * float(factor[0]))
      if merged is not None:
        steps[before] = dataclasses.replace(merged, activation=step.activation)
        return _removed(steps, i)
  behind = _single_reader(network, i)
  if step.activation is None and behind is not None:
    into = steps[behind]
    channels = as_image(step.shape)[2]
    if isinstance(into, Layer) and not (into.window.is_padded and shift.any()):
      channel = into.indices % channels
      bias = into.bias.copy()
      bias[into.active] += (into.values * shift[channel]).sum(axis=1)
      values = into.values * factor[channel]
      steps[behind] = dataclasses.replace(into, values=values, bias=bias)
      return _removed(steps, i)
  return None


def _is_one_factor(pool: Pool, factor: np.ndarray, shift: np.ndarray) -> bool:
  return pool.kind == "sum" and not shift.any() and len({*factor.tolist()}) == 1


def _removed(steps: list[Step], i: int) -> list[Step]:
  """Without step `i`, whose readers read what it read."""
  new = lambda tensor: steps[i].source if tensor == i + 1 else tensor - (tensor > i + 1)
  kept: list[Step] = []
  for j, step in enumerate(steps):
    if j == i:
      continue
    if isinstance(step, Add):
      step = dataclasses.replace(step, other=new(step.other))
    kept.append(dataclasses.replace(step, source=new(step.source)))
  return kept


def _without_idle(layer: Step, reader: Step) -> tuple[Step, Step]:
  """Two linear layers without the neurons between them that are constant or that nothing reads."""
  if not (isinstance(layer, Layer) and isinstance(reader, Layer)):
    return layer, reader
  if layer.window != Window() or reader.window != Window() or len(layer.shape) != 1:
    return layer, reader
  is_active = np.zeros(layer.num_neurons, bool)
  is_active[layer.active] = True
  is_active[layer.active[~layer.values.any(axis=1)]] = False
  is_read = np.zeros(layer.num_neurons, bool)
  is_read[reader.indices[reader.values != 0]] = True
  keep = is_active & is_read
  if keep.all() or not keep.any():
    return layer, reader
  constants = np.where(is_active, 0, activations.compute(layer.activation, layer.bias))
  bias = reader.bias.copy()
  bias[reader.active] += (reader.values * constants[reader.indices]).sum(axis=1)
  rows = keep[layer.active]
  number = np.cumsum(keep) - 1
  smaller = dataclasses.replace(
    layer,
    shape=(int(keep.sum()),),
    values=layer.values[rows],
    indices=layer.indices[rows],
    active=number[layer.active[rows]],
    bias=layer.bias[keep],
  )
  return smaller, _with_inputs(reader, keep, bias)


def _with_inputs(layer: Layer, keep: np.ndarray, bias: np.ndarray) -> Layer:
  """A layer that reads only the inputs of `keep`: rows shrink to the largest fan-in left."""
  number, num_inputs = np.cumsum(keep) - 1, int(keep.sum())
  dense, rows = layer.dense[keep], []
  on = np.zeros(dense.shape, bool)
  stays = keep[layer.indices] & (layer.values != 0)
  row = np.broadcast_to(layer.active[:, None], layer.indices.shape)
  on[number[layer.indices[stays]], row[stays]] = True
  fan_in = max(1, int(on.sum(axis=0).max(initial=0)))
  for neuron in layer.active:  # those with fewer weights read others with a weight of 0
    order = np.argsort(~on[:, neuron], kind="stable")[:fan_in]
    rows.append(np.sort(order))
  indices = np.array(rows, np.int64).reshape(len(layer.active), fan_in)
  values = dense[indices, layer.active[:, None]]
  return dataclasses.replace(
    layer, values=values, indices=indices, bias=bias, num_inputs=num_inputs
  )
