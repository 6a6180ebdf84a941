"""Convolutions by the native CPU kernels, in one and two spatial dimensions."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels import conv_patches
from srigl_kernels.backends.cpu.library import CONV
from srigl_kernels.backends.cpu.matmul import (
  ACTIVATIONS,
  Packed,
  as_rows,
  matmul,
  row_operands,
  row_results,
  with_rows,
)
from srigl_kernels.batching import in_one_call
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.epilogue import apply_epilogue


def conv(
  x: Any,
  packed: Packed,
  bias: Array | None,
  activation: str | None,
  geometry: Geometry,
  residual: Any = None,
  output_range: Array | None = None,
) -> Any:
  """The convolution; with three or more spatial axes by `matmul`, as which it takes the rest.

  Args:
    x: `[B, *S, C]` float32 or bfloat16; of two spatial axes also in 8 bits, as of `matmul`.
    packed: the layer, of `prod(kernel_size) * C` inputs.
    bias: `[N]`, or None.
    activation: a name in `matmul.ACTIVATIONS`.
    geometry: the convolution; of one group.
    residual: of the result's shape, or None.
    output_range: as of `matmul`.

  Returns:
    `[B, *S_out, N]` as of `matmul`; sums, bias, residual and activation are in float32.
  """
  if len(geometry.kernel_size) > 2:
    y = conv_patches.conv(matmul, x, packed, bias, None, geometry)
    return apply_epilogue(y, None, activation, y.dtype, residual)
  if len(geometry.kernel_size) == 1:
    flat = Geometry(
      (1, *geometry.kernel_size),
      (1, *geometry.strides),
      (1, *geometry.dilation),
      ((0, 0), *geometry.padding),
      geometry.groups,
    )
    residual = None if residual is None else residual[:, None]
    return conv(x[:, None], packed, bias, activation, flat, residual)[:, 0]
  bias = jnp.zeros(0) if bias is None else bias
  call = _batched_call(ACTIVATIONS[activation], packed.out_features, geometry)
  return with_rows(call, x, packed, bias, residual, output_range)


@functools.cache
def _batched_call(activation: int, out_features: int, geometry: Geometry) -> Any:

  def call(inputs, packed: Packed, bias: Array, residual_range, output_range) -> Any:
    x = inputs[0]
    shape = (*x.shape[:-3], *geometry.output_size(x.shape[-3:-1]), out_features)
    y, scales = jax.ffi.ffi_call(CONV, row_results(shape, output_range))(
      x,
      packed.tile_pattern,
      packed.tile_values,
      packed.dot_pattern,
      bias,
      packed.scales,
      packed.input_range,
      *row_operands(inputs, residual_range, output_range),
      activation=np.int64(activation),
      quantized=packed.is_quantized,
      kernel=np.array(geometry.kernel_size, np.int64),
      strides=np.array(geometry.strides, np.int64),
      dilation=np.array(geometry.dilation, np.int64),
      padding=np.array(geometry.padding, np.int64).reshape(-1),
    )
    return y, as_rows(scales, y, output_range)

  return in_one_call(call)
