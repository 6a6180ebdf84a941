"""Depthwise convolutions on a CPU as sums of shifted images, where they are not native.

XLA's CPU backend computes a convolution in groups one output after the other. A sum over the places
of the kernel it makes one loop that runs along the channels: the MobileNet-V3 of
`experiments.benchmark_serving` is faster by an order of magnitude.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

_MOST_PLACES = 49  # of the kernel: each is one more addition in the program


def is_depthwise(kernel_shape: Sequence[int], channels: int) -> bool:
  """Whether each neuron of a kernel `[*K, inputs of a group, N]` reads one channel, the kernel is
  not too large to be written out, and jax runs on a CPU.

  Args:
    kernel_shape: of the kernel.
    channels: `C`, of the image.
  """
  return (
    jax.default_backend() == "cpu"
    and channels > 0
    and kernel_shape[-2] == 1
    and kernel_shape[-1] % channels == 0
    and 0 < math.prod(kernel_shape[:-2]) <= _MOST_PLACES
  )


def convolve(
  image: Array,
  kernel: Array,
  strides: Sequence[int],
  padding: Sequence[tuple[int, int]],
  dilation: Sequence[int],
) -> Array:
  """The convolution of each channel with a kernel of its own, or with several.

  Args:
    image: `[B, *S, C]` of any floating type.
    kernel: `[*K, 1, N]`; `N` is a multiple of `C`, and neuron `n` reads channel `n // (N // C)`.
    strides: of each spatial axis.
    padding: zeros before and after, likewise; what is negative is cut off.
    dilation: likewise, of the kernel.

  Returns:
    `[B, *S', N]` of the image's type; sums of fewer than 32 bits are formed in float32.
  """
  wide = jnp.promote_types(image.dtype, jnp.float32)
  padded = [n + low + high for n, (low, high) in zip(image.shape[1:-1], padding, strict=True)]
  axes = list(zip(padded, kernel.shape[:-2], strides, dilation, strict=True))
  sizes = [max(0, (n - (k - 1) * d - 1) // s + 1) for n, k, s, d in axes]
  total = jnp.zeros((image.shape[0], *sizes, kernel.shape[-1]), wide)
  if 0 in total.shape:
    return total.astype(image.dtype)
  image = jnp.repeat(image, kernel.shape[-1] // image.shape[-1], axis=-1)
  zero = jnp.zeros((), image.dtype)
  image = lax.pad(image, zero, [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])
  # What makes the image would be computed again for every place of the kernel.
  image = lax.optimization_barrier(image)
  places = itertools.product(*map(range, kernel.shape[:-2]))
  weights = kernel.astype(wide).reshape(-1, *(1,) * (image.ndim - 1), kernel.shape[-1])
  for place, weight in zip(places, weights, strict=True):
    window = tuple(
      slice(at * d, at * d + (size - 1) * s + 1, s)
      for at, size, (_, _, s, d) in zip(place, sizes, axes, strict=True)
    )
    total += image[:, *window].astype(wide) * weight
  return total.astype(image.dtype)


def is_convolution(image: Any, kernel: Any, out: Any, params: dict[str, Any]) -> bool:
  """Whether `lax.conv_general_dilated` of such arrays and parameters is what `convolve` computes.

  Args:
    image: shape and dtype of its first argument.
    kernel: of its second.
    out: of its result.
    params: of its primitive.
  """
  numbers, rank = params["dimension_numbers"], image.ndim
  channels_last = (0, rank - 1, *range(1, rank - 1))
  return (
    numbers.lhs_spec == numbers.out_spec == channels_last
    and numbers.rhs_spec == (rank - 1, rank - 2, *range(rank - 2))
    and is_depthwise(kernel.shape, image.shape[-1])
    and params["feature_group_count"] == image.shape[-1]
    and params["batch_group_count"] == 1
    and all(n == 1 for n in params["lhs_dilation"])
    and image.dtype == kernel.dtype == out.dtype
    and jnp.issubdtype(image.dtype, jnp.floating)
  )
