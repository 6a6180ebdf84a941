"""The numbers that an exported network computes with: float32, int8, or fixed point Qm.n.

Sums of products are exact: each layer's accumulator is as wide as its weights can ever need. What
is stored is rounded to the nearest and limited to the range of its format.
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import numpy as np

from srigl_jax.export import activations
from srigl_jax.export.formats import CLAMPS, Format, find_ranges, fixed_formats, int8_formats
from srigl_jax.export.network import Layer, Network, Pool, Reshape, Step, sources

TABLE_SEGMENTS = 256


class Table(NamedTuple):
  """An activation by its values: one for each integer, or at the ends of segments between them.

  Attributes:
    values: `[high - low + 1]`, or `[TABLE_SEGMENTS + 1]`, int64.
    low: the integer of the first.
    bits: of a segment, `2**bits` integers wide; None if each integer has its value.
    least, most: limits of what is computed between the values, and beyond them.
  """

  values: np.ndarray
  low: int
  bits: int | None
  least: int
  most: int


@dataclasses.dataclass(frozen=True, eq=False)
class Numbers:
  """What a step computes with.

  Attributes:
    accumulator: "float", "int32_t" or "int64_t"; of products and sums.
    weights: of a layer `[A, K]`, float32 or int64; else None.
    bias: of a layer `[N]`, float32 or int64, in units of the accumulator; else None.
    multiplier: `[N]` or `[1]` int64, of an addition `[2]`: what the sum (of an addition: each
      tensor) is multiplied by before the shift; None: by 1.
    shift: `[N]` or `[1]` int64: the rounded shift to the right behind it; None in float32.
    middle: the format of that; what `table` is given.
    low, high: limits of that, narrower where ReLU or ReLU6 is part of it.
    table: the activation, if it is another one.
  """

  accumulator: str
  weights: np.ndarray | None = None
  bias: np.ndarray | None = None
  multiplier: np.ndarray | None = None
  shift: np.ndarray | None = None
  middle: Format | None = None
  low: int = 0
  high: int = 0
  table: Table | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """A network with its numbers.

  Attributes:
    network: what is computed.
    name: of the arithmetic: "float32", "int8" or "q3.12".
    formats: of every tensor; None for float32.
    numbers: of every step.
    softmax: whether the output, then float32, goes through a softmax.
  """

  network: Network
  name: str
  formats: tuple[Format | None, ...]
  numbers: tuple[Numbers, ...]
  softmax: bool


def plan(
  network: Network, arithmetic: str, calibration: np.ndarray | None, *, softmax: bool
) -> Plan:
  """Chooses the numbers of a network.

  Args:
    network: the network.
    arithmetic: "float32", "int8", or "qM.N" with 2 to 32 bits in all, the sign apart.
    calibration: `[B, *input_shape]`, examples of the input; int8 needs them for its ranges, fixed
      point warns where they leave its range.
    softmax: whether a softmax follows.

  Raises:
    ValueError: if the arithmetic is unknown, int8 has no calibration, or a weight does not fit.
  """
  for step in network.steps:
    if isinstance(step, Layer) and not all(np.isfinite(x).all() for x in (step.values, step.bias)):
      raise ValueError(f"Layer {step.name!r} has weights that are not finite (NaN or infinity).")
  fixed = re.fullmatch(r"q(\d{1,2})\.(\d{1,2})", str(arithmetic))
  if arithmetic == "float32":
    numbers = [
      Numbers("float", step.values, step.bias) if isinstance(step, Layer) else Numbers("float")
      for step in network.steps
    ]
    return Plan(network, arithmetic, (None,) * len(network.shapes), tuple(numbers), softmax)
  if arithmetic != "int8" and not (fixed and 2 <= 1 + int(fixed[1]) + int(fixed[2]) <= 32):
    raise ValueError(
      f"`arithmetic` is {arithmetic!r}; it must be 'float32', 'int8', or fixed point 'qM.N', such "
      "as 'q3.12': M bits before the point and N behind it, with the sign 2 to 32 in all."
    )
  ranges = find_ranges(network, calibration, needed=arithmetic == "int8")
  if fixed:
    formats = fixed_formats(network, int(fixed[1]), int(fixed[2]), ranges)
    middles = [formats[0]] * len(network.steps)
  else:
    formats, middles = int8_formats(network, ranges)
  numbers = [
    _numbers(step, [formats[i] for i in sources(step)], middle, out, bool(fixed))
    for step, middle, out in zip(network.steps, middles, formats[1:], strict=True)
  ]
  return Plan(network, arithmetic, tuple(formats), tuple(numbers), softmax)


def _numbers(
  step: Step, given: list[Format], middle: Format, out: Format, is_fixed: bool
) -> Numbers:
  """The integers of a step that reads tensors of these formats."""
  name = step.activation and step.activation.name
  low, high = middle.low, middle.high
  table = None
  if name in CLAMPS:
    least, most = CLAMPS[name]
    low = low if least == -math.inf else int(middle.quantize(least))
    high = high if most == math.inf else int(middle.quantize(most))
  else:
    table = _table(step.activation, middle, out)
  rest: dict[str, Any] = {"middle": middle, "low": low, "high": high, "table": table}
  if isinstance(step, Reshape) or (isinstance(step, Pool) and step.kind == "max"):
    return Numbers("int32_t", **rest)
  widest = [max(-f.low, f.high) for f in given]
  if isinstance(step, Layer):
    return _layer_numbers(step, given[0], widest[0], middle, is_fixed, rest)
  if isinstance(step, Pool):
    size = math.prod(step.window.size)
    bound = size * (widest[0] + abs(given[0].zero))
    real = step.factor * given[0].scale / middle.scale
    multiplier, shift = _as_integers(np.array([real]), bound)
    return Numbers(_accumulator(bound, "a pooling"), None, None, multiplier, shift, **rest)
  if is_fixed:
    ones = np.ones(2, np.int64)
    return Numbers("int64_t", None, None, ones, np.zeros(1, np.int64), **rest)
  bound = 2 * max(w + abs(f.zero) for w, f in zip(widest, given, strict=True))
  reals = np.array([f.scale / middle.scale for f in given])
  multiplier, shift = _as_integers(reals, bound, shared=True)
  return Numbers("int64_t", None, None, multiplier, shift, **rest)


def _layer_numbers(
  step: Layer, given: Format, widest: int, middle: Format, is_fixed: bool, rest: Any
) -> Numbers:
  if is_fixed:
    scales = np.full(step.num_neurons, given.scale)
    weights = np.rint(step.values / given.scale)
    if weights.size and not given.low <= weights.min() <= weights.max() <= given.high:
      worst = float(np.abs(step.values).max())
      raise ValueError(
        f"Layer {step.name!r} has a weight of size {worst:.4g}, which does not fit into fixed "
        f"point with reals below {given.high * given.scale:.4g}: take more bits before the point."
      )
  else:
    scales = np.ones(step.num_neurons)
    largest = np.abs(step.values).max(axis=1, initial=0) / 127.0
    scales[step.active] = np.where(largest > 0, largest, 1.0)
    weights = np.rint(step.values / scales[step.active, None])
  weights = weights.astype(np.int64)
  unit = scales * given.scale
  bias = step.bias / unit
  bias[step.active] -= given.zero * weights.sum(axis=1)
  bound = np.abs(bias)
  bound[step.active] += np.abs(weights).sum(axis=1) * float(widest)
  most = float(bound.max(initial=0))
  multiplier, shift = None, np.array([round(-math.log2(given.scale))])
  if is_fixed:
    most += 2.0 ** (int(shift[0]) - 1)  # for rounding
  else:
    multiplier, shift = _as_integers(unit / middle.scale, most)
  accumulator = _accumulator(most, f"layer {step.name!r}")
  return Numbers(accumulator, weights, np.rint(bias).astype(np.int64), multiplier, shift, **rest)


def _accumulator(bound: float, what: str) -> str:
  """The type that holds every sum up to a bound."""
  if bound >= 2.0**62:
    raise ValueError(f"Sums of {what} may leave 64 bits: take a fixed point of fewer bits.")
  return "int32_t" if bound < 2.0**31 - 1 else "int64_t"


def _as_integers(
  reals: np.ndarray, bound: float, *, shared: bool = False
) -> tuple[np.ndarray, np.ndarray]:
  """Factors of sums up to a bound as `multiplier / 2**shift`, of up to 31 bits.

  Raises:
    ValueError: if a factor is too large.
  """
  bits = min(31, 61 - math.ceil(math.log2(bound + 1)))
  exponents = np.frexp(reals)[1]
  if shared:
    exponents = np.full(len(reals), exponents.max())
  shift = np.minimum(bits - exponents, 62)
  if bits < 8 or shift.min(initial=1) < 1:
    raise ValueError(
      f"The scales of the integers differ by {reals.max():.3g}, too much: is the calibration data "
      "what the network will see?"
    )
  multiplier = np.minimum(np.rint(np.ldexp(reals, shift)), 2.0**31 - 1)
  return multiplier.astype(np.int64), shift.astype(np.int64)


def _table(activation: Any, middle: Format, out: Format) -> Table:
  """An activation as a table from integers of `middle` to those of `out`."""
  if middle.high - middle.low < TABLE_SEGMENTS:
    bits, points = None, np.arange(middle.low, middle.high + 1)
  else:  # from -8 to 8; beyond, the outermost segments are continued
    reach = min(max(middle.high, -middle.low) + 1, round(8 / middle.scale))
    reach = max(reach, TABLE_SEGMENTS // 2)
    bits = (2 * reach // TABLE_SEGMENTS).bit_length() - 1
    points = -reach + np.arange(TABLE_SEGMENTS + 1) * 2**bits
  reals = (points - middle.zero) * middle.scale
  values = out.quantize(activations.compute(activation, reals))
  return Table(values, int(points[0]), bits, out.low, out.high)
