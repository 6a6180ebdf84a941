"""Where a convolution's outputs lie and what they read: the arguments of `flax.nnx.Conv`, resolved.

Shape letters besides the package's: `S` spatial axes, `C` channels of the image.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_kernels.format import Condensed, index_dtype

Padding = str | int | Sequence[int | tuple[int, int]]

_NAMES = ("SAME", "SAME_LOWER", "VALID", "CIRCULAR", "REFLECT", "CAUSAL")
_WRAPPING = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


class Geometry(NamedTuple):
  """A convolution over `S` spatial axes, channels last.

  Attributes:
    kernel_size: of each axis, as the others.
    strides: distance between the patches of neighbouring outputs.
    dilation: distance between neighbouring inputs of a patch.
    padding: zeros before and after.
    groups: how many times the kernel's channels fit into the image's.
  """

  kernel_size: tuple[int, ...]
  strides: tuple[int, ...]
  dilation: tuple[int, ...]
  padding: tuple[tuple[int, int], ...]
  groups: int

  def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
    """Spatial size of the output for an input of this spatial size."""
    return tuple(
      max(n + low + high - (k - 1) * d - 1 + s, 0) // s
      for n, (low, high), k, d, s in zip(
        size, self.padding, self.kernel_size, self.dilation, self.strides, strict=True
      )
    )


def read(
  x: Array,
  condensed: Condensed,
  *,
  strides: int | Sequence[int],
  padding: Padding,
  input_dilation: int | Sequence[int],
  kernel_dilation: int | Sequence[int],
  feature_group_count: int,
) -> tuple[Array, tuple[int, ...], Geometry]:
  """Checks the arguments of `condensed_conv`.

  Returns:
    `(x [B, *S, C], spacing, geometry)`: x with one batch axis, padded where the padding is not of
    zeros; the geometry is that of its convolution once its pixels are `spacing` apart.

  Raises:
    ValueError: if the layer is no convolution, or an argument does not fit it.
  """
  kernel_size, groups = _check_kernel(condensed, feature_group_count)
  rank, channels = len(kernel_size), condensed.kernel_shape[-2] * groups
  if x.ndim < rank + 1 or x.shape[-1] != channels:
    raise ValueError(
      f"`x` must end in {rank} spatial axes and {channels} channels, as a kernel of shape "
      f"{condensed.kernel_shape} and {groups} groups read them, but has shape {x.shape}."
    )
  steps = per_axis("strides", strides, rank)
  dilation = per_axis("kernel_dilation", kernel_dilation, rank)
  spacing = per_axis("input_dilation", input_dilation, rank)
  reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation, strict=True)]
  x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
  if any(d > 1 for d in spacing) and padding in ("SAME", "SAME_LOWER"):
    raise ValueError(
      f"`padding` {padding!r} has no meaning with an `input_dilation` of {input_dilation!r}: give "
      "the numbers of zeros."
    )
  if isinstance(padding, str) and padding in _WRAPPING:
    around = [(0, 0), *(((r - 1) // 2, r // 2) for r in reach), (0, 0)]
    x, pads = jnp.pad(x, around, mode=_WRAPPING[padding]), ((0, 0),) * rank
  else:
    pads = _zeros(padding, x.shape[1:-1], reach, steps)
  return x, spacing, Geometry(kernel_size, steps, dilation, pads, groups)


def dilate(x: Array, spacing: tuple[int, ...], geometry: Geometry) -> tuple[Array, Geometry]:
  """Does to x what is not left to the kernels: zeros between its pixels, and negative padding.

  Args:
    x: `[B, *S, C]`.
    spacing: distance between its pixels, for each axis.
    geometry: of the convolution after that.
  """
  pads = geometry.padding
  if any(d > 1 for d in spacing):
    interior = [(0, 0, 0), *((0, 0, d - 1) for d in spacing), (0, 0, 0)]
    x = lax.pad(x, jnp.zeros((), x.dtype), interior)
  if any(n < 0 for pair in pads for n in pair):  # XLA on CPU may get these wrong
    x = jnp.pad(x, [(0, 0), *((max(a, 0), max(b, 0)) for a, b in pads), (0, 0)])
    for axis, (low, high) in enumerate(pads, start=1):
      end = x.shape[axis] + min(high, 0)
      x = lax.slice_in_dim(x, min(max(-low, 0), max(end, 0)), max(end, 0), axis=axis)
    pads = ((0, 0),) * len(pads)
  return x, geometry._replace(padding=pads)


def resolve(x: Array, condensed: Condensed, **arguments: Any) -> tuple[Array, Geometry]:
  """`read`, then `dilate`: x and the geometry as kernels take them; arguments as of `read`."""
  return dilate(*read(x, condensed, **arguments))


def expand_groups(condensed: Condensed, groups: int) -> Condensed:
  """The same convolution without groups: every neuron could read all channels of the image."""
  if groups == 1:
    return condensed
  *kernel_size, channels, num_neurons = condensed.kernel_shape
  kernel_shape = (*kernel_size, channels * groups, num_neurons)
  wide = dataclasses.replace(condensed, kernel_shape=kernel_shape)
  xp: Any = np if isinstance(condensed.indices, np.ndarray) else jnp
  indices = condensed.indices.astype(np.int32)
  group = condensed.active[..., None] // (num_neurons // groups)
  indices = (indices // channels * groups + group) * channels + indices % channels
  return dataclasses.replace(wide, indices=xp.asarray(indices, dtype=index_dtype(wide.in_features)))


def _check_kernel(condensed: Condensed, groups: int) -> tuple[tuple[int, ...], int]:
  shape = condensed.kernel_shape
  if len(shape) < 3 or condensed.neuron_axes != (len(shape) - 1,):
    raise ValueError(
      "The layer must be a convolution with a kernel of shape (*kernel_size, channels, neurons) "
      f"and its neurons on the last axis, not {shape} with neurons on the axes "
      f"{condensed.neuron_axes}. `condensed_matmul` runs layers of other kinds."
    )
  check_groups(condensed, groups)
  return shape[:-2], int(groups)


def check_groups(condensed: Condensed, groups: int) -> None:
  """Raises ValueError unless the layer's neurons can be cut into so many groups."""
  if not _is_int(groups) or groups < 1 or condensed.out_features % groups:
    raise ValueError(
      f"`feature_group_count` must be 1 or another divisor of the {condensed.out_features} "
      f"neurons, not {groups!r}."
    )


def _is_int(value: Any) -> bool:
  return isinstance(value, int | np.integer) and not isinstance(value, bool)


def per_axis(name: str, value: Any, rank: int) -> tuple[int, ...]:
  """A setting for each of the axes; a ValueError unless it is whole numbers from 1 on."""
  each: tuple[Any, ...] = tuple(value) if isinstance(value, Sequence) else (value,) * rank
  each = tuple(1 if n is None else n for n in each)  # as Flax has it
  if len(each) != rank or not all(_is_int(n) and n >= 1 for n in each):
    raise ValueError(
      f"`{name}` must be an integer of at least 1, or one for each of the {rank} spatial axes, "
      f"not {value!r}."
    )
  return tuple(int(n) for n in each)


def _zeros(
  padding: Any, size: Sequence[int], reach: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, int], ...]:
  """Zeros before and after each axis."""
  rank = len(size)
  if padding == "CAUSAL" and rank == 1:
    return ((reach[0] - 1, 0),)
  if padding in ("SAME", "SAME_LOWER", "VALID"):
    return tuple((int(a), int(b)) for a, b in lax.padtype_to_pads(size, reach, strides, padding))
  if _is_int(padding):
    return ((int(padding),) * 2,) * rank
  if isinstance(padding, Sequence) and not isinstance(padding, str) and len(padding) == rank:
    pairs = [(p, p) if _is_int(p) else p for p in padding]
    if all(isinstance(p, tuple | list) and len(p) == 2 and all(map(_is_int, p)) for p in pairs):
      return tuple((int(a), int(b)) for a, b in pairs)
  raise ValueError(
    f"`padding` must be one of {list(_NAMES)} (CAUSAL with one spatial axis only), an integer, or "
    f"an integer or a pair of integers for each of the {rank} spatial axes, not {padding!r}."
  )
