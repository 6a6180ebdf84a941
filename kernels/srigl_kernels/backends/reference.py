"""The definition of the condensed product, which every other backend is measured against."""

import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends.base import Backend
from srigl_kernels.epilogue import apply_epilogue
from srigl_kernels.format import Condensed


def matmul(
  x: Array, condensed: Condensed, bias: Array | None = None, activation: str | None = None
) -> Array:
  """`y[b, active[a]] = sum_k values[a, k] * x[b, indices[a, k]]`, then bias and activation.

  Args:
    x: `[B, I]` float32 or bfloat16.
    condensed: the layer; its own bias is left to `bias`.
    bias: `[N]`, or None.
    activation: None, `"relu"` or `"gelu"`.

  Returns:
    `[B, N]` of x's type, from sums in float32. Makes a `[B, A, K]` temporary.
  """
  picked = x.astype(jnp.float32)[:, condensed.indices]
  sums = (picked * condensed.values.astype(jnp.float32)[None]).sum(-1)
  y = jnp.zeros((x.shape[0], condensed.out_features)).at[:, condensed.active].set(sums)
  return apply_epilogue(y, bias, activation, x.dtype)


BACKEND = Backend(lambda condensed: condensed, matmul)
"""Any device; for tests."""
