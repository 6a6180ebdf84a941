"""Attention by a native CPU kernel, which keeps the products of queries and keys in its caches."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu import library

MOST_BATCH_AXES, MOST_DEPTH = 4, 256
"""Of the batch, and numbers of a query or a value."""


class Layout(NamedTuple):
  """Where arrays have their axes: those of the batch, the rows, and the last of all, which follows.

  An array that lacks an axis, for it has one place there, or is the same at all, has -1.

  Attributes:
    q: of the queries `[..., D]`; its rows are queries.
    k: of the keys `[..., D]`; its rows are keys.
    v: of the values `[..., W]`; its rows are keys.
    mask: of the mask `[..., keys]`, its rows are queries; empty for none.
    out: of the result `[..., W]`; its rows are queries.
  """

  q: tuple[int, ...]
  k: tuple[int, ...]
  v: tuple[int, ...]
  mask: tuple[int, ...]
  out: tuple[int, ...]


def attention(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None,
  *,
  layout: Layout,
  shape: Sequence[int],
  scale: float = 1.0,
  fill: float = -np.inf,
) -> Array:
  """`softmax(scale * q k^T, or fill where the mask is False) v` over the keys.

  Args:
    q: float32, as `layout` says.
    k: likewise.
    v: likewise.
    mask: bool, or None.
    layout: of all arrays; the batch has at most `MOST_BATCH_AXES`.
    shape: of the result.
    scale: of the products of queries and keys.
    fill: what takes the place of a product that is masked.

  Returns:
    The result, float32. Has no derivative of its own; under `jax.vmap` it is a loop of calls.

  Raises:
    RuntimeError: if the library is not there, or, when it runs, the arrays do not fit.
  """
  library.require()
  arrays = {"q": q, "k": k, "v": v, "mask": mask}
  axes = {f"{name}_axes": _axes(getattr(layout, name), array) for name, array in arrays.items()}
  axes["out_axes"] = np.array([*layout.out, len(shape) - 1], np.int64)
  result = jax.ShapeDtypeStruct(tuple(shape), jnp.float32)
  mask = jnp.zeros(0, bool) if mask is None else mask
  call = jax.ffi.ffi_call(library.ATTENTION, result, vmap_method="sequential")
  return call(q, k, v, mask, scale=np.float32(scale), fill=np.float32(fill), **axes)


def _axes(axes: Sequence[int], array: Array | None) -> np.ndarray:
  return np.array([] if array is None else [*axes, array.ndim - 1], np.int64)
