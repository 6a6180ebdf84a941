"""Depthwise convolutions by a native CPU kernel, with what follows them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.backends.cpu.matmul import ACTIVATIONS
from srigl_kernels.batching import in_one_call
from srigl_kernels.conv_geometry import Geometry


def why_not(x: Any, kernel: Any, geometry: Geometry) -> str:
  """Why `conv` does not take a convolution, empty if it does.

  Args:
    x: shape and dtype of the image.
    kernel: of the kernel `[*K, inputs of a group, N]`.
    geometry: the convolution.
  """
  if not library.is_available():
    return library.why_unavailable()
  if x.ndim != 4 or kernel.ndim != 4:
    return "images have other axes than two"
  if not x.dtype == kernel.dtype == jnp.float32:
    return "it is not in float32"
  channels = x.shape[-1]
  if (kernel.shape[-2], kernel.shape[-1], geometry.groups) != (1, channels, channels):
    return "each neuron does not read a channel of its own"
  return ""


def conv(
  x: Array,
  kernel: Array,
  bias: Array | None,
  residual: Array | None,
  activation: str | None,
  geometry: Geometry,
) -> Array:
  """The convolution of each channel with a kernel of its own, then bias, residual and activation.

  Args:
    x: `[B, H, W, C]` float32; see `why_not` for what it takes.
    kernel: `[*K, 1, C]` float32.
    bias: `[C]`, or None.
    residual: of the result's shape, or None.
    activation: a name in `ACTIVATIONS`.
    geometry: the convolution, of `C` groups.

  Returns:
    `[B, H', W', C]` float32. Has no derivative of its own. Under `jax.vmap` over x and the residual
    it is one call.

  Raises:
    ValueError: if it does not take the convolution, or does not know the activation.
  """
  problem = why_not(x, kernel, geometry)
  if problem:
    raise ValueError(f"The native depthwise convolution cannot run: {problem}.")
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  bias = jnp.zeros(0) if bias is None else bias.astype(jnp.float32)
  call = _call(ACTIVATIONS[activation], geometry, residual is not None)
  rows = (x,) if residual is None else (x, residual.astype(jnp.float32))
  return call(rows, kernel, bias)


@functools.cache
def _call(activation: int, geometry: Geometry, has_residual: bool) -> Any:

  def call(rows: tuple[Array, ...], kernel: Array, bias: Array) -> Array:
    x = rows[0]
    size = geometry.output_size(x.shape[-3:-1])
    result = jax.ShapeDtypeStruct((*x.shape[:-3], *size, x.shape[-1]), jnp.float32)
    return jax.ffi.ffi_call(library.DEPTHWISE_CONV, result)(
      x,
      kernel,
      bias,
      rows[1] if has_residual else jnp.zeros(0),
      activation=np.int64(activation),
      strides=np.array(geometry.strides, np.int64),
      dilation=np.array(geometry.dilation, np.int64),
      padding=np.array(geometry.padding, np.int64).reshape(-1),
    )

  return in_one_call(call)
