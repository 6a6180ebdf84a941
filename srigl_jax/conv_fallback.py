"""Stands in for `srigl_kernels.condensed_conv` until that is there: a dense convolution."""

import jax
import jax.numpy as jnp
from flax.nnx.nn.linear import canonicalize_padding
from jax import lax

from srigl_kernels.epilogue import spread
from srigl_kernels.xla import densify


def condensed_conv(
  x,
  layer,
  *,
  strides=1,
  padding="SAME",
  input_dilation=1,
  kernel_dilation=1,
  feature_group_count=1,
  backend="auto",
  activation=None,
):
  """See `srigl_kernels.condensed_conv`."""
  del backend, activation
  condensed = getattr(layer, "condensed", layer)
  rows = densify(condensed.values, condensed.indices, condensed.in_features)
  kernel = spread(rows, condensed.active, condensed.out_features).T
  kernel = kernel.reshape(condensed.kernel_shape).astype(x.dtype)
  rank = kernel.ndim - 2

  def sizes(n):
    return (1 if n is None else n,) * rank if n is None or isinstance(n, int) else tuple(n)

  lead = x.shape[: x.ndim - rank - 1]
  x = x.reshape(-1, *x.shape[x.ndim - rank - 1 :])
  padding = canonicalize_padding(padding, rank)
  if padding in ("CIRCULAR", "REFLECT"):
    spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, sizes(kernel_dilation), strict=False)]
    pads = [(0, 0), *(((k - 1) // 2, k // 2) for k in spans), (0, 0)]
    x = jnp.pad(x, pads, mode={"CIRCULAR": "wrap", "REFLECT": "reflect"}[padding])
    padding = "VALID"
  elif padding == "CAUSAL":
    x = jnp.pad(x, [(0, 0), (sizes(kernel_dilation)[0] * (kernel.shape[0] - 1), 0), (0, 0)])
    padding = "VALID"
  letters = "DHW"[-rank:] if rank <= 3 else None
  y = lax.conv_general_dilated(
    x,
    kernel,
    sizes(strides),
    padding,
    lhs_dilation=sizes(input_dilation),
    rhs_dilation=sizes(kernel_dilation),
    dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    feature_group_count=feature_group_count,
  )
  if condensed.bias is not None:
    y += condensed.bias.astype(y.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
  return jax.numpy.reshape(y, (*lead, *y.shape[1:]))
