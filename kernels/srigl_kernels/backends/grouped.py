"""The backend "grouped": neurons in groups that share their inputs, as small dense products.

A group is `size` active neurons, one after the other, with the same indices. Their inputs are
gathered once, and the group is a dense product `[size, K] x [K, B]` that matrix units can do. Only
layers that were trained that way have the structure; `group` tells.

On GPUs the product is one kernel, in CUDA C++ where that can run, else Pallas' (`gpu_grouped`);
elsewhere XLA gathers and multiplies.
Precision of products follows `jax_default_matmul_precision`, as with a dense layer.
"""

import dataclasses
import functools
import importlib
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_kernels.backends import xla
from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.cuda import grouped as cuda
from srigl_kernels.backends.cuda import library
from srigl_kernels.backends.padding import pad_rows
from srigl_kernels.batching import over_rows
from srigl_kernels.epilogue import active_first, apply_epilogue, scatter_to_neurons
from srigl_kernels.format import Condensed

SIZES = (32, 16)
"""Sizes of groups that `group` looks for, in this order."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """The pattern of a layer in groups.

  Attributes:
    indices: `[G, K']`, of the layer's type, rows padded with zeros.
    active: `[A]` int32, the active neurons; the last group may have fewer than the others.
    columns: `[N]` int32, the active neurons, then the others; None if all are active.
    group_size: neurons of a group.
    in_features: `I`.
    out_features: `N`.
    kernels: `"xla"`, `"cuda"`, `"gpu"` (Pallas') or, for that in interpret mode, `"interpret"`.
    steps: the pattern as the CUDA kernel reads it, or None.
  """

  indices: Array
  active: Array
  columns: Array | None
  group_size: int = dataclasses.field(metadata={"static": True})
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})
  kernels: str = dataclasses.field(metadata={"static": True})
  steps: cuda.Steps | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
  """A layer in groups.

  Attributes:
    values: `[G, size, K']` float32 or bfloat16; rows are padded with zeros, and the last group
      with rows of zeros; flat for the CUDA kernel, as its `fragments` says.
    pattern: which inputs they multiply, and whose they are.
  """

  values: Array
  pattern: Pattern

  @property
  def out_features(self) -> int:
    """`N`."""
    return self.pattern.out_features

  @property
  def group_size(self) -> int:
    """Neurons of a group."""
    return self.pattern.group_size


def group(condensed: Condensed, size: int | None = None) -> Grouped:
  """A layer in groups, if it has the structure.

  Args:
    condensed: the layer; its indices are concrete.
    size: neurons of a group; by default the first of `SIZES` that the layer has.

  Raises:
    ValueError: if neurons of a group differ in their inputs; it names two.
  """
  return with_values(group_pattern(condensed, size), condensed.values)


def group_pattern(condensed: Condensed, size: int | None = None) -> Pattern:
  """The pattern of `group`; the values are not read and may be traced."""
  indices = np.asarray(condensed.indices)
  size = group_size(condensed) or SIZES[-1] if size is None else size
  if size < 1:
    raise ValueError(f"`size` must be at least 1, not {size}.")
  stray = np.flatnonzero((indices != indices[_firsts(len(indices), size)]).any(1))
  if stray.size:
    row = int(stray[0])
    one, other = (int(condensed.active[i]) for i in (row - row % size, row))
    raise ValueError(
      f"The layer is not in groups of {size} neurons with the same inputs: neurons {one} and "
      f"{other} are of one group and differ. backend='grouped' is for layers trained with groups; "
      "any other backend runs this one."
    )
  kernels = _kernels(size)
  return Pattern(
    pad_rows(jnp.asarray(indices[::size])),
    condensed.active,
    active_first(condensed.active, condensed.out_features),
    size,
    condensed.in_features,
    condensed.out_features,
    kernels,
    cuda.pack(condensed, size) if kernels == "cuda" else None,
  )


def _kernels(size: int) -> str:
  """What computes the product here; matrix units take groups of 16, 32, 64 and so on."""
  if size in cuda.SIZES and library.is_available():
    return "cuda"
  wanted = os.environ.get("SRIGL_PALLAS_INTERPRET") or jax.default_backend()
  if wanted != "gpu" or size < 16 or size & (size - 1):
    return "xla"
  return "gpu" if jax.default_backend() == "gpu" else "interpret"


def group_size(condensed: Condensed) -> int | None:
  """The first of `SIZES` that a concrete layer has groups of, or None."""
  indices = np.asarray(condensed.indices)
  for size in SIZES:
    if len(indices) > 1 and np.array_equal(indices, indices[_firsts(len(indices), size)]):
      return size
  return None


def _firsts(num_rows: int, size: int) -> np.ndarray:
  """For each row the first one of its group."""
  rows = np.arange(num_rows)
  return rows - rows % size


def with_values(layout: Pattern | Grouped, values: Array) -> Grouped:
  """What `matmul` reads: a pattern gets the values `[A, K]`; a grouped layer keeps its own."""
  if isinstance(layout, Grouped):
    return layout
  if layout.steps is not None:
    return Grouped(cuda.fragments(_in_groups(values, layout), layout.steps), layout)
  return Grouped(_in_groups(pad_rows(values), layout), layout)


def _in_groups(rows: Array, pattern: Pattern) -> Array:
  """`[A, M]` as `[G, size, M]`."""
  num_groups = pattern.indices.shape[0]
  rows = jnp.pad(rows, ((0, num_groups * pattern.group_size - rows.shape[0]), (0, 0)))
  return rows.reshape(num_groups, pattern.group_size, rows.shape[1])


def matmul(
  x: Array, layout: Grouped, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it, of a layout from `group` or `with_values`."""
  if 0 in x.shape or not layout.values.size:
    sums = jnp.zeros((x.shape[0], layout.out_features))
    return apply_epilogue(sums, bias, activation, x.dtype)
  if layout.pattern.steps is not None:
    size, num_outputs = layout.group_size, layout.out_features
    args = x, layout.values, layout.pattern.steps, bias, activation
    return cuda.matmul(*args, size=size, num_outputs=num_outputs)
  if layout.pattern.kernels != "xla":
    return _on_gpu(activation)(x, layout, bias)
  num_rows, num_inputs = x.shape
  values, pattern = layout.values, layout.pattern
  num_groups, size, fan_in = values.shape
  rows = xla.fit(4 * (num_groups * (fan_in + 2 * size) + 2 * num_inputs + 3 * layout.out_features))

  def step(start: Any, count: int, out: Array) -> Array:
    tile = lax.dynamic_slice_in_dim(x, start, count)
    sums = xla.einsum("gsk,gkb->gsb", values, _gather(tile, pattern))
    sums = sums.reshape(-1, count)[: len(pattern.active)]
    y = scatter_to_neurons(sums, pattern.active, layout.out_features).T
    return xla.store(out, apply_epilogue(y, bias, activation, x.dtype), start, x.dtype)

  out = xla.as_bits(jnp.zeros((num_rows, layout.out_features), x.dtype))
  return lax.bitcast_convert_type(xla.tiles(step, num_rows, rows, out), x.dtype)


@functools.cache
def _on_gpu(activation: str | None) -> Any:
  """The call of the kernel, which vmap calls once for all rows of x."""
  kernel = importlib.import_module("srigl_kernels.backends.pallas.gpu_grouped").grouped_sums

  def call(x: Array, layout: Grouped, bias: Array | None) -> Array:
    pattern = layout.pattern
    return kernel(
      x,
      layout.values,
      pattern.indices,
      num_rows=pattern.active.shape[0],
      columns=pattern.columns,
      num_columns=pattern.out_features,
      bias=bias,
      activation=activation,
      interpret=pattern.kernels == "interpret",
    )

  return over_rows(call)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Pattern | Grouped) -> Array:
  """As `xla.values_gradient`."""
  pattern = layout.pattern if isinstance(layout, Grouped) else layout
  if 0 in x.shape or not condensed.values.size:
    return jnp.zeros_like(condensed.values)
  num_groups, fan_in = pattern.indices.shape
  rows = xla.fit(4 * (num_groups * (fan_in + 2 * pattern.group_size) + 2 * x.shape[1]))

  def step(start: Any, count: int, sums: Array) -> Array:
    tile = lax.dynamic_slice_in_dim(x, start, count)
    factors = lax.dynamic_slice_in_dim(g, start, count)[:, pattern.active].T
    return sums + xla.einsum("gsb,gkb->gsk", _in_groups(factors, pattern), _gather(tile, pattern))

  sums = jnp.zeros((num_groups, pattern.group_size, fan_in))
  sums = xla.tiles(step, x.shape[0], rows, sums).reshape(-1, fan_in)
  return sums[: condensed.num_active, : condensed.fan_in].astype(condensed.values.dtype)


def _gather(x: Array, pattern: Pattern) -> Array:
  """`[G, K', B]`, the inputs of each group, rows of x's transpose."""
  return x.T.at[pattern.indices.astype(jnp.int32)].get(mode="promise_in_bounds")


BACKEND = Backend(
  group,
  matmul,
  packs_traced=lambda: False,
  pack_pattern=group_pattern,
  with_values=with_values,
  values_gradient=values_gradient,
)
"""Any device, for layers that were trained with groups; gains on GPUs and TPUs only."""
