"""The backend "pallas" on GPUs: layouts for the kernels in `gpu_weighted_sums` and
`gpu_values_gradient`.

A layer keeps its form, `[A, K]` with 16-bit indices where they fit, rows padded to a multiple of
eight with weights of zero, so that they are read in wide loads. Bias, activation and the outputs of
ablated neurons are part of the one kernel; the transposition of x is an operation of its own before
it. Gradients in x go through the transposed pattern, with the same kernel. No sum uses atomics:
results do not vary from run to run.

Numbers: products of float32 are true float32, whatever `jax_default_matmul_precision` says, and
sums are float32. What fills up a block reads input 0 and multiplies it by zero, so that an infinite
or NaN value of input 0 may reach every neuron.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends import xla
from srigl_kernels.backends.padding import pad_rows
from srigl_kernels.backends.pallas.device import is_interpreted
from srigl_kernels.backends.pallas.gpu_values_gradient import pattern_products
from srigl_kernels.backends.pallas.gpu_weighted_sums import weighted_sums
from srigl_kernels.backends.pallas.transposed import Transposed, transpose
from srigl_kernels.batching import in_a_loop, over_rows
from srigl_kernels.epilogue import active_first, apply_epilogue
from srigl_kernels.format import Condensed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """The pattern of a layer as the kernels read it.

  Attributes:
    indices: `[A, K']` of the layer's type, rows padded with zeros.
    columns: `[N]` int32, the active neurons, then the others; None if all are active.
    transposed: for the gradient in x, or None.
    fan_in: `K`.
    out_features: `N`.
    interpret: whether the kernels run in interpret mode.
  """

  indices: Array
  columns: Array | None
  transposed: Transposed | None
  fan_in: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})
  interpret: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """A pattern with the values.

  Attributes:
    pattern: of the layer.
    values: `[A, K']` float32 or bfloat16, rows padded with zeros.
  """

  pattern: Pattern
  values: Array

  @property
  def out_features(self) -> int:
    """`N`."""
    return self.pattern.out_features


def pack(condensed: Condensed) -> Packed:
  """The layout that `matmul` reads, also of traced arrays."""
  return with_values(_pattern(condensed, None), condensed.values)


def pack_pattern(condensed: Condensed) -> Pattern:
  """The layout of a layer whose values change, also of traced indices; on the device."""
  return _pattern(condensed, transpose(condensed))


def with_values(layout: Pattern | Packed, values: Array) -> Packed:
  """What `matmul` reads: a pattern gets the values `[A, K]`; a packed layer keeps its own."""
  return layout if isinstance(layout, Packed) else Packed(layout, pad_rows(values))


def matmul(
  x: Array, layout: Packed, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it, of a layout from `pack` or `with_values`.

  Raises:
    ValueError: if x or the result has 2**31 elements or more.
  """
  if 0 in x.shape or not layout.values.size:
    sums = jnp.zeros((x.shape[0], layout.out_features))
    return apply_epilogue(sums, bias, activation, x.dtype)
  return _product(activation)(x, layout, bias)


def input_gradient(g: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.input_gradient`; a packed layer has no transposed pattern and is left to that."""
  if isinstance(layout, Packed) or layout.transposed is None:
    return xla.input_gradient(g, condensed)
  if 0 in g.shape or not condensed.values.size:
    return jnp.zeros((g.shape[0], condensed.in_features), g.dtype)
  values = condensed.values.reshape(-1)[layout.transposed.positions]
  call = _transposed_product(condensed.in_features, layout.interpret)
  return call(g[:, condensed.active], layout.transposed, values)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Pattern | Packed) -> Array:
  """As `xla.values_gradient`."""
  if 0 in x.shape or not condensed.values.size:
    return jnp.zeros_like(condensed.values)
  pattern = layout.pattern if isinstance(layout, Packed) else layout
  dvalues = _products(pattern.interpret)(g[:, condensed.active], x, pattern.indices)
  return dvalues[:, : pattern.fan_in].astype(condensed.values.dtype)


def _pattern(condensed: Condensed, transposed: Transposed | None) -> Pattern:
  return Pattern(
    pad_rows(condensed.indices),
    active_first(condensed.active, condensed.out_features),
    transposed,
    condensed.fan_in,
    condensed.out_features,
    is_interpreted(),
  )


@functools.cache
def _product(activation: str | None) -> Any:
  def call(x: Array, layout: Packed, bias: Array | None) -> Array:
    pattern = layout.pattern
    return weighted_sums(
      x,
      layout.values.reshape(-1),
      pattern.indices.reshape(-1),
      num_rows=layout.values.shape[0],
      columns=pattern.columns,
      num_columns=pattern.out_features,
      bias=bias,
      activation=activation,
      interpret=pattern.interpret,
    )

  return over_rows(call)


@functools.cache
def _transposed_product(num_inputs: int, interpret: bool) -> Any:
  def call(g: Array, transposed: Transposed, values: Array) -> Array:
    return weighted_sums(
      g,
      values,
      transposed.neurons,
      num_rows=num_inputs,
      starts=transposed.starts,
      interpret=interpret,
    )

  return over_rows(call)


@functools.cache
def _products(interpret: bool) -> Any:
  # Under vmap a loop of calls, as every example has a gradient of its own.
  return in_a_loop(functools.partial(pattern_products, interpret=interpret))
