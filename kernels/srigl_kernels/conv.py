"""The condensed convolution: arguments, choice of the backend, and its derivative."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from srigl_kernels import conv_patches, deferred, subpixel
from srigl_kernels.api import choose_backend, choose_layouts, condensed_matmul
from srigl_kernels.backends import dense
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.backends.xla import densify
from srigl_kernels.call_checks import check_call, check_residual
from srigl_kernels.conv_geometry import Geometry, Padding, dilate, read
from srigl_kernels.epilogue import ACTIVATIONS, apply_epilogue, scatter_to_neurons
from srigl_kernels.format import Condensed
from srigl_kernels.layer_cache import is_concrete, remember
from srigl_kernels.precision import dequantize, round_inputs
from srigl_kernels.prepared import Layout, Prepared


def condensed_conv(
  x: Array,
  layer: Condensed | Prepared,
  *,
  strides: int | Sequence[int] = 1,
  padding: Padding = "SAME",
  input_dilation: int | Sequence[int] = 1,
  kernel_dilation: int | Sequence[int] = 1,
  feature_group_count: int = 1,
  backend: str = "auto",
  activation: str | None = None,
  residual: Array | None = None,
) -> Array:
  """Output of a condensed convolution, differentiable in x, values and bias on every backend.

  The arguments mean what they mean to `flax.nnx.Conv`. Sums, bias, residual and activation are in
  float32 whatever the types of x and values. An infinite or NaN input may also reach neurons that
  have no weight for it, as it does in a dense layer. Gradients are those of a dense convolution,
  picked.

  Args:
    x: `[..., *S, C]` float32 or bfloat16, with as many spatial axes `S` as the kernel.
    layer: the layer, its kernel of shape `(*kernel_size, C // feature_group_count, N)` with the
      neurons on the last axis; prepared with the same `feature_group_count`, or a `Condensed`, for
      which the same holds as for `condensed_matmul`.
    strides: at least 1, for all spatial axes or each.
    padding: `"SAME"`, `"SAME_LOWER"`, `"VALID"`, `"CIRCULAR"`, `"REFLECT"`, with one spatial axis
      `"CAUSAL"`, or numbers of zeros: one for all sides, or for each axis one or `(before, after)`.
    input_dilation: distance between the pixels of x, zeros between them; as `strides`. What a
      transposed convolution is: with strides of 1 and one group a layer that was prepared for it,
      or is concrete, runs in its sub-pixel form, which multiplies none of the zeros.
    kernel_dilation: distance between a patch's pixels; as `strides`.
    feature_group_count: groups of channels; neuron `n` reads group `n // (N // groups)`.
    backend: a name in `BACKENDS`, or `"auto"`: see `choose_backend`; `xla` also for a layer that
      was prepared for another number of groups.
    activation: as of `condensed_matmul`.
    residual: `[..., *S_out, N]`, an array that is added before the activation, or None.

  Returns:
    `[..., *S_out, N]` of x's type; outputs of ablated neurons are their bias, with residual and
    activation.

  Raises:
    ValueError: if shapes, types or names are not as above, or the backend cannot run here.
  """
  condensed = check_call(x, layer, activation)
  images, spacing, geometry = read(
    x,
    condensed,
    strides=strides,
    padding=padding,
    input_dilation=input_dilation,
    kernel_dilation=kernel_dilation,
    feature_group_count=feature_group_count,
  )
  leading = x.shape[: x.ndim - len(geometry.kernel_size) - 1]
  phases = _phases(images.shape, layer, backend, spacing, geometry)
  if phases is not None:
    pads, slices = subpixel.crop(images.shape[1:-1], spacing, geometry)
    inside = activation if residual is None else None
    y = condensed_conv(images, phases, padding=pads, backend=backend, activation=inside)
    y = subpixel.shuffle(y, spacing, slices)
    y = y.reshape(*leading, *y.shape[1:])
    check_residual(residual, y.shape)
    return y if residual is None else apply_epilogue(y, None, activation, y.dtype, residual)
  images, geometry = dilate(images, spacing, geometry)
  size = geometry.output_size(images.shape[1:-1])
  check_residual(residual, (*leading, *size, condensed.out_features))
  if residual is not None:
    residual = residual.reshape(images.shape[0], *size, condensed.out_features)
  y = _run_dilated(images, layer, backend, activation, residual, geometry)
  return y.reshape(*leading, *y.shape[1:])


def _phases(
  shape: tuple[int, ...],
  layer: Condensed | Prepared,
  backend: str,
  spacing: tuple[int, ...],
  geometry: Geometry,
) -> Condensed | Prepared | None:
  """The layer in sub-pixel form, if that can run this call; `shape` is that of its images."""
  if max(spacing) == 1 or max(geometry.strides) > 1 or geometry.groups > 1:
    return None
  size = shape[1:-1]
  if not all(isinstance(n, int) and n > 0 for n in size):  # sizes may be symbolic
    return None
  spaced = [(n - 1) * s + 1 for n, s in zip(size, spacing, strict=True)]
  if 0 in geometry.output_size(spaced):
    return None
  if isinstance(layer, Prepared):
    if layer.subpixel is not None and layer.subpixel.fits(spacing, geometry.dilation):
      return layer.phases if backend == "auto" or backend in layer.layouts else None
    if not layer.is_automatic or layer.gradients:
      return None
    layer = layer.condensed
  if not is_concrete(layer) or layer.num_active == 0:
    return None
  find = lambda layer: subpixel.find(layer, spacing, geometry.dilation).phases(layer)
  phases = remember(layer, ("phases", spacing, geometry.dilation), find)
  return dataclasses.replace(phases, bias=subpixel.each_phase(layer.bias, spacing))


def _run_dilated(
  images: Array,
  layer: Condensed | Prepared,
  backend: str,
  activation: str | None,
  residual: Array | None,
  geometry: Geometry,
) -> Array:
  if isinstance(layer, Prepared):
    if layer.subpixel is not None:  # which is what it is laid out for
      layer = layer.condensed
    elif layer.feature_group_count != geometry.groups:
      layer, backend = _drop_layouts(layer, backend)
  if _is_product(geometry):
    return condensed_matmul(
      images, layer, backend=backend, activation=activation, residual=residual
    )
  condensed = layer.condensed if isinstance(layer, Prepared) else layer
  pixels = math.prod((images.shape[0], *geometry.output_size(images.shape[1:-1])))
  backend, layouts = choose_layouts(layer, backend, pixels, geometry.groups)
  return deferred.call(_apply, images, condensed, layouts, residual, activation, backend, geometry)


def _drop_layouts(layer: Prepared, backend: str) -> tuple[Prepared | Condensed, str]:
  """Keeps of a layer prepared for another number of groups what does not depend on it."""
  if backend == "auto":
    backend, _ = choose_backend(layer)
    backend = backend if BACKENDS[backend].conv_groups else "xla"
  layouts = {name: x for name, x in layer.layouts.items() if BACKENDS[name].conv_groups}
  return Prepared(layer.condensed, layouts, tuple(layouts)), backend


def _is_product(geometry: Geometry) -> bool:
  """Whether every output reads one pixel, that in its own place."""
  ones = (1,) * len(geometry.kernel_size)
  none = ((0, 0),) * len(ones)
  return geometry == Geometry(ones, ones, geometry.dilation, none, 1)


@functools.partial(jax.jit, static_argnums=(4, 5, 6))
def _apply(x, condensed: Condensed, layout: Layout, residual, activation, backend, geometry):
  rank = len(geometry.kernel_size)
  leading, x = x.shape[: -rank - 1], x.reshape(-1, *x.shape[-rank - 1 :])
  shape = (x.shape[0], *geometry.output_size(x.shape[1:-1]), condensed.out_features)
  if 0 in shape or condensed.num_active == 0:  # nothing to sum, which XLA would refuse
    y = jnp.zeros((*leading, *shape[1:]), x.dtype)
    return apply_epilogue(y, condensed.bias, activation, x.dtype, residual)
  if not BACKENDS[backend].converts:
    x = round_inputs(x, condensed, x.ndim - 1)
  condensed = dequantize(condensed)
  if residual is not None:
    residual = residual.reshape(shape)
  args = x, condensed.values, condensed.bias, residual, condensed, layout
  return _conv(backend, activation, geometry, *args).reshape(*leading, *shape[1:])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _conv(backend, activation, geometry, x, values, bias, residual, condensed, layout):
  """The convolution of `x` `[B, *S, C]`: a function of `values` and `bias` to differentiation."""
  entry = BACKENDS[backend]
  layout = entry.with_values(layout, values)
  convolve = entry.conv or functools.partial(conv_patches.conv, entry.matmul)
  run = lambda activation, *residual: convolve(x, layout, bias, activation, geometry, *residual)
  if entry.conv is None:
    entry = entry._replace(adds_residual=False)
  return entry.finish(run, activation, residual)


def _conv_jvp(backend, activation, geometry, primals, tangents):
  """Tangents by a dense convolution, whose transposes are the gradients."""
  x, values, _, _, condensed, _ = primals
  z = _conv(backend, None, geometry, *primals)
  tangents = [None if isinstance(t, SymbolicZero) else t for t in tangents[:4]]
  dx, dvalues, *added = tangents
  convolve = functools.partial(dense.convolve, geometry=geometry)
  parts = []
  if dx is not None:
    parts.append(convolve(dx, _kernel(values, condensed)))
  if dvalues is not None:
    parts.append(convolve(x, _kernel(dvalues, condensed)))
  for tangent in added:  # of bias and residual
    if tangent is not None:
      parts.append(jnp.broadcast_to(tangent.astype(jnp.float32), z.shape))
  dz = sum(parts, jnp.zeros(z.shape, jnp.float32)).astype(z.dtype)
  if activation is None:
    return z, dz
  act = lambda z: ACTIVATIONS[activation](z.astype(jnp.float32)).astype(z.dtype)
  return jax.jvp(act, (z,), (dz,))


def _kernel(values: Array, condensed: Condensed) -> Array:
  """The dense kernel as a matrix `[I, N]` float32."""
  rows = densify(values, condensed.indices, condensed.in_features)
  return scatter_to_neurons(rows, condensed.active, condensed.out_features).T.astype(jnp.float32)


_conv.defjvp(_conv_jvp, symbolic_zeros=True)
