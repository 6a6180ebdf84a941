"""The portable backend: plain XLA operations, in tiles, for every device.

Memory: besides arguments and results, `matmul`, `input_gradient` and `values_gradient` need at
most `TEMPORARY_BYTES` at any batch size; more only if one row of the batch, or the dense row of
one neuron, alone needs more, in bfloat16, where XLA on CPU copies the result once, and where the
batch size is symbolic. The gradients multiply dense blocks of neurons, which are made and dropped
one by one; precision of those products follows `jax_default_matmul_precision`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from srigl_kernels.backends.base import Backend
from srigl_kernels.epilogue import apply_epilogue, scatter_to_neurons
from srigl_kernels.format import Condensed

TEMPORARY_BYTES = 16 * 2**20
"""The stated limit on temporary memory."""

_MAX_ROWS = 256  # rows of the batch in a tile: in common layers the sums then stay in cache
_UNROLL = 8  # weights per neuron and iteration, so that the sums are stored less often

_Carry = TypeVar("_Carry")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """The layout of `matmul`: one weight of every neuron in a row, as a step of the sum reads it.

  Attributes:
    values: `[K, A]`.
    indices: `[K, A]`.
    active: `[A]`.
    out_features: `N`.
  """

  values: Array
  indices: Array
  active: Array
  out_features: int = dataclasses.field(metadata={"static": True})


def pack(condensed: Condensed) -> Packed:
  """The layout that `matmul` reads."""
  return Packed(condensed.values.T, condensed.indices.T, condensed.active, condensed.out_features)


def matmul(
  x: Array, layout: Packed, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it: a sum over the fan-in of gathered rows."""
  num_rows, num_inputs = x.shape
  num_neurons = layout.out_features
  rows = fit(4 * (3 * layout.active.size + 2 * num_inputs + 3 * num_neurons), _MAX_ROWS)

  def step(start, size, out):
    tile = _load(x, start, size)
    y = scatter_to_neurons(_weighted_sums(tile.T, layout), layout.active, num_neurons).T
    return store(out, apply_epilogue(y, bias, activation, x.dtype), start, x.dtype)

  out = as_bits(jnp.zeros((num_rows, num_neurons), x.dtype))
  return lax.bitcast_convert_type(tiles(step, num_rows, rows, out), x.dtype)


def _weighted_sums(inputs: Array, layout: Packed) -> Array:
  """`[A, B]` float32 sums of the rows of `inputs` `[I, B]` that each neuron reads.

  One weight of every neuron at a time: the gathered rows are contiguous and there is never an
  `[A, K, B]` array. On 4 cores of a Zen 5 this took 1/60 of the time of the gather that makes
  one (batch 256, 768 inputs, 1145 neurons, fan-in 206).
  """
  inputs = inputs.astype(jnp.float32)

  def step(start, size, sums):
    values = _load(layout.values, start, size).astype(jnp.float32)
    indices = _load(layout.indices, start, size).astype(jnp.int32)
    for value, index in zip(values, indices, strict=True):
      sums += value[:, None] * inputs.at[index].get(mode="promise_in_bounds")
    return sums

  fan_in, num_active = layout.values.shape
  return tiles(step, fan_in, _UNROLL, jnp.zeros((num_active, inputs.shape[1])))


def input_gradient(g: Array, condensed: Condensed, layout: Any = None) -> Array:
  """Gradient of a loss in `x`, from its gradient in the product.

  Args:
    g: `[B, N]` float32 or bfloat16.
    condensed: the layer.
    layout: of the layer. Not read here: backends without a gradient of their own run this one.

  Returns:
    `[B, I]` of g's type.
  """
  num_active, fan_in = condensed.values.shape
  num_inputs, num_neurons = condensed.in_features, condensed.out_features
  rows = fit(2 * 4 * (2 * num_active + 3 * num_inputs + num_neurons))
  neurons = fit(2 * (12 * num_inputs + 28 * fan_in))

  def row_step(start, size, dx):
    tile = _load(g, start, size)[:, condensed.active]

    def neuron_step(first, count, sums):
      values = _load(condensed.values, first, count)
      block = densify(values, _load(condensed.indices, first, count), num_inputs)
      return sums + dot(lax.dynamic_slice_in_dim(tile, first, count, axis=1), block)

    sums = tiles(neuron_step, num_active, neurons, jnp.zeros((size, num_inputs)))
    return store(dx, sums, start, g.dtype)

  dx = as_bits(jnp.zeros((g.shape[0], num_inputs), g.dtype))
  return lax.bitcast_convert_type(tiles(row_step, g.shape[0], rows, dx), g.dtype)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Any = None) -> Array:
  """Gradient of a loss in `condensed.values`, from its gradient in the product.

  Args:
    g: `[B, N]` float32 or bfloat16.
    x: `[B, I]` float32 or bfloat16.
    condensed: the layer; its values are not read.
    layout: not read, as in `input_gradient`.

  Returns:
    `[A, K]` of the type of the values.
  """
  num_active, fan_in = condensed.values.shape
  num_inputs, num_neurons = condensed.in_features, condensed.out_features
  neurons = fit(2 * (12 * num_inputs + 28 * fan_in))
  rows = fit(2 * 4 * (2 * num_inputs + 2 * num_neurons))

  def neuron_step(first, count, dvalues):
    active = _load(condensed.active, first, count)
    indices = _load(condensed.indices, first, count).astype(jnp.int32)

    def row_step(start, size, products):
      tile = _load(g, start, size)[:, active]
      return products + dot(tile.T, _load(x, start, size))

    products = tiles(row_step, x.shape[0], rows, jnp.zeros((count, num_inputs)))
    picked = jnp.take_along_axis(products, indices, axis=1, mode="promise_in_bounds")
    return lax.dynamic_update_slice_in_dim(dvalues, picked.astype(dvalues.dtype), first, axis=0)

  return tiles(neuron_step, num_active, neurons, jnp.zeros_like(condensed.values))


def densify(values: Array, indices: Array, num_inputs: int) -> Array:
  """The dense rows `[A, I]` of neurons given by `[A, K]` values and indices."""
  neurons = jnp.arange(values.shape[0], dtype=jnp.int32)[:, None]
  return (
    jnp.zeros((values.shape[0], num_inputs), values.dtype)
    .at[neurons, indices.astype(jnp.int32)]
    .set(values, indices_are_sorted=True, unique_indices=True, mode="promise_in_bounds")
  )


def dot(a: Array, b: Array) -> Array:
  """Matrix product `[M, N]` in float32; see `einsum`."""
  return einsum("mk,kn->mn", a, b)


def einsum(subscripts: str, a: Array, b: Array) -> Array:
  """`jnp.einsum` in float32.

  Also of bfloat16, which XLA on CPU cannot sum in float32: there it is cast before. Elsewhere two
  operands in bfloat16 go to the matrix units as they are.
  """
  if jax.default_backend() == "cpu" or not a.dtype == b.dtype == jnp.bfloat16:
    a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  return jnp.einsum(subscripts, a, b, preferred_element_type=jnp.float32)


def _load(x: Array, start: Array | int, size: int) -> Array:
  """Rows from `start`. The barrier keeps XLA on CPU from casting all of `x` before the loop."""
  x, start = lax.optimization_barrier((x, start))
  return lax.dynamic_slice_in_dim(x, start, size)


def store(bits: Array, rows: Array, start: Array | int, dtype: DTypeLike) -> Array:
  """The array given by `as_bits` with rows from `start` replaced, cast to `dtype`."""
  return lax.dynamic_update_slice_in_dim(bits, as_bits(rows.astype(dtype)), start, axis=0)


def as_bits(x: Array) -> Array:
  """Bfloat16 as integers: XLA on CPU would cast all of it and back to replace some rows."""
  return lax.bitcast_convert_type(x, jnp.uint16 if x.dtype == jnp.bfloat16 else x.dtype)


def fit(bytes_each: int, most: int = 2**30) -> int:
  """How many of something fit into the limit: at least one, at most `most`."""
  return max(1, min(most, TEMPORARY_BYTES // bytes_each))


def tiles(
  step: Callable[[Array | int, int, _Carry], _Carry], length: int, size: int, carry: _Carry
) -> _Carry:
  """Calls `step(start, size, carry) -> carry` for tiles of `size`, then for the remainder.

  A length that is symbolic, a dimension of `jax.export`, is one tile: it may be less than `size`.
  """
  if not isinstance(length, int):
    return step(0, length, carry)
  full, rest = divmod(length, size)
  if full == 1:
    carry = step(0, size, carry)
  elif full:
    carry = lax.fori_loop(0, full, lambda i, carry: step(i * size, size, carry), carry)
  return step(full * size, rest, carry) if rest else carry


BACKEND = Backend(pack, matmul)
"""Any device, also for traced layers."""
