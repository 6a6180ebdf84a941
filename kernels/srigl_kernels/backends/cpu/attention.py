"""Attention by a native CPU kernel, which keeps the products of queries and keys in its caches."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.batching import map_calls

MOST_BATCH_AXES, MOST_DEPTH = 4, 256
"""Of the batch, and numbers of a query or a value."""


_ARRAYS = "q", "k", "v", "mask", "out"


class Layout(NamedTuple):
  """Where arrays have their axes: those of the batch, the rows, and the last of all, which follows.

  An array that lacks an axis, for it has one place there, or is the same at all, has -1.

  Attributes:
    q: of the queries `[..., D]`; its rows are queries.
    k: of the keys `[..., D]`; its rows are keys.
    v: of the values `[..., W]`; its rows are keys.
    mask: of the mask `[..., keys]`, its rows are queries; empty for none.
    out: of the result `[..., W]`; its rows are queries.
    k_tail: of more keys, which follow those of `k`; empty for none.
    v_tail: of their values; likewise.
    offsets: of the first numbers of `k` and `v`, which may have more axes than are named: of these
      one place is read.
  """

  q: tuple[int, ...]
  k: tuple[int, ...]
  v: tuple[int, ...]
  mask: tuple[int, ...]
  out: tuple[int, ...]
  k_tail: tuple[int, ...] = ()
  v_tail: tuple[int, ...] = ()
  offsets: tuple[int, int] = (0, 0)


def attention(
  q: Array,
  k: Array,
  v: Array,
  mask: Array | None,
  tail: tuple[Array, Array] | None = None,
  *,
  layout: Layout,
  shape: Sequence[int],
  scale: float = 1.0,
  fill: float = -np.inf,
) -> Array:
  """`softmax(scale * q k^T, or fill where the mask is False) v` over the keys.

  Scaled dot-product attention (Vaswani et al., 2017, equation 1). More than 512 keys are taken in
  chunks, by the running maximum and sum of Milakov and Gimelshein (2018).

  Args:
    q: `[..., D]` float32; axes before the last come as `layout` says, of all arrays.
    k: `[..., D]` float32.
    v: `[..., W]` float32; `D` and `W` are at most `MOST_DEPTH`.
    mask: `[..., keys]` bool, or None.
    tail: keys `[..., D]` and values `[..., W]` float32 that follow those of `k` and `v`, as what is
      new follows a cache; or None.
    layout: of all arrays; the batch has at most `MOST_BATCH_AXES`.
    shape: of the result, `[..., W]`.
    scale: of the products of queries and keys.
    fill: what takes the place of a product that is masked.

  Returns:
    The result, float32. Has no derivative of its own. Under `jax.vmap` it is one call, or a loop of
    calls where the batch has too many axes.

  Raises:
    RuntimeError: if the library is not there, or, when it runs, the arrays do not fit.
  """
  library.require()
  mask = jnp.zeros(0, bool) if mask is None else mask
  tail = (jnp.zeros(0), jnp.zeros(0)) if tail is None else tail
  return _call(layout, tuple(shape), float(scale), float(fill))(q, k, v, mask, *tail)


@functools.cache
def _call(layout: Layout, shape: tuple[int, ...], scale: float, fill: float) -> Any:
  """The call as a function of the arrays, of which `jax.vmap` makes one with a larger batch."""

  @jax.custom_batching.custom_vmap
  def call(q: Array, k: Array, v: Array, mask: Array, k_tail: Array, v_tail: Array) -> Array:
    arrays = {"q": q, "k": k, "v": v, "mask": mask, "k_tail": k_tail, "v_tail": v_tail}
    axes = {f"{name}_axes": _axes(getattr(layout, name), a.ndim) for name, a in arrays.items()}
    axes["out_axes"] = _axes(layout.out, len(shape))
    axes["offsets"] = np.array(layout.offsets, np.int64)
    result = jax.ShapeDtypeStruct(shape, jnp.float32)
    run = jax.ffi.ffi_call(library.ATTENTION, result)
    return run(*arrays.values(), scale=np.float32(scale), fill=np.float32(fill), **axes)

  @call.def_vmap
  def rule(size: int, batched: Any, *arrays: Array) -> tuple[Array, bool]:
    if len(layout.out) > MOST_BATCH_AXES or layout.k_tail:
      return map_calls(call, batched, arrays), True
    moved: dict[str, Any] = {
      name: _with_axis(getattr(layout, name), is_batched)
      for name, is_batched in zip(_ARRAYS, [*batched[:4], True], strict=True)
    }
    larger = layout._replace(**moved)
    return _call(larger, (size, *shape), scale, fill)(*arrays), True

  return call


def _axes(axes: Sequence[int], rank: int) -> np.ndarray:
  return np.array([*axes, rank - 1] if axes else [], np.int64)


def _with_axis(axes: tuple[int, ...], is_batched: bool) -> tuple[int, ...]:
  """The axes of an array that has one axis more, in front, or is the same along it."""
  if not axes:
    return axes
  return (0, *(n + (n >= 0) for n in axes)) if is_batched else (-1, *axes)
