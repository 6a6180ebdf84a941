"""A transposed convolution as a convolution of an image with zeros between its pixels."""

import math
from collections.abc import Sequence
from typing import Any

import jax


def transposed_padding(
  kernel_size: Sequence[int], strides: Any, padding: Any, dilation: Any
) -> tuple[tuple[int, int], ...]:
  """Zeros around the image, once its pixels are `strides` apart.

  Args:
    kernel_size: of the window.
    strides: of the transposed convolution, for all axes or each.
    padding: `"SAME"`, `"VALID"`, or numbers of zeros as for `condensed_conv`.
    dilation: distance between the pixels of the window, for all axes or each.

  Source: the conventions of `jax.lax.conv_transpose`.
  """
  rank = len(kernel_size)
  each = lambda n: (n,) * rank if isinstance(n, int) else tuple(n)
  if not isinstance(padding, str):
    return tuple((p, p) if isinstance(p, int) else tuple(p) for p in each(padding))
  reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, each(dilation), strict=True)]
  return tuple(_pair(k, s, padding) for k, s in zip(reach, each(strides), strict=True))


def _pair(reach: int, stride: int, padding: str) -> tuple[int, int]:
  if padding == "SAME":
    total = reach + stride - 2
    before = reach - 1 if stride > reach - 1 else math.ceil(total / 2)
    return before, total - before
  return reach - 1, stride - 1 + max(reach - stride, 0)


def dilations(layer: Any) -> dict[str, Any]:
  """What `srigl_kernels.prepare` is told of a layer, of Flax NNX or Linen: how its pixels lie.

  Args:
    layer: a module; there is something to tell of convolutions of stride 1 only.
  """
  is_transposed = hasattr(layer, "transpose_kernel")
  spacing = getattr(layer, "strides" if is_transposed else "input_dilation", None)
  strides = 1 if is_transposed else getattr(layer, "strides", 1)
  if spacing is None or any(n not in (None, 1) for n in jax.tree.leaves(strides)):
    return {}
  return {"input_dilation": spacing, "kernel_dilation": layer.kernel_dilation}
