"""Backends that multiply with a dense matrix: of the active neurons only, or of all.

They need the memory of that matrix. A value of x that is infinite or NaN reaches every neuron,
also those that have no weight for it (0 * inf is NaN).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from srigl_kernels import depthwise
from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.xla import densify, dot
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.epilogue import apply_epilogue, gather_neurons, places_of, scatter_to_neurons
from srigl_kernels.format import Condensed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Structured:
  """The dense matrix of the active neurons.

  Attributes:
    matrix: `[I, A]`.
    places: `[N]`, see `epilogue.places_of`: made here, not in every call.
  """

  matrix: Array
  places: Array

  @property
  def out_features(self) -> int:
    """`N`."""
    return self.places.shape[0]


def pack_structured(condensed: Condensed) -> Structured:
  """The layout of the structured backend."""
  matrix = densify(condensed.values, condensed.indices, condensed.in_features).T
  places = places_of(condensed.active, condensed.out_features)
  return Structured(matrix, places)


def matmul(
  x: Array, layout: Structured, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it, with a layout of either backend."""
  y = dot(x, layout.matrix)
  y = gather_neurons(y, layout.places, axis=1)
  return apply_epilogue(y, bias, activation, x.dtype)


def conv(
  x: Array, layout: Structured, bias: Array | None, activation: str | None, geometry: Geometry
) -> Array:
  """As `conv_patches.conv` defines it, with a layout of either backend, also in groups."""
  matrix, places = layout.matrix, layout.places
  if geometry.groups > 1:  # XLA wants as many neurons in each group
    matrix = gather_neurons(matrix.T, places).T
    places = jnp.arange(layout.out_features, dtype=jnp.int32)
  # Matrix units take bfloat16, and XLA on CPU cannot sum it in float32.
  is_half = jax.default_backend() != "cpu" and x.dtype == matrix.dtype == jnp.bfloat16
  y = convolve(x, matrix, geometry, jnp.bfloat16 if is_half else jnp.float32)
  y, shape = y.reshape(-1, y.shape[-1]), (*y.shape[:-1], layout.out_features)
  y = gather_neurons(y.T, places).T
  return apply_epilogue(y, bias, activation, x.dtype).reshape(shape)


def convolve(x: Array, matrix: Array, geometry: Geometry, dtype: DTypeLike = jnp.float32) -> Array:
  """The convolution of x `[B, *S, C]` with a matrix `[I, N]`: XLA's, but for depthwise ones on a
  CPU. Operands are cast to `dtype`, and sums are rounded to it: cuDNN has no other convolution.
  """
  rank = len(geometry.kernel_size)
  channels_last = (0, rank + 1, *range(1, rank + 1))
  x = x.astype(dtype)
  kernel = matrix.astype(dtype).reshape(*geometry.kernel_size, -1, matrix.shape[1])
  if geometry.groups == x.shape[-1] and depthwise.is_depthwise(kernel.shape, x.shape[-1]):
    how = geometry.strides, geometry.padding, geometry.dilation
    return depthwise.convolve(x, kernel, *how)
  return lax.conv_general_dilated(
    x,
    kernel,
    geometry.strides,
    geometry.padding,
    rhs_dilation=geometry.dilation,
    dimension_numbers=lax.ConvDimensionNumbers(
      channels_last, (rank + 1, rank, *range(rank)), channels_last
    ),
    feature_group_count=geometry.groups,
  )


def pack_dense(condensed: Condensed) -> Structured:
  """The layout of the dense backend: all neurons count as active."""
  rows = densify(condensed.values, condensed.indices, condensed.in_features)
  matrix = scatter_to_neurons(rows, condensed.active, condensed.out_features).T
  return Structured(matrix, jnp.arange(condensed.out_features, dtype=jnp.int32))


DENSE = Backend(pack_dense, matmul, conv=conv, conv_groups=True)
"""Any device: the dense layer itself."""

STRUCTURED = Backend(pack_structured, matmul, conv=conv, conv_groups=True)
"""Any device: a dense layer of the active neurons."""
