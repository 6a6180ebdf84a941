"""The CUDA kernel of the backend "grouped": what it reads, and its call.

A group's inputs are dealt out to steps of 16 of one chunk of x, as the kernel brings x to shared
memory by chunks. Its weights lie as the lanes of a warp hold what tensor cores multiply.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_kernels.backends.cuda import library
from srigl_kernels.backends.cuda.layout import neurons_of_rows, position_in_run
from srigl_kernels.backends.cuda.products import ACTIVATION_NUMBERS, mode_of
from srigl_kernels.batching import over_rows
from srigl_kernels.format import Condensed

SIZES = (16, 32, 64)
"""Sizes of groups that there is a kernel for."""

_CHUNK, _STEP = 512, 16  # as in kernels.h
_ROWS = 8  # inputs whose rows are read at once, from different banks where their number is modulo 8


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
  """The pattern of `G` groups, their inputs in steps.

  Attributes:
    places: `[G, steps * 16]` uint16, in the chunk; input q of a step at `q % 4 * 4 + q // 4`.
    starts: `[G, chunks + 1]` int32, a group's first step of each chunk.
    sources: `[G, steps * 16]` int32: which of the group's inputs; their number where there is none.
    active: `[A]` int32, as in `layout.Pattern`.
    rows: `[N]` int32, likewise.
  """

  places: Array
  starts: Array
  sources: Array
  active: Array
  rows: Array


def pack(condensed: Condensed, size: int) -> Steps:
  """The pattern of a layer in groups of `size` neurons, one of `SIZES`; the values are not read."""
  places, starts, sources = _make_steps(condensed.indices[::size], condensed.in_features)
  active, rows = neurons_of_rows(condensed)
  return Steps(places, starts, sources, active, rows)


@functools.partial(jax.jit, static_argnums=1)
def _make_steps(indices: Array, num_inputs: int) -> tuple[Array, Array, Array]:
  """Deals out the inputs of groups, given by their indices `[G, K]`."""
  num_groups, fan_in = indices.shape
  num_chunks = math.ceil(num_inputs / _CHUNK)
  num_steps = max(1, (fan_in + (_STEP - 1) * min(num_chunks, fan_in)) // _STEP)
  indices = indices.reshape(-1).astype(jnp.int32)
  group = jnp.repeat(jnp.arange(num_groups, dtype=jnp.int32), fan_in)
  chunk, place = jnp.divmod(indices, _CHUNK)
  run, row = group * num_chunks + chunk, place % _ROWS
  counts = jnp.zeros((num_groups, num_chunks), jnp.int32).at[group, chunk].add(1)
  ends = jnp.cumsum(-(-counts // _STEP), axis=1, dtype=jnp.int32)
  starts = jnp.pad(ends, ((0, 0), (1, 0)))

  order = jnp.lexsort((row, run))
  before = position_in_run(run[order] * _ROWS + row[order])
  order = order[jnp.lexsort((row[order], before, run[order]))]
  step, q = jnp.divmod(position_in_run(run[order]), _STEP)
  group, chunk = group[order], chunk[order]
  first = (starts[group, chunk] + step) * _STEP
  places = jnp.zeros((num_groups, num_steps * _STEP), jnp.uint16)
  places = places.at[group, first + q % 4 * 4 + q // 4].set(place[order].astype(jnp.uint16))
  sources = jnp.full((num_groups, num_steps * _STEP), fan_in, jnp.int32)
  sources = sources.at[group, first + q].set((order % max(fan_in, 1)).astype(jnp.int32))
  return places, starts, sources


def fragments(values: Array, steps: Steps) -> Array:
  """Values `[G, S, K]` as lanes hold them, `[G * S * steps * 16]`."""
  filled = jnp.pad(values, ((0, 0), (0, 0), (0, 1)))
  return _arrange(jnp.take_along_axis(filled, steps.sources[:, None, :], axis=2))


def _arrange(rows: Array) -> Array:
  """`[G, S, steps * 16]` flat, in the order that the type asks for."""
  num_groups, size, width = rows.shape
  num_steps = width // _STEP  # and not -1, of which nothing is known where there are no groups
  if rows.dtype == jnp.bfloat16:  # G, S / 16, half of rows, row; step, half of inputs, quad, pair
    axes = rows.reshape(num_groups, size // 16, 2, 8, num_steps, 2, 4, 2)
    return axes.transpose(0, 4, 1, 3, 6, 5, 2, 7).reshape(-1)
  axes = rows.reshape(num_groups, size // 16, 2, 8, num_steps, 2, 2, 4)  # step, part, half, quad
  return axes.transpose(0, 4, 5, 1, 3, 7, 6, 2).reshape(-1)


def _as_float32(held: Array, num_groups: int, size: int) -> Array:
  """Fragments of bfloat16 as those of float32."""
  num_steps = held.size // max(1, num_groups * size * _STEP)
  axes = held.reshape(num_groups, num_steps, size // 16, 8, 4, 2, 2, 2)
  rows = axes.transpose(0, 2, 6, 3, 1, 5, 4, 7).reshape(num_groups, size, num_steps * _STEP)
  return _arrange(rows.astype(jnp.float32))


def matmul(
  x: Array,
  held: Array,
  steps: Steps,
  bias: Array | None,
  activation: str | None,
  *,
  size: int,
  num_outputs: int,
) -> Array:
  """The product as `reference.matmul` defines it, of `fragments`, with at least one row of x."""
  dtype = x.dtype
  if held.dtype != dtype:  # one of them is float32
    if held.dtype == jnp.bfloat16:
      held = _as_float32(held, steps.places.shape[0], size)
    x = x.astype(jnp.float32)
  bias = jnp.zeros(0) if bias is None else bias.astype(jnp.float32)
  call = _call(activation, mode_of(x.dtype), size, num_outputs)
  return call(x, held, steps, bias).astype(dtype)


@functools.cache
def _call(activation: str | None, mode: int, size: int, num_outputs: int) -> Any:
  def call(x: Array, held: Array, steps: Steps, bias: Array) -> Array:
    y = jax.ShapeDtypeStruct((x.shape[0], num_outputs), x.dtype)
    return jax.ffi.ffi_call(library.GROUPED, y)(
      x, held, steps.places, steps.starts, steps.active, steps.rows, bias,
      activation=np.int64(ACTIVATION_NUMBERS[activation]),
      mode=np.int64(mode),
      group_size=np.int64(size),
    )  # fmt: skip

  return over_rows(call)
