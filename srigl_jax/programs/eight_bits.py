"""Which tensors of a program its products can pass on in 8 bits, and what computes them then."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srigl_jax.programs.steps import Step, readers_of
from srigl_kernels import pooling
from srigl_kernels.backends.cpu import conv, matmul
from srigl_kernels.quantized import max_pool

_ANY, _NEVER = -1, -2  # in place of a range: whether a reader takes 8 bits of any, or not at all


def find_ranges(
  steps: Sequence[Step], outputs: Sequence[Any], known: Mapping[int, Any]
) -> dict[int, int]:
  """The tensors that can be passed on in 8 bits, each with the number of the range it has then.

  One that a native product writes, and that is read by native products alone: by at least one of 8
  bits whose inputs have a calibrated range, which is rounded to these bits anyhow, and by others
  that have the same range or add it to their sums. A max-pooling may lie between.

  Args:
    steps: what is computed, in order.
    outputs: of the program.
    known: values of its inputs and constants.
  """
  readers = readers_of(steps, outputs)
  found: dict[int, int] = {}
  for step in reversed(steps):
    if step.output is None or not _can_write(step):
      continue
    ranges = [_range_for(reader, step.output, found) for reader in readers.get(step.output, [])]
    keys = {_key(x, known): x for x in ranges if x != _ANY}
    if _NEVER not in ranges and len(keys) == 1:
      (found[step.output],) = keys.values()
  for step in steps:
    if step.product is None and step.output in found and step.op.inputs[0] not in found:
      del found[step.output]
  return found


def _can_write(step: Step) -> bool:
  """Whether what computes a tensor can write it in 8 bits, or pools it."""
  if step.product is None:
    if step.op.primitive.name != "reduce_window_max":
      return False
    (x,) = step.op.in_avals
    return x.dtype == jnp.float32 and pooling.is_max_pool(x, step.op.params)
  return step.is_packed and step.op.out_avals[0].dtype == jnp.float32


def _range_for(reader: Step | None, tensor: int, found: Mapping[int, int]) -> int:
  """The number of the range in which a reader takes a tensor, or `_ANY` or `_NEVER`."""
  if reader is None:
    return _NEVER
  if reader.product is None:
    is_pooling = reader.op.primitive.name == "reduce_window_max"
    return found.get(reader.op.outputs[0], _NEVER) if is_pooling else _NEVER
  product = reader.product
  if not reader.is_packed or tensor in jax.tree.leaves((product.condensed, product.layouts)):
    return _NEVER
  if product.x != tensor:
    return _ANY
  is_calibrated = product.layouts["cpu"].is_quantized and product.condensed.input_range is not None
  takes = is_calibrated and reader.avals.x.dtype == jnp.float32
  return product.condensed.input_range if takes else _NEVER


def _key(number: int, known: Mapping[int, Any]) -> Any:
  """What is the same of ranges that are."""
  value = known.get(number)
  if value is None or isinstance(value, jax.core.Tracer):
    return number
  return tuple(np.asarray(value).tolist())


def compute(step: Step, env: Mapping[int, Any], output_range: int | None) -> Any:
  """What a product or a pooling gives, of inputs of which some are `Quantized`.

  Args:
    step: the operation.
    env: the tensors.
    output_range: the number of the result's range, None for a result of float32.
  """
  if step.product is None:
    params = step.op.params
    shape = params["window_dimensions"], params["window_strides"], params["padding"]
    return max_pool(env[step.op.inputs[0]], *shape)
  read = lambda x: env[x] if isinstance(x, int) else x
  product, residual = step.product, None if step.residual is None else env[step.residual]
  packed, bias = jax.tree.map(read, (product.layouts["cpu"], product.condensed.bias))
  geometry = product.params["static"]
  to = None if output_range is None else env[output_range]
  args = read(product.x), packed, bias, step.activation
  if geometry:
    return conv.conv(*args, geometry[0], residual, to)
  return matmul.matmul(*args, residual, to)


def with_derivative_of(
  exact: Callable[..., Any], approximate: Callable[..., Any]
) -> Callable[..., Any]:
  """`approximate`, a function of arrays that differs little from `exact`; it is left under jvp."""
  function = jax.custom_jvp(approximate)
  function.defjvp(lambda primals, tangents: jax.jvp(exact, primals, tangents))
  return function
