"""The condensed product: preparing a layer, running it, and its derivative."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from srigl_kernels import auto, deferred, subpixel, trilinear
from srigl_kernels.backends.registry import BACKENDS, pack
from srigl_kernels.call_checks import check_call, check_residual
from srigl_kernels.conv_geometry import check_groups, per_axis
from srigl_kernels.epilogue import ACTIVATIONS
from srigl_kernels.format import Condensed, check_structure
from srigl_kernels.layer_cache import is_concrete, remember
from srigl_kernels.precision import convert, dequantize, precision_of, round_inputs
from srigl_kernels.prepared import Layout, Prepared


def prepare(
  condensed: Condensed,
  *,
  backend: str | Sequence[str] = "auto",
  batch: int | Sequence[int] | None = None,
  gradients: bool = False,
  exact: bool = True,
  feature_group_count: int = 1,
  input_dilation: int | Sequence[int] = 1,
  kernel_dilation: int | Sequence[int] = 1,
  dtype: str | None = None,
  input_range: Any = None,
) -> Prepared:
  """Makes the layouts of one or more backends.

  Args:
    condensed: the layer.
    backend: a name in `BACKENDS`, or several in order of preference, or `"auto"`: those that are
      expected to be fastest at some batch size; `condensed_matmul` then takes the fastest in every
      call. That is decided by `srigl_kernels.cost_model`: on CPU among `cpu` (where it can run),
      `xla`, `structured` and `dense`; on GPUs and TPUs, where its constants are estimates, among
      `cuda` (`pallas` where that cannot run), `structured`, `dense` and, for a layer in groups,
      `grouped`. Depthwise convolutions on CPU are `dense`.
    batch: for `"auto"`, the batch sizes (rows of x) to expect; by default anything from 1 to 2048.
      Each layout takes memory besides the layer itself: `cpu` two copies of the weights with one
      byte of index each, one of them padded, `cuda` two with two bytes, `xla`, `grouped` and
      `pallas` one copy (on TPUs a padded one), `structured` a dense matrix of the active neurons,
      `dense` the dense kernel.
    gradients: prepares for training: the values may change, as `Prepared` describes, and `cpu` and
      `cuda` have native gradients in x. Costs a permutation of the values in every call and
      direction, and on `cpu` the faster kernel for batches of up to a dozen rows; for inference
      prepare without.
      `"auto"` then takes one backend, that for the largest batch.
    exact: whether every weight must be used as it is. With False, `cpu` uses float32 weights that
      differ by up to 2**-19 (1.9e-6) of their size for up to a dozen rows of x on AVX-512, where
      that is faster: about as much as rounding changes sums of float32. Other backends, other
      batches, convolutions and bfloat16 are not affected, nor are gradients.
    feature_group_count: of the convolution that will be run with it, 1 for other layers.
    input_dilation: likewise, the strides of a transposed convolution: the layer is then prepared in
      its sub-pixel form (`srigl_kernels.subpixel`), for calls with these dilations alone. It takes
      a pattern that is not traced and one group; others are prepared as without it.
    kernel_dilation: likewise; matters with `input_dilation` only.
    dtype: what products are of, a name in `DTYPES`; None for what the layer is of already.
      `"bfloat16"` rounds weights, and inputs in every call, to 16 bits; `"int8"` both to 8 bits;
      `"int8_weights"` the weights alone. `cpu` then has faster kernels, where the CPU has such
      products, and reads fewer bytes; other backends compute the same in float32.
    input_range: for `"int8"`, the least and the largest input to expect, beyond which inputs are
      clipped; by default each row of x has its own, at some cost.

  Raises:
    ValueError: if a name is unknown, the backend cannot run here, its layout would be out of all
      proportion to what the layer holds (`layout_size`), it packs on the host and the
      layer (with `gradients`: its pattern) is traced, a batch size is no whole number of 1 or
      more, the neurons cannot be cut into so many groups, or values that may change are not to be
      exact, or of 8 bits.
  """
  if dtype is not None or input_range is not None:
    condensed = convert(condensed, dtype or precision_of(condensed), input_range)
  if gradients and condensed.is_reduced:
    raise ValueError(
      f"With `gradients=True` values may change, which cannot be of {precision_of(condensed)!r} "
      "then: train in float32, and prepare for inference afterwards."
    )
  if gradients and not exact:
    raise ValueError(
      "`exact=False` rounds the values when they are packed, and with `gradients=True` they may "
      "change afterwards: prepare with one of the two."
    )
  check_structure(condensed)
  check_groups(condensed, feature_group_count)
  rank = max(len(condensed.kernel_shape) - 2, 1)
  spacing = per_axis("input_dilation", input_dilation, rank)
  dilation = per_axis("kernel_dilation", kernel_dilation, rank)
  whole, found = condensed, None
  is_spaced = max(spacing) > 1 and feature_group_count == 1 and condensed.num_active > 0
  if is_spaced and not auto.is_traced((condensed.indices, condensed.active)):
    found = subpixel.find(condensed, spacing, dilation)
    condensed = found.phases(condensed)
  names, is_automatic = auto.names(condensed, backend, batch, gradients, feature_group_count)
  layouts = {
    name: pack(name, condensed, feature_group_count, gradients=gradients, exact=exact)
    for name in names
  }
  layouts = {name: layout for name, layout in layouts.items() if layout is not None}
  return Prepared(whole, layouts, names, is_automatic, gradients, feature_group_count, found)


def choose_backend(layer: Condensed | Prepared, batch: int = 1) -> tuple[str, str]:
  """What `backend="auto"` runs, and why.

  Args:
    layer: a layer as it would be given to `condensed_matmul`.
    batch: rows of x, all axes but the last taken together. Under `jax.vmap` a call sees the rows of
      one example only, unless `srigl_jax.fuse` is around it, which sees them all.

  Returns:
    `(name, reason)`. Of a layer prepared with `backend="auto"` the layout that is expected to be
    fastest for the batch, of one prepared for backends by name the first of them. Of a layer that
    is not prepared the one that is expected to be fastest, if its arrays are concrete: then its
    layout is made once and kept. If they are traced, `xla` (on GPUs `pallas`): other layouts cost
    more to make in every call than they save.

  Raises:
    ValueError: if `batch` is no whole number of 1 or more.
  """
  (batch,) = auto.check_batch((batch,))
  if isinstance(layer, Prepared):
    layer = layer.phases
  else:
    check_structure(layer)
  if not isinstance(layer, Prepared) or not layer.preference:
    return auto.choose(layer.condensed if isinstance(layer, Prepared) else layer, batch)
  if not layer.is_automatic:
    return layer.preference[0], "it is the first backend that the layer was prepared for"
  names, group = layer.preference, layer.group_size
  best = auto.rank(layer.condensed, batch, names, group)[0][0]
  if len(names) > 1:
    return best, auto.expectation(layer.condensed, batch, names, group)
  others = dict.fromkeys([best, *auto.candidates(layer.condensed)])
  why = auto.expectation(layer.condensed, batch, list(others), group)
  return best, f"it is the only layout that the layer was prepared with; {why}"


def condensed_matmul(
  x: Array,
  layer: Condensed | Prepared,
  *,
  backend: str = "auto",
  activation: str | None = None,
  residual: Array | None = None,
) -> Array:
  """Output of a condensed layer, differentiable in x, values and bias on every backend.

  In forward and in reverse mode, to any order, by the backend's own kernels. Give x its batch as
  leading axes: of a vmapped call the gradient in the values is one gradient for every example,
  added up afterwards.

  Sums, bias, residual and activation are in float32 whatever the types of x and values. An infinite
  or NaN input may also reach neurons that have no weight for it, as it does in a dense layer.

  Args:
    x: `[..., I]` float32 or bfloat16.
    layer: the layer, which `prepare` makes ready outside of jit. For a `Condensed` of concrete
      arrays, such as a constant of a jitted function, this is done in the first call and kept as
      long as these live. One that is traced, such as an argument of a jitted function or one whose
      values are differentiated, is laid out in every call, about as slow as a dense layer; with
      `backend="auto"` a warning says so, once.
    backend: a name in `BACKENDS`, or `"auto"`: see `choose_backend`.
    activation: None or a name in `ACTIVATIONS`: `"relu"`, `"gelu"` (its tanh form, the default of
      `jax.nn.gelu`), `"gelu_exact"`, `"silu"`, `"relu6"` or `"hard_silu"`.
    residual: `[..., N]`, an array that is added before the activation, or None.

  Returns:
    `[..., N]` of x's type; outputs of ablated neurons are their bias, with residual and activation.

  Raises:
    ValueError: if shapes, types or names are not as above, or the backend cannot run here.
  """
  condensed = check_call(x, layer, activation)
  if isinstance(layer, Prepared) and layer.feature_group_count != 1:
    raise ValueError(
      f"The layer was prepared for a convolution of {layer.feature_group_count} groups: run it by "
      "`condensed_conv`, or prepare it without `feature_group_count`."
    )
  if isinstance(layer, Prepared) and layer.subpixel is not None:
    raise ValueError(
      "The layer was prepared for a transposed convolution: run it by `condensed_conv`, or prepare "
      "it without `input_dilation`."
    )
  if x.ndim < 1 or x.shape[-1] != condensed.in_features:
    raise ValueError(
      f"The last axis of `x` must be the layer's {condensed.in_features} inputs, but x has shape "
      f"{x.shape}."
    )
  backend, layouts = choose_layouts(layer, backend, math.prod(x.shape[:-1]))
  check_residual(residual, (*x.shape[:-1], condensed.out_features))
  return deferred.call(_apply, x, condensed, layouts, residual, activation, backend)


def choose_layouts(
  layer: Condensed | Prepared, backend: str, batch: int, feature_group_count: int = 1
) -> tuple[str, dict[str, Layout]]:
  """The backend that runs a call, and its layout of the layer, with others that could run it.

  Args:
    layer: as it was given.
    backend: a name in `BACKENDS`, or `"auto"`.
    batch: rows of x, which may be symbolic; to the native kernels every pixel of a convolution's
      output is one.
    feature_group_count: groups of the convolution.
  """
  is_automatic = backend == "auto"
  if is_automatic:
    backend, _ = choose_backend(layer, auto.expected_batch(batch))
    if not isinstance(layer, Prepared) and auto.is_depthwise(layer, feature_group_count):
      backend = "dense"
  if isinstance(layer, Prepared):
    if backend in layer.layouts:
      is_free = is_automatic and layer.is_automatic
      return backend, layer.layouts if is_free else {backend: layer.layouts[backend]}
    return backend, {backend: pack(backend, layer.condensed, feature_group_count)}
  if is_concrete(layer):
    make = lambda condensed: pack(backend, condensed, feature_group_count)
    return backend, {backend: remember(layer, (backend, feature_group_count), make)}
  if is_automatic and backend == "xla":
    auto.warn_of_unprepared_layer()
  return backend, {backend: pack(backend, layer, feature_group_count)}


@functools.partial(jax.jit, static_argnums=(4, 5))
def _apply(x, condensed: Condensed, layout: Layout, residual, activation: str | None, backend: str):
  rows = x.reshape(-1, condensed.in_features)
  if not BACKENDS[backend].converts:
    rows = round_inputs(rows, condensed)
  condensed = dequantize(condensed)
  if residual is not None:
    residual = residual.reshape(-1, condensed.out_features)
  args = rows, condensed.values, condensed.bias, residual, condensed, layout
  y = _matmul(backend, activation, *args)
  return y.reshape(*x.shape[:-1], condensed.out_features)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _matmul(backend, activation, x, values, bias, residual, condensed, layout):
  """The product of `x` `[B, I]`: a function of `values` and `bias` to differentiation only."""
  entry = BACKENDS[backend]
  run = functools.partial(entry.matmul, x, entry.with_values(layout, values), bias)
  return entry.finish(run, activation, residual)


def _matmul_jvp(backend, activation, primals, tangents):
  x, values, _, _, condensed, layout = primals
  z = _matmul(backend, None, *primals)
  tangents = [None if isinstance(t, SymbolicZero) else t for t in tangents[:4]]
  dx, dvalues, *added = tangents
  if not BACKENDS[backend].is_linear(layout):
    backend, layout = "xla", BACKENDS["xla"].pack(condensed)
  dz = trilinear.tangent(backend, (x, values), (dx, dvalues), condensed, layout)
  for tangent in added:  # of bias and residual
    if tangent is not None:
      rows = jnp.broadcast_to(tangent.astype(jnp.float32), z.shape)
      dz = (rows if dz is None else dz.astype(jnp.float32) + rows).astype(z.dtype)
  dz = jnp.zeros_like(z) if dz is None else dz
  if activation is None:
    return z, dz
  act = lambda z: ACTIVATIONS[activation](z.astype(jnp.float32)).astype(z.dtype)
  return jax.jvp(act, (z,), (dz,))


_matmul.defjvp(_matmul_jvp, symbolic_zeros=True)
