"""Operations that XLA's CPU backend computes slowly, and others that give the same."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.programs import attention_op
from srigl_jax.programs.eight_bits import with_derivative_of
from srigl_jax.programs.flat_jaxpr import Op, evaluate
from srigl_kernels import depthwise, pooling


def find(op: Op) -> Callable[..., Array] | None:
  """A function of an operation's inputs that computes it faster, or None.

  Attention, depthwise convolutions that are not native, max-poolings and sums over pixels have one,
  where jax runs on a CPU.
  """
  find = _FINDERS.get(op.primitive)
  return None if find is None else find(op)


def _convolution(op: Op) -> Callable[..., Array] | None:
  (image, kernel), (out,) = op.in_avals, op.out_avals
  if not depthwise.is_convolution(image, kernel, out, op.params):
    return None
  names = "window_strides", "padding", "rhs_dilation"
  shape = [op.params[name] for name in names]
  return lambda image, kernel: depthwise.convolve(image, kernel, *shape)


def _max_pool(op: Op) -> Callable[..., Array] | None:
  (x,) = op.in_avals
  if not pooling.is_max_pool(x, op.params):
    return None
  shape = [op.params[name] for name in ("window_dimensions", "window_strides", "padding")]
  compute = functools.partial(_largest, shape=shape)
  # Of equal numbers the derivative is that of the first, and not in part of each.
  return with_derivative_of(lambda x: evaluate(op, [x])[0], compute)


def _largest(x: Array, shape: Any) -> Array:
  return pooling.max_pool(x, jnp.asarray(-jnp.inf, x.dtype), *shape)


def _attention(op: Op) -> Callable[..., Array]:
  return with_derivative_of(*attention_op.function_of(op))


def _sum(op: Op) -> Callable[..., Array] | None:
  (x,) = op.in_avals
  return pooling.sum_pixels if pooling.is_sum_of_pixels(x, op.params["axes"]) else None


_FINDERS = {
  attention_op.attention_p: _attention,
  jax.lax.conv_general_dilated_p: _convolution,
  jax.lax.reduce_window_max_p: _max_pool,
  jax.lax.reduce_sum_p: _sum,
}
