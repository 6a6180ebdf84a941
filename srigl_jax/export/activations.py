"""Element-wise functions: what they compute, and which of them a traced function is."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from srigl_jax.export.network import Activation
from srigl_jax.programs.elementwise import GRID, same_values


class Function(NamedTuple):
  """An element-wise function.

  Attributes:
    compute: `(x, alpha) -> y`, float64.
    c: its body in C99 for a float `x`; `{alpha}` is the parameter.
  """

  compute: Callable[[np.ndarray, float], np.ndarray]
  c: str


_erf = np.vectorize(math.erf, otypes=[np.float64])


def _logistic(x: np.ndarray) -> np.ndarray:
  return np.where(x >= 0, 1, np.exp(-np.abs(x))) / (1 + np.exp(-np.abs(x)))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_TANH_GELU_C = "0.5f * x * (1.0f + tanhf(0.797884561f * (x + 0.044715f * x * x * x)))"

ACTIVATIONS: dict[str, Function] = {
  "relu": Function(lambda x, _: np.maximum(x, 0), "x > 0.0f ? x : 0.0f"),
  "relu6": Function(lambda x, _: np.clip(x, 0, 6), "x > 0.0f ? (x < 6.0f ? x : 6.0f) : 0.0f"),
  "leaky_relu": Function(lambda x, a: np.where(x >= 0, x, a * x), "x >= 0.0f ? x : {alpha} * x"),
  "tanh": Function(lambda x, _: np.tanh(x), "tanhf(x)"),
  "sigmoid": Function(lambda x, _: _logistic(x), "1.0f / (1.0f + expf(-x))"),
  "silu": Function(lambda x, _: x * _logistic(x), "x / (1.0f + expf(-x))"),
  "gelu": Function(lambda x, _: _gelu_tanh(x), _TANH_GELU_C),
  "gelu_exact": Function(
    lambda x, _: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
    "0.5f * x * (1.0f + erff(0.707106781f * x))",
  ),
  "elu": Function(
    lambda x, a: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))),
    "x > 0.0f ? x : {alpha} * expm1f(x)",
  ),
  "hard_sigmoid": Function(
    lambda x, _: np.clip(x + 3, 0, 6) / 6,
    "x > -3.0f ? (x < 3.0f ? (x + 3.0f) * 0.166666667f : 1.0f) : 0.0f",
  ),
  "hard_swish": Function(
    lambda x, _: x * np.clip(x + 3, 0, 6) / 6,
    "x > -3.0f ? (x < 3.0f ? x * (x + 3.0f) * 0.166666667f : x) : 0.0f",
  ),
  "softplus": Function(
    lambda x, _: np.logaddexp(x, 0), "(x > 0.0f ? x : 0.0f) + log1pf(expf(-fabsf(x)))"
  ),
}
"""By name; "gelu" is JAX's default, which approximates it by tanh."""


def compute(activation: Activation | None, x: np.ndarray) -> np.ndarray:
  """Applies an activation, or None, in the type of x if that is floating."""
  if activation is None:
    return x
  y = ACTIVATIONS[activation.name].compute(np.asarray(x, np.float64), activation.alpha)
  return y.astype(x.dtype) if x.dtype.kind == "f" else y


def recognize(on_grid: np.ndarray) -> Activation | tuple[float, float] | None:
  """Which function has these values on `GRID`.

  Args:
    on_grid: of the shape of `GRID`.

  Returns:
    An activation; or `(factor, shift)` if the function is `factor * x + shift`; or None.
  """
  x, y = GRID.astype(np.float64), np.asarray(on_grid, np.float64)
  same = functools.partial(same_values, y)
  at = lambda value: float(y[np.flatnonzero(np.float32(value) == GRID)[0]])
  shift = at(0)
  factor = (at(100) - at(-100)) / 200
  if same(factor * x + shift):
    return factor, shift
  alphas = {"leaky_relu": -at(-1), "elu": at(-100) / math.expm1(-100)}
  for name, function in ACTIVATIONS.items():
    alpha = alphas.get(name, 0.0)
    if np.isfinite(alpha) and same(function.compute(x, alpha)):
      return Activation(name, float(np.float32(alpha)))
  return None
