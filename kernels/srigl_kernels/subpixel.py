"""A transposed convolution in sub-pixel form: a convolution of the image as it is, then a shuffle.

A transposed convolution of stride `s` convolves an image that has `s - 1` zeros between its pixels,
so most of what it multiplies is 0. Outputs whose places are the same modulo `s`, a phase, all read
the same taps of the kernel, so that each phase is a convolution of the image without the zeros. The
phases together are one convolution of `s` times the neurons for each axis, whose outputs are put in
order; it holds the same weights, each once. In phases of fewer weights neurons get weights of 0 for
inputs that they do not read, so that the fan-in is constant again.

Source: Shi et al., "Is the deconvolution layer the same as a convolutional layer?",
arXiv 1609.07009, for dense kernels.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.format import Condensed, index_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Subpixel:
  """The phases of a layer as one layer, but for values and bias, which stay where they are.

  Attributes:
    source: `[A', K']` int32, which of the layer's values is there, `A * K` where there is a 0.
    rows: `[A']` int32, the row of the layer's values that it comes from.
    indices: `[A', K']`, as of `Condensed`.
    active: `[A']` int32, likewise.
    kernel_shape: of the phases, `(*window, C, phases * N)`.
    strides: distance between the pixels of the image, for each axis.
    dilation: distance between the pixels of the kernel, likewise.
  """

  source: Array
  rows: Array
  indices: Array
  active: Array
  kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  strides: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  dilation: tuple[int, ...] = dataclasses.field(metadata={"static": True})

  def fits(self, strides: Sequence[int], dilation: Sequence[int]) -> bool:
    """Whether this is the form of a call with these strides and this dilation."""
    return (self.strides, self.dilation) == (tuple(strides), tuple(dilation))

  def phases(self, layer: Condensed) -> Condensed:
    """The phases of a layer of this pattern, differentiable in its values and bias."""
    values = jnp.append(layer.values.reshape(-1), jnp.zeros(1, layer.values.dtype))[self.source]
    return dataclasses.replace(
      layer,
      values=values,
      indices=self.indices,
      active=self.active,
      bias=each_phase(layer.bias, self.strides),
      scales=None if layer.scales is None else layer.scales[self.rows],
      kernel_shape=self.kernel_shape,
      neuron_axes=(len(self.kernel_shape) - 1,),
    )


def each_phase(bias: Array | None, strides: Sequence[int]) -> Array | None:
  """The bias of all phases, `[phases * N]`, from that of the layer, `[N]`."""
  return None if bias is None else jnp.tile(bias, math.prod(strides))


def find(condensed: Condensed, strides: Sequence[int], dilation: Sequence[int]) -> Subpixel:
  """The phases of a convolution of one group, without layouts.

  Args:
    condensed: a layer with a kernel `(*kernel_size, C, N)`, concrete.
    strides: of the transposed convolution, for each axis.
    dilation: of its kernel, for each axis.
  """
  *size, channels, num_neurons = condensed.kernel_shape
  window = tuple((k - 1) * d // s + 1 for k, d, s in zip(size, dilation, strides, strict=True))
  indices = np.asarray(condensed.indices, np.int64)
  *taps, channel = np.unravel_index(indices, (*size, channels))
  # An output at `s * j - p` reads, by tap t, the pixel `j + (t * d - p) / s` if that is whole.
  places = [t * d for t, d in zip(taps, dilation, strict=True)]
  phases = [(s - 1) - place % s for place, s in zip(places, strides, strict=True)]
  pixels = [place // s for place, s in zip(places, strides, strict=True)]
  inputs = np.ravel_multi_index((*pixels, channel), (*window, channels))
  neurons = np.asarray(condensed.active, np.int64)[:, None]
  neurons = np.ravel_multi_index(tuple(phases), tuple(strides)) * num_neurons + neurons
  num_inputs = math.prod(window) * channels
  active, row = np.unique(neurons, return_inverse=True)
  found = np.full((len(active), num_inputs), indices.size)
  found[row.reshape(-1), inputs.reshape(-1)] = np.arange(indices.size)
  is_there = found < indices.size
  fan_ins = is_there.sum(1)
  missing = (fan_ins.max() - fan_ins)[:, None]
  is_chosen = is_there | (~is_there & (np.cumsum(~is_there, axis=1) <= missing))
  chosen = np.nonzero(is_chosen)[1].reshape(len(active), -1)
  return Subpixel(
    source=jnp.asarray(np.take_along_axis(found, chosen, axis=1), jnp.int32),
    rows=jnp.asarray(np.searchsorted(condensed.active, active % num_neurons), jnp.int32),
    indices=jnp.asarray(chosen, index_dtype(num_inputs)),
    active=jnp.asarray(active, jnp.int32),
    kernel_shape=(*window, channels, math.prod(strides) * num_neurons),
    strides=tuple(strides),
    dilation=tuple(dilation),
  )


def crop(
  size: Sequence[int], strides: Sequence[int], geometry: Geometry
) -> tuple[tuple[tuple[int, int], ...], tuple[slice, ...]]:
  """How the convolution of the phases pads, and which of its outputs in order are wanted.

  Args:
    size: of the image.
    strides: of the transposed convolution.
    geometry: of the convolution of the image with zeros between its pixels.

  Returns:
    `(zeros before and after each axis, a slice of each axis of the outputs)`.
  """
  pads, slices = [], []
  each = zip(size, strides, geometry.kernel_size, geometry.dilation, geometry.padding, strict=True)
  for n, s, k, d, (low, high) in each:
    length = (n - 1) * s + 1 + low + high - (k - 1) * d
    window = (k - 1) * d // s + 1
    first, last = -(low // s), -((low - length + 1) // s)
    pads.append((-first, last - n + window))
    start = s - 1 - low - s * first
    slices.append(slice(start, start + length))
  return tuple(pads), tuple(slices)


def shuffle(y: Array, strides: Sequence[int], slices: Sequence[slice]) -> Array:
  """The outputs in order.

  Args:
    y: `[B, *S, phases * N]`, of the convolution of the phases.
    strides: distance between the outputs of a phase.
    slices: which of them are wanted.

  Returns:
    `[B, *S_out, N]`.
  """
  rank = len(strides)
  y = y.reshape(*y.shape[:-1], *strides, -1)
  order = [axis for a in range(rank) for axis in (1 + a, 1 + rank + a)]
  size = [n * s for n, s in zip(y.shape[1 : 1 + rank], strides, strict=True)]
  y = y.transpose(0, *order, 1 + 2 * rank).reshape(y.shape[0], *size, -1)
  return y[(slice(None), *slices)]
