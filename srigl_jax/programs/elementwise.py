"""Element-wise functions in traced programs, told by what they compute, however it is written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op, called, evaluate, inline

GRID = np.concatenate(
  [np.linspace(-12, 12, 481), [-1e3, -100, -30, 0, 30, 100, 1e3], np.linspace(-1, 1, 64)]
).astype(np.float32)
"""Where functions are compared."""

_SAME_VALUE = {"copy", "copy_p", "stop_gradient", "optimization_barrier"}
_ELEMENTWISE = {
  "abs", "add", "add_any", "clamp", "convert_element_type", "div", "eq", "erf", "erfc", "exp",
  "exp2", "expm1", "ge", "gt", "integer_pow", "is_finite", "le", "log", "log1p", "logistic", "lt",
  "max", "min", "mul", "ne", "neg", "pow", "rsqrt", "select_n", "sign", "sqrt", "square", "sub",
  "tanh", "and", "or", "not", *_SAME_VALUE,
}  # fmt: skip


class Curve(NamedTuple):
  """A tensor that is an element-wise function of another, sampled.

  Attributes:
    base: the number of that other one.
    values: of the function on `GRID`.
    name: of the last primitive, for messages.
  """

  base: int
  values: np.ndarray
  name: str


def same_values(a: Any, b: Any) -> bool:
  """Whether two functions have the same values on `GRID`, but for the rounding of float32."""
  return np.allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=2e-6, atol=2e-6)


def curve_of(op: Op, values: Sequence[Any], shape: Sequence[Any]) -> Curve | None:
  """An operation of one tensor and of numbers, sampled on the grid.

  Args:
    op: the operation.
    values: what is known of its inputs: the number of a tensor, a `Curve`, the value of a scalar,
      or None.
    shape: of the tensor, which the output must have.

  Returns:
    The curve; None if the operation is another.
  """
  bases = {x if isinstance(x, int) else x.base for x in values if isinstance(x, int | Curve)}
  if len(bases) != 1 or len(op.out_avals) != 1 or op.out_avals[0].shape != tuple(shape):
    return None
  if any(x is None or (isinstance(x, np.ndarray) and x.ndim) for x in values):
    return None
  base, name = bases.pop(), op.primitive.name
  if name in _SAME_VALUE:
    return values[0] if isinstance(values[0], Curve) else Curve(base, GRID, name)
  body = called(op)
  if body is not None:
    return _curve_of_call(inline(jex.ClosedJaxpr(*body)), values, base, shape)
  if name not in _ELEMENTWISE:
    return None
  sampled: list[Any] = []
  params = {k: v for k, v in op.params.items() if k != "sharding" or v is not None}
  with jax.ensure_compile_time_eval():
    for x, aval in zip(values, op.in_avals, strict=True):
      points = x.values if isinstance(x, Curve) else GRID if isinstance(x, int) else x
      points = jnp.asarray(points, aval.dtype)
      keep = name == "clamp" and points.ndim == 0
      sampled.append(points if keep else jnp.broadcast_to(points, GRID.shape))
    return Curve(base, np.asarray(op.primitive.bind(*sampled, **params)), name)


def number_of(op: Op, values: Sequence[Any]) -> Any:
  """The value of an operation on numbers alone that gives one, or copies of one; else None."""
  if any(not isinstance(x, np.ndarray) or x.ndim for x in values) or not values:
    return None
  if op.primitive.name == "broadcast_in_dim":
    return values[0]
  aval = op.out_avals[0] if len(op.out_avals) == 1 and not op.has_effects else None
  if aval is None or aval.shape != () or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
    return None
  with jax.ensure_compile_time_eval():
    return np.asarray(evaluate(op, values)[0])


def _curve_of_call(
  jaxpr: FlatJaxpr, values: Sequence[Any], base: int, shape: Sequence[Any]
) -> Curve | None:
  """The curve of a call, from those of its operations."""
  env: dict[int, Any] = dict(zip(jaxpr.inputs, values, strict=True))
  for op in jaxpr.ops:
    known = [env.get(x) if isinstance(x, int) else x for x in op.inputs]
    found = number_of(op, known)
    env[op.outputs[0]] = curve_of(op, known, shape) if found is None else found
  result = env.get(jaxpr.outputs[0]) if isinstance(jaxpr.outputs[0], int) else None
  return Curve(base, GRID, "call") if result == base and isinstance(result, int) else result
