"""An exported network on examples in numpy: in float32, and with the integers of its C code."""

from collections.abc import Callable
from typing import Any

import numpy as np

from srigl_jax.export import activations
from srigl_jax.export.network import Add, Layer, Network, Pool, Step, as_image, patches

_CHUNK = 64  # examples at a time: the patches of a convolution take memory

Watch = Callable[[np.ndarray, np.ndarray], None]


def run_float(network: Network, x: np.ndarray, *, watch: Watch | None = None) -> np.ndarray:
  """Computes a network in float32.

  Args:
    network: the network.
    x: `[B, *input_shape]` float32.
    watch: is given the output of every step before and behind its activation.

  Returns:
    `[B, *output_shape]` float32.
  """
  tensors = [np.asarray(x, np.float32)]
  for step in network.steps:
    before = _float_step(step, tensors)
    behind = activations.compute(step.activation, before)
    if watch is not None:
      watch(before, behind)
    tensors.append(behind)
  return tensors[-1]


def _float_step(step: Step, tensors: list[np.ndarray]) -> np.ndarray:
  x = tensors[step.source]
  if isinstance(step, Layer):
    y = _product(x, step, step.dense) + step.bias
  elif isinstance(step, Pool):
    fill = -np.inf if step.kind == "max" else 0.0
    seen = patches(_images(x), step.window, fill)
    y = seen.max(axis=3) if step.kind == "max" else seen.sum(axis=3) * np.float32(step.factor)
  elif isinstance(step, Add):
    y = x + tensors[step.other]
  else:
    y = x
  return y.reshape(len(x), *step.shape).astype(np.float32)


def run_integers(plan: Any, q: np.ndarray) -> np.ndarray:
  """Computes what the C code of an integer plan computes, bit for bit, but for a softmax.

  Args:
    plan: an `arithmetic.Plan`, not of float32.
    q: `[B, *input_shape]` integers in the format of the input.

  Returns:
    `[B, *output_shape]` int64, in the format of the output.
  """
  tensors = [np.asarray(q, np.int64)]
  for step, numbers in zip(plan.network.steps, plan.numbers, strict=True):
    formats = [plan.formats[step.source]]
    if isinstance(step, Add):
      formats.append(plan.formats[step.other])
    y = _integer_step(step, numbers, tensors, formats)
    y = np.clip(y, numbers.low, numbers.high)
    tensors.append(look_up(numbers.table, y).reshape(len(q), *step.shape))
  return tensors[-1]


def _integer_step(step: Step, numbers: Any, tensors: list[np.ndarray], formats: Any) -> np.ndarray:
  x, zero = tensors[step.source], formats[0].zero
  if isinstance(step, Layer):
    kernel = np.zeros((step.num_inputs, step.num_neurons), np.int64)
    kernel[step.indices, step.active[:, None]] = numbers.weights
    total = _product(x, step, kernel, zero) + numbers.bias
  elif isinstance(step, Pool):
    is_max = step.kind == "max"
    seen = patches(_images(x), step.window, np.iinfo(np.int32).min if is_max else zero)
    if is_max:
      return seen.max(axis=3)
    total = (seen - zero).sum(axis=3)
  elif isinstance(step, Add):
    a, b = numbers.multiplier
    total = (x - zero) * a + (tensors[step.other] - formats[1].zero) * b
    return _shifted(total, numbers.shift[0]) + numbers.middle.zero
  else:
    return x
  if numbers.multiplier is not None:
    total = total * numbers.multiplier
  return _shifted(total, numbers.shift) + numbers.middle.zero


def _shifted(x: np.ndarray, shift: Any) -> np.ndarray:
  """`x / 2**shift`, rounded to the nearest, halves up."""
  half = np.where(shift > 0, 1 << np.maximum(shift - 1, 0), 0)
  return (x + half) >> shift


def look_up(table: Any, x: np.ndarray) -> np.ndarray:
  """Applies the table of an activation, or None, to integers."""
  if table is None:
    return x
  if table.bits is None:
    return table.values[x - table.low]
  at = x - table.low
  segment = np.clip(at >> table.bits, 0, len(table.values) - 2)
  fraction = at - (segment << table.bits)
  first = table.values[segment]
  rise = (table.values[segment + 1] - first) * fraction
  return np.clip(first + _shifted(rise, np.int64(table.bits)), table.least, table.most)


def softmax(x: np.ndarray) -> np.ndarray:
  """Over the last axis, float32."""
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return (e / e.sum(axis=-1, keepdims=True)).astype(np.float32)


def _product(x: np.ndarray, step: Layer, kernel: np.ndarray, fill: float = 0) -> np.ndarray:
  """`[B, H', W', N]`: what each position sees, times a kernel `[I, N]`, a part at a time."""
  if kernel.dtype == np.int64 and np.abs(kernel).sum(axis=0).max(initial=0) < 2**21:
    kernel = kernel.astype(np.float64)  # exact up to 2**53 with 32-bit inputs, and much faster
  parts = []
  for start in range(0, len(x), _CHUNK):
    seen = patches(_images(x[start : start + _CHUNK]), step.window, fill)
    seen = seen.reshape(*seen.shape[:3], -1)
    parts.append(seen.astype(kernel.dtype) @ kernel)
  y = np.concatenate(parts)
  return y.astype(np.int64) if x.dtype.kind == "i" else y


def _images(x: np.ndarray) -> np.ndarray:
  return x.reshape(len(x), *as_image(x.shape[1:]))
