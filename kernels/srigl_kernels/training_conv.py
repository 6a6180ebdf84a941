"""The convolution with a layer that is condensed from the first step of its training to the last.

What `training` is for products. No matrix of the images' patches is made, by whichever of three
ways it is computed, chosen by what is known when the program is compiled:

- the native kernels on CPU, with one or two spatial axes;
- the same as a dense convolution, with a kernel that is made from the values and dropped, where the
  layer is so nearly dense that this is faster (`_DENSE_FROM`): a distribution such as
  Erdős–Rényi-Kernel leaves some layers so;
- elsewhere dense convolutions of blocks of neurons, one by one.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends import dense, xla
from srigl_kernels.backends.cpu import training as native_linear
from srigl_kernels.backends.cpu import training_conv as native
from srigl_kernels.conv_geometry import Geometry, Padding, resolve
from srigl_kernels.pattern import Pattern, check_call, dense_rows, for_entries

# Density from which a dense convolution on CPU is faster than the native kernels: measured with the
# layers of a CIFAR ResNet-18 at batch 16 to 128. XLA's gradient in the kernel is slower than its
# convolution, by how much depends on the layer.
_DENSE_FROM = 0.55
_DENSE_GRADIENT_FROM = 0.8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ConvProbe:
  """Zeros whose cotangents are what a topology update needs of a convolution; see `conv_probe`.

  Attributes:
    x: `[B, *S, C]`, the images, padded or dilated already where the convolution is not asked to.
    g: `[B, *S_out, N]`, the gradient of the loss in the outputs.
    geometry: the convolution.
  """

  x: Array
  g: Array
  geometry: Geometry = dataclasses.field(metadata={"static": True})


def sparse_conv(
  x: Array,
  values: Array,
  pattern: Pattern,
  bias: Array | None = None,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  input_dilation: int | Sequence[int] = 1,
  kernel_dilation: int | Sequence[int] = 1,
  probe: ConvProbe | None = None,
) -> Array:
  """A convolution with constant fan-in, differentiable in x, values and bias.

  The arguments from `strides` on mean what they mean to `flax.nnx.Conv`. Works under jit, scan,
  pmap and shard_map; see the module for how it is computed.

  Args:
    x: `[..., *S, C]` float32 or bfloat16.
    values: `[C]` float32, the weights. Entries not in use are not read.
    pattern: where they are, in a kernel of shape `(*window, channels, neurons)`. It has no
      derivative.
    bias: `[N]`, or None.
    strides: at least 1, for all spatial axes or each.
    padding: as for `condensed_conv`.
    input_dilation: distance between the pixels of x, zeros between them; as `strides`.
    kernel_dilation: distance between a patch's pixels; as `strides`.
    probe: from `conv_probe`.

  Returns:
    `[..., *S_out, N]` of x's type, from sums in float32; for an ablated neuron its bias.

  Raises:
    ValueError: if shapes do not fit, or an argument is not as above.
  """
  check_call(x, pattern)
  images, geometry = _resolve(x, pattern, strides, padding, input_dilation, kernel_dilation)
  if values.shape != pattern.indices.shape:
    raise ValueError(
      f"values have shape {values.shape}, the pattern's indices {pattern.indices.shape}: they "
      "belong to different layers."
    )
  if bias is not None and bias.shape != (pattern.out_features,):
    raise ValueError(f"bias must be [{pattern.out_features}], the neurons, but is {bias.shape}.")
  if probe is not None and probe.geometry != geometry:
    raise ValueError("The probe was made for another convolution: make it with the same arguments.")
  y = _conv(geometry, images, values, pattern, probe)
  y = y if bias is None else y + bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
  return y.reshape(*x.shape[: x.ndim - len(geometry.kernel_size) - 1], *y.shape[1:])


def conv_probe(
  x: Any,
  pattern: Pattern,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  input_dilation: int | Sequence[int] = 1,
  kernel_dilation: int | Sequence[int] = 1,
) -> ConvProbe:
  """A probe for `sparse_conv` with the same arguments.

  What the loss has for a gradient in it are the images and the gradient in the outputs, from which
  a topology update forms the dense gradient of the kernel, a block of neurons at a time. Under
  gradient accumulation, concatenate the first axes of the `x` and of the `g` of all batches.

  Args:
    x: `[..., *S, C]`, or its shape and type.
    pattern: of the layer.
    strides: see `sparse_conv`.
    padding: see `sparse_conv`.
    input_dilation: see `sparse_conv`.
    kernel_dilation: see `sparse_conv`.
  """
  check_call(x, pattern)
  zeros = jnp.zeros(x.shape, x.dtype)
  images, geometry = _resolve(zeros, pattern, strides, padding, input_dilation, kernel_dilation)
  shape = (len(images), *geometry.output_size(images.shape[1:-1]), pattern.out_features)
  return ConvProbe(images, jnp.zeros(shape, x.dtype), geometry)


def kernel_gradient(x: Array, g: Array, geometry: Geometry) -> Array:
  """Dense gradient `[I, n]` float32 in the kernel of some neurons.

  Args:
    x: `[B, *S, C]`.
    g: `[B, *S_out, n]`, gradient of the loss in the outputs of these neurons.
    geometry: the convolution.
  """
  num_inputs = math.prod(geometry.kernel_size) * x.shape[-1]
  kernel = jax.ShapeDtypeStruct((num_inputs, g.shape[-1]), jnp.float32)
  convolve = lambda kernel: dense.convolve(x, kernel, geometry)
  return jax.linear_transpose(convolve, kernel)(g.astype(jnp.float32))[0]


def _resolve(x, pattern, strides, padding, input_dilation, kernel_dilation):
  return resolve(
    x,
    pattern,
    strides=strides,
    padding=padding,
    input_dilation=input_dilation,
    kernel_dilation=kernel_dilation,
    feature_group_count=1,
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(
  geometry: Geometry, x: Array, values: Array, pattern: Pattern, probe: ConvProbe | None
) -> Array:
  if _is_native(x, values, geometry, pattern, _DENSE_FROM):
    return native.forward(x, values, pattern, geometry)
  return forward(x, values, pattern, geometry)


def _conv_fwd(
  geometry: Geometry, x: Array, values: Array, pattern: Pattern, probe: ConvProbe | None
) -> tuple[Array, Any]:
  return _conv(geometry, x, values, pattern, probe), (x, values, pattern, probe)


def _conv_bwd(geometry: Geometry, saved: Any, g: Array) -> tuple[Any, ...]:
  x, values, pattern, probe = saved
  size = x.shape[1:-1]
  if _is_native(x, values, geometry, pattern, _DENSE_FROM):
    dx = native.input_gradient(g, values, pattern, geometry, size)
  else:
    dx = input_gradient(g, values, pattern, geometry, size)
  if _is_native(x, values, geometry, pattern, _DENSE_GRADIENT_FROM):
    dvalues = native.values_gradient(g, x, pattern, geometry)
  else:
    dvalues = values_gradient(g, x, pattern, geometry).astype(values.dtype)
  if probe is not None:
    probe = dataclasses.replace(probe, x=x.astype(probe.x.dtype), g=g.astype(probe.g.dtype))
  return dx, dvalues, None, probe


_conv.defvjp(_conv_fwd, _conv_bwd)


def _density(pattern: Pattern) -> float:
  return pattern.capacity / max(pattern.in_features * pattern.out_features, 1)


def _is_native(
  x: Array, values: Array, geometry: Geometry, pattern: Pattern, dense_from: float
) -> bool:
  types = (jnp.float32, jnp.bfloat16)
  known = x.dtype in types and values.dtype == jnp.float32
  fits = native.runs(geometry) and _density(pattern) < dense_from
  return known and fits and native_linear.is_available()


def forward(x: Array, values: Array, pattern: Pattern, geometry: Geometry) -> Array:
  """The convolution `[B, *S_out, N]` of `x` `[B, *S, C]`, dense blocks of neurons at a time."""
  shape = (len(x), *geometry.output_size(x.shape[1:-1]), pattern.out_features)

  def step(first: Array | int, size: int, y: Array) -> Array:
    block = dense.convolve(x, dense_rows(values, pattern, first, size).T, geometry)
    return jax.lax.dynamic_update_slice_in_dim(y, block.astype(y.dtype), first, axis=y.ndim - 1)

  return xla.tiles(step, shape[-1], _block(pattern, shape), jnp.zeros(shape, x.dtype))


def input_gradient(
  g: Array, values: Array, pattern: Pattern, geometry: Geometry, size: tuple[int, ...]
) -> Array:
  """Gradient `[B, *size, C]` in the images, from `g` `[B, *S_out, N]` in the outputs."""
  images = jax.ShapeDtypeStruct((len(g), *size, pattern.kernel_shape[-2]), jnp.float32)

  def step(first: Array | int, size: int, dx: Array) -> Array:
    kernel = dense_rows(values, pattern, first, size).T
    convolve = lambda x: dense.convolve(x, kernel, geometry)
    return dx + jax.linear_transpose(convolve, images)(_neurons(g, first, size))[0]

  dx = jnp.zeros(images.shape)
  return xla.tiles(step, pattern.out_features, _block(pattern, g.shape), dx).astype(g.dtype)


def values_gradient(g: Array, x: Array, pattern: Pattern, geometry: Geometry) -> Array:
  """Gradient `[C]` float32 in the values, 0 for entries not in use."""

  def step(first: Array | int, size: int, dvalues: Array) -> Array:
    block = kernel_gradient(x, _neurons(g, first, size), geometry)

    def pick(entries: Array, neurons: Array, dvalues: Array) -> Array:
      inputs = pattern.indices.at[entries].get(mode="clip").astype(jnp.int32)
      picked = block.at[inputs, neurons].get(mode="clip")
      places = jnp.where(neurons < size, entries, pattern.capacity)
      return dvalues.at[places].set(picked, mode="drop", indices_are_sorted=True)

    return for_entries(pattern, first, size, pick, dvalues)

  dvalues = jnp.zeros(pattern.capacity)
  return xla.tiles(step, pattern.out_features, _block(pattern, g.shape), dvalues)


def _neurons(g: Array, first: Array | int, size: int) -> Array:
  block = jax.lax.dynamic_slice_in_dim(g, first, size, axis=g.ndim - 1)
  return block.astype(jnp.float32)


def _block(pattern: Pattern, outputs: tuple[int, ...]) -> int:
  """Neurons whose dense weights and outputs are held at once: all of a layer that is computed so
  because it is nearly dense, else as many as the stated limit allows.
  """
  if jax.default_backend() == "cpu" and _density(pattern) >= _DENSE_FROM:
    return pattern.out_features
  connections = pattern.capacity // pattern.out_features
  pixels = math.prod(outputs[:-1])
  return xla.fit(4 * (2 * pattern.in_features + 2 * pixels + 4 * connections))
