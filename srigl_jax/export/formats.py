"""How the tensors of an exported network are stored as integers, and the ranges that decide it."""

import math
import warnings
from typing import Any, NamedTuple

import numpy as np

from srigl_jax.export.network import Layer, Network, Pool, Reshape, Step
from srigl_jax.export.run import run_float

CLAMPS = {None: (-math.inf, math.inf), "relu": (0.0, math.inf), "relu6": (0.0, 6.0)}
"""The activations that are limits of what is stored."""


class Format(NamedTuple):
  """How a tensor's integers stand for reals: `(q - zero) * scale`, q in `low..high`."""

  scale: float
  zero: int
  low: int
  high: int

  @property
  def dtype(self) -> np.dtype:
    """The smallest integer type that holds it."""
    return np.min_scalar_type(self.low if self.low < 0 else -1 - self.high)

  def quantize(self, x: Any) -> np.ndarray:
    """Reals as integers, int64; NaN is not allowed."""
    q = np.rint(np.asarray(x, np.float64) / self.scale) + self.zero
    return np.clip(q, self.low, self.high).astype(np.int64)

  def dequantize(self, q: np.ndarray) -> np.ndarray:
    """Integers as reals, float32."""
    return ((q - self.zero) * self.scale).astype(np.float32)


class _Range(NamedTuple):
  """Least and largest value of a step before its activation, and behind it."""

  before: tuple[float, float]
  behind: tuple[float, float]


def find_ranges(network: Network, calibration: Any, *, needed: bool) -> list[_Range] | None:
  """Those of every tensor, the input first."""
  if calibration is None:
    if needed:
      raise ValueError(
        "int8 needs `calibration`, some hundred inputs as the network will see them, "
        f"[B, {', '.join(map(str, network.input_shape))}]: the ranges of its integers are theirs."
      )
    return None
  x = np.asarray(calibration, np.float32)
  if x.shape[1:] != network.input_shape or not len(x) or not np.isfinite(x).all():
    raise ValueError(
      f"`calibration` must be finite and of shape [B, {', '.join(map(str, network.input_shape))}], "
      f"but has shape {x.shape}."
    )
  limits = lambda x: (float(x.min()), float(x.max()))
  found = [_Range(limits(x), limits(x))]
  keep = lambda before, behind: found.append(_Range(limits(before), limits(behind)))
  run_float(network, x, watch=keep)
  return found


def int8_formats(network: Network, ranges: Any) -> tuple[list[Format], list[Format]]:
  """Those of all tensors, and of all steps before their activations."""
  formats, middles = [_affine_format(*ranges[0].behind)], []
  for i, step in enumerate(network.steps):
    before, behind = ranges[i + 1]
    if isinstance(step, Reshape) or (isinstance(step, Pool) and step.kind == "max"):
      middle = formats[step.source]
      out = middle if _is_clamp(step) else _affine_format(*behind)
    else:
      is_last = i == len(network.steps) - 1
      out = _symmetric_format(*behind) if is_last else _affine_format(*behind)
      middle = out if _is_clamp(step) else _affine_format(*before)
    formats.append(out)
    middles.append(middle)
  return formats, middles


def _is_clamp(step: Step) -> bool:
  return (step.activation and step.activation.name) in CLAMPS


def _affine_format(low: float, high: float) -> Format:
  """8 bits for a range, which is widened to hold 0."""
  low, high = min(low, 0.0), max(high, 0.0)
  scale = (high - low) / 255 or 1.0
  return Format(scale, int(np.clip(round(-128 - low / scale), -128, 127)), -128, 127)


def _symmetric_format(low: float, high: float) -> Format:
  """16 bits, for what the caller reads: twice the range seen, so that hardly anything saturates."""
  return Format(2 * max(abs(low), abs(high)) / 32767 or 1.0, 0, -32768, 32767)


def fixed_formats(network: Network, m: int, n: int, ranges: Any) -> list[Format]:
  """The same for all tensors; warns where the ranges, or None, leave it."""
  top = 2 ** (m + n)
  for i, found in enumerate(ranges or ()):
    if max(-found.before[0], found.before[1]) > 2.0**m:
      step = network.steps[i - 1] if i else None
      where = f"what layer {step.name!r} outputs" if isinstance(step, Layer) else f"tensor {i}"
      where = where if i else "the input"
      warnings.warn(
        f"Q{m}.{n} holds reals from {-(2**m)} to {2**m}, but on the calibration data {where} "
        f"goes from {found.before[0]:.3g} to {found.before[1]:.3g} and is limited: take more bits "
        "before the point.",
        stacklevel=4,
      )
  return [Format(2.0**-n, 0, -top, top - 1)] * len(network.shapes)
