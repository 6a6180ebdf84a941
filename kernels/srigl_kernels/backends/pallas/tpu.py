"""The backend "pallas" on TPUs: for batches so small that reading the weights is all there is.

    y[b, n] = sum_j values[n, j] * x[b, indices[n, j]]

What a TPU can do with that, for a layer of 768 inputs and 1145 active neurons of fan-in 206 and a
chip of 200 TFLOP/s in bfloat16, 0.8 TB/s and 6 T vector operations a second (published figures of
a TPU v5e; none of it was measured):

- Dense product of the active neurons: 1.8 MB of weights, 2.2 us, then 9 ns for each row of the
  batch: nothing beats the matrix unit once its weights are there.
- Densify in on-chip memory by comparing (each neuron's indices with 768 lanes), then multiply:
  2 * 206 * 768 operations a neuron, 60 us. Below a fan-in of about 8 it would pay.
- One row of x's transpose for each weight, by a scalar index: one vector operation of 1024 lanes
  and one load for each weight and 1024 rows of the batch, 240 us at any batch.
- Gather within vectors: a vector of 8 x 128 lanes can pick from 128 inputs in one instruction. Four
  bytes a weight (value and place in one word), 236,000 weights and a third of padding: 1.3 MB,
  1.6 us; and 230 * 1.4 vectors of some five operations for each row of the batch, 1 us.

So the last is what the kernel does: it beats a dense product at batch 1 or 2, by the more the
sparser the layer (2.6 times less to read at 90 % without ablated neurons), and from there on the
matrix unit wins; `srigl_kernels.cost_model` has the same figures.

Layout: 128 neurons are the lanes of a block. Its weights are cut by their inputs into chunks of 128
and stacked into packets of 8 for each lane, all of one chunk; a block has as many packets of a
chunk as its fullest neuron needs. bfloat16 weights and places share 32-bit words; float32 weights
have words of their own. Gradients are dense products, left to XLA.

Numbers: products and sums are float32. An infinite or NaN input also reaches neurons whose packets
are padded in its chunk. The inputs of 8 rows must fit into on-chip memory: up to 2**18 of them.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_kernels.backends import xla
from srigl_kernels.backends.pallas import lowering
from srigl_kernels.backends.pallas.device import is_interpreted
from srigl_kernels.batching import over_rows
from srigl_kernels.epilogue import apply_epilogue, scatter_to_neurons
from srigl_kernels.format import Condensed

_LANES, _SUBLANES = 128, 8
_MAX_INPUTS = 2**18


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Pattern:
  """Where the weights stand in packets; `J` blocks of neurons, `P` packets each.

  Attributes:
    places: `[J, P, 8, 128]` int32, the input within the packet's chunk; 0 in padding.
    order: `[J, P, 8, 128]` int32, which of the layer's values, flat; -1 in padding.
    chunks: `[J, 1, P]` int32, the chunk of 128 inputs that a packet is about.
    active: `[A]` int32.
    in_features: `I`.
    out_features: `N`.
    interpret: whether the kernel runs in interpret mode.
  """

  places: Array
  order: Array
  chunks: Array
  active: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})
  interpret: bool = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Packed:
  """What the kernel reads.

  Attributes:
    words: `[J, P, 8, 128]` int32, places; of a bfloat16 layer also the values, in the upper half.
    values: `[J, P, 8, 128]` float32, or None if the words hold them.
    chunks: as in `Pattern`.
    active: likewise.
    in_features: `I`.
    out_features: `N`.
    interpret: as in `Pattern`.
  """

  words: Array
  values: Array | None
  chunks: Array
  active: Array
  in_features: int = dataclasses.field(metadata={"static": True})
  out_features: int = dataclasses.field(metadata={"static": True})
  interpret: bool = dataclasses.field(metadata={"static": True})


def pack(condensed: Condensed) -> Packed:
  """The layout that `matmul` reads: once, outside of jit."""
  return with_values(pack_pattern(condensed), condensed.values)


def pack_pattern(condensed: Condensed) -> Pattern:
  """The layout of a layer whose values change; the values are not read.

  Raises:
    ValueError: if the layer has more inputs than fit.
  """
  if condensed.in_features > _MAX_INPUTS:
    raise ValueError(
      f"On TPUs the pallas backend takes up to {_MAX_INPUTS} inputs, not {condensed.in_features}: "
      "take backend='xla' or 'structured'."
    )
  indices = np.asarray(condensed.indices, np.int64)
  num_active, fan_in = indices.shape
  num_blocks = math.ceil(num_active / _LANES)
  num_chunks = math.ceil(condensed.in_features / _LANES)
  rows = np.broadcast_to(np.arange(num_active)[:, None], indices.shape)
  chunks, places = indices // _LANES, indices % _LANES
  counts = np.zeros((num_blocks * _LANES, num_chunks), np.int64)
  np.add.at(counts, (rows, chunks), 1)
  ends = counts.cumsum(1)
  within = np.arange(fan_in)[None] - (ends - counts)[rows, chunks]  # rows ascend
  needed = -(-counts.reshape(num_blocks, _LANES, num_chunks).max(1) // _SUBLANES)
  firsts = needed.cumsum(1) - needed
  num_packets = int(needed.sum(1).max(initial=1))
  packets = firsts[rows // _LANES, chunks] + within // _SUBLANES
  where = rows // _LANES, packets, within % _SUBLANES, rows % _LANES
  shape = (num_blocks, num_packets, _SUBLANES, _LANES)
  all_places, order = np.zeros(shape, np.int32), np.full(shape, -1, np.int32)
  all_places[where] = places
  order[where] = np.arange(indices.size).reshape(indices.shape)
  of_packets = np.zeros((num_blocks, 1, num_packets), np.int32)
  of_packets[where[0], 0, packets] = chunks
  return Pattern(
    jnp.asarray(all_places),
    jnp.asarray(order),
    jnp.asarray(of_packets),
    condensed.active,
    condensed.in_features,
    condensed.out_features,
    is_interpreted(),
  )


def with_values(layout: Pattern | Packed, values: Array) -> Packed:
  """What `matmul` reads: a pattern gets the values `[A, K]`; a packed layer keeps its own."""
  if isinstance(layout, Packed):
    return layout
  ordered = values.reshape(-1).at[layout.order].get(mode="fill", fill_value=0)
  ordered = jnp.where(layout.order < 0, 0, ordered.astype(jnp.float32))
  words, separate = layout.places, None
  if values.dtype == jnp.bfloat16:
    words = words | lax.bitcast_convert_type(ordered, jnp.int32)
  else:
    separate = ordered
  return Packed(
    words,
    separate,
    layout.chunks,
    layout.active,
    layout.in_features,
    layout.out_features,
    layout.interpret,
  )


def matmul(
  x: Array, layout: Packed, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it, of a layout from `pack` or `with_values`."""
  sums = jnp.zeros((x.shape[0], layout.out_features))
  if x.size and layout.words.size:
    sums = _product(x, layout)
  return apply_epilogue(sums, bias, activation, x.dtype)


input_gradient, values_gradient = xla.input_gradient, xla.values_gradient


def _sums(x: Array, layout: Packed) -> Array:
  """`[B, N]` float32."""
  num_blocks, num_packets = layout.words.shape[:2]
  num_chunks = math.ceil(layout.in_features / _LANES)
  num_tiles = math.ceil(x.shape[0] / _SUBLANES)
  missing = (num_tiles * _SUBLANES - x.shape[0], num_chunks * _LANES - x.shape[1])
  rows = jnp.pad(x.astype(jnp.float32), [(0, n) for n in missing])
  rows = rows.reshape(num_tiles, _SUBLANES, num_chunks, _LANES).transpose(0, 2, 1, 3)
  weights = [layout.words] if layout.values is None else [layout.words, layout.values]
  packets = ((1, num_packets, _SUBLANES, _LANES), lambda j, t: (j, 0, 0, 0), False)
  y = lowering.tpu_call(
    functools.partial(_kernel, num_packets=num_packets),
    jax.ShapeDtypeStruct((num_tiles * _SUBLANES, num_blocks * _LANES), jnp.float32),
    grid=(num_blocks, num_tiles),  # the weights of a block stay for all tiles of x
    in_blocks=[
      ((1, 1, num_packets), lambda j, t: (j, 0, 0), True),
      ((1, num_chunks, _SUBLANES, _LANES), lambda j, t: (t, 0, 0, 0), False),
      *[packets] * len(weights),
    ],
    out_block=((_SUBLANES, _LANES), lambda j, t: (t, j)),
    interpret=layout.interpret,
    name="condensed_packets",
  )(layout.chunks, rows, *weights)
  y = y[: x.shape[0], : layout.active.shape[0]]
  return scatter_to_neurons(y, layout.active, layout.out_features, axis=1)


_product = over_rows(_sums)


def _kernel(chunks_ref: Any, x_ref: Any, words_ref: Any, *refs: Any, num_packets: int) -> None:
  """A program: 128 neurons for 8 rows of x."""
  *values_ref, y_ref = refs
  shape = (_SUBLANES, _LANES)

  def packet(i: Array, sums: tuple[Array, ...]) -> tuple[Array, ...]:
    words = words_ref[0, i]
    places = words & (_LANES - 1)
    if values_ref:
      values = values_ref[0][0, i]
    else:
      values = lax.bitcast_convert_type(words & jnp.int32(-(2**16)), jnp.float32)
    rows = x_ref[0, chunks_ref[0, 0, i]]
    found = []
    for b, each in enumerate(sums):
      row = jnp.broadcast_to(rows[b : b + 1], shape)
      picked = jnp.take_along_axis(row, places, axis=1, mode="promise_in_bounds")
      found.append(each + values * picked)
    return tuple(found)

  zeros = (jnp.zeros(shape, jnp.float32),) * _SUBLANES
  sums = lax.fori_loop(0, num_packets, packet, zeros)
  for b, each in enumerate(sums):
    y_ref[b : b + 1] = each.sum(0, keepdims=True)
