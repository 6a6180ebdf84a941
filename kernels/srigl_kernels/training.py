"""The product with a layer that is condensed from the first step of its training to the last.

Where `api` serves layers that are packed once, here the pattern is an operand like any other: it
changes every few hundred steps inside the program.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends import xla
from srigl_kernels.backends.cpu import training as native
from srigl_kernels.pattern import Pattern, check_call, dense_rows, for_entries

Probe = tuple[Array, Array]
"""`(x, g)`: zeros `[B, I]` and `[B, N]`, whose cotangents are the inputs of a product and the
gradient of the loss in its outputs."""


def sparse_linear(
  x: Array,
  values: Array,
  pattern: Pattern,
  bias: Array | None = None,
  *,
  probe: Probe | None = None,
) -> Array:
  """`x @ W + bias` of a layer with constant fan-in, differentiable in x, values and bias.

  Works under jit, scan, pmap and shard_map. On CPU the native kernels compute it where the library
  has them; elsewhere dense blocks of neurons, made and dropped one by one: right and bounded in
  memory, but no faster than a dense layer.

  Args:
    x: `[..., I]` float32 or bfloat16.
    values: `[C]` float32, the weights. Entries not in use are not read.
    pattern: where they are. It has no derivative.
    bias: `[N]`, or None.
    probe: zeros `[B, I]` and `[B, N]`, B the product of the leading axes of x, of x's type. What
      the loss has for a gradient in them is x and the gradient in the output, from which a
      topology update forms the dense gradient `xᵀ g`, a block of neurons at a time.

  Returns:
    `[..., N]` of x's type, from sums in float32; for an ablated neuron its bias.

  Raises:
    ValueError: if shapes do not fit.
  """
  check_call(x, pattern)
  _check_shapes(x, values, pattern, bias)
  rows = x.reshape(-1, x.shape[-1])
  y = _product(rows, values, pattern, probe)
  y = y if bias is None else y + bias.astype(y.dtype)[None]
  return y.reshape(*x.shape[:-1], pattern.out_features)


@jax.custom_vjp
def _product(x: Array, values: Array, pattern: Pattern, probe: Probe | None) -> Array:
  if _is_native(x, values):
    return native.forward(x, values, pattern)
  return forward(x.astype(jnp.float32), values, pattern).astype(x.dtype)


def _product_fwd(
  x: Array, values: Array, pattern: Pattern, probe: Probe | None
) -> tuple[Array, Any]:
  return _product(x, values, pattern, probe), (x, values, pattern, probe)


def _product_bwd(saved: Any, g: Array) -> tuple[Array, Array, None, Probe | None]:
  x, values, pattern, probe = saved
  if _is_native(x, values):
    dx = native.input_gradient(g, values, pattern)
    dvalues = native.values_gradient(g, x, pattern)
  else:
    g32 = g.astype(jnp.float32)
    dx = input_gradient(g32, values, pattern).astype(x.dtype)
    dvalues = values_gradient(g32, x.astype(jnp.float32), pattern).astype(values.dtype)
  if probe is not None:
    probe = (x.astype(probe[0].dtype), g.astype(probe[1].dtype))
  return dx, dvalues, None, probe


_product.defvjp(_product_fwd, _product_bwd)


def _is_native(x: Array, values: Array) -> bool:
  types = (jnp.float32, jnp.bfloat16)
  return native.is_available() and x.dtype in types and values.dtype == jnp.float32


def forward(x: Array, values: Array, pattern: Pattern) -> Array:
  """The product `[B, N]` float32 of `x` `[B, I]` float32; see `sparse_linear`."""
  num_rows, num_neurons = x.shape[0], pattern.out_features

  def step(first: Array | int, size: int, y: Array) -> Array:
    block = xla.dot(x, dense_rows(values, pattern, first, size).T)
    return jax.lax.dynamic_update_slice_in_dim(y, block, first, axis=1)

  return xla.tiles(step, num_neurons, _block(x, pattern), jnp.zeros((num_rows, num_neurons)))


def input_gradient(g: Array, values: Array, pattern: Pattern) -> Array:
  """Gradient `[B, I]` in the inputs, from the gradient `g` `[B, N]` in the outputs."""

  def step(first: Array | int, size: int, dx: Array) -> Array:
    block = jax.lax.dynamic_slice_in_dim(g, first, size, axis=1)
    return dx + xla.dot(block, dense_rows(values, pattern, first, size))

  dx = jnp.zeros((g.shape[0], pattern.in_features))
  return xla.tiles(step, pattern.out_features, _block(g, pattern), dx)


def values_gradient(g: Array, x: Array, pattern: Pattern) -> Array:
  """Gradient `[C]` in the values, 0 for entries not in use; from `g` `[B, N]` and `x` `[B, I]`."""

  def step(first: Array | int, size: int, dvalues: Array) -> Array:
    block = xla.dot(jax.lax.dynamic_slice_in_dim(g, first, size, axis=1).T, x)

    def pick(entries: Array, neurons: Array, dvalues: Array) -> Array:
      inputs = pattern.indices.at[entries].get(mode="clip").astype(jnp.int32)
      picked = block.at[neurons, inputs].get(mode="clip")
      places = jnp.where(neurons < size, entries, pattern.capacity)
      return dvalues.at[places].set(picked, mode="drop", indices_are_sorted=True)

    return for_entries(pattern, first, size, pick, dvalues)

  dvalues = jnp.zeros(pattern.capacity)
  return xla.tiles(step, pattern.out_features, _block(g, pattern), dvalues)


def _block(rows: Array, pattern: Pattern) -> int:
  """Neurons whose dense weights and outputs are held at once."""
  connections = pattern.capacity // pattern.out_features
  return xla.fit(4 * (2 * pattern.in_features + 2 * rows.shape[0] + 4 * connections))


def _check_shapes(x: Array, values: Array, pattern: Pattern, bias: Array | None) -> None:
  if x.shape[-1:] != (pattern.in_features,):
    raise ValueError(f"x must be [..., {pattern.in_features}], the inputs, but is {x.shape}.")
  if values.shape != pattern.indices.shape:
    raise ValueError(
      f"values have shape {values.shape}, the pattern's indices {pattern.indices.shape}: they "
      "belong to different layers."
    )
  if bias is not None and bias.shape != (pattern.out_features,):
    raise ValueError(f"bias must be [{pattern.out_features}], the neurons, but is {bias.shape}.")
