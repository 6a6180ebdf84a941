"""First patterns and weights: those that masks of the same key would start with, never dense."""

from collections.abc import Mapping

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_jax.allocation import Allocation
from srigl_jax.arguments import check_by_path, check_kind
from srigl_jax.condensed_training.ranking import nth_in_column
from srigl_jax.initializers import scheme_scale
from srigl_jax.layers import Layer
from srigl_jax.structures import ConstantFanIn
from srigl_jax.topk import topk_mask_per_column
from srigl_kernels.backends.xla import tiles
from srigl_kernels.format import index_dtype
from srigl_kernels.pattern import Pattern, entry_neurons

_BLOCK_BYTES = 4 * 2**20  # of the random bits of a block of neurons


def init_patterns(key: Array, allocation: Allocation) -> dict[str, Pattern]:
  """Random patterns at the allocation's budgets: those of the masks that `init_masks` draws.

  Args:
    key: jax random key.
    allocation: from `allocate`, with the structure `ConstantFanIn()`.

  Raises:
    ValueError: if the structure is another one, such as RigL's and SET's, or a kernel is a stack of
      layers.
  """
  check_kind("allocation", allocation, Allocation, "what allocate(params, sparsity) returns")
  if allocation.structure != ConstantFanIn():
    raise ValueError(
      f"structure is {allocation.structure}, but a layer trains in condensed form only with a "
      "constant fan-in, without blocks or groups: use ConstantFanIn(). Methods that place weights "
      "anywhere in a layer, such as RigL, train with masks."
    )
  for path in allocation.budgets:
    if allocation.layers[path].axes.stack:
      raise ValueError(
        f"Layer {path!r} of shape {allocation.layers[path].shape} is a stack of layers, which do "
        "not train in condensed form: train them with masks (srigl(..., axes=...)), or give each "
        "layer a kernel of its own."
      )
  return {
    path: init_pattern(jax.random.fold_in(key, i), allocation.layers[path], budget)
    for i, (path, budget) in enumerate(allocation.budgets.items())
  }


def init_pattern(key: Array, layer: Layer, budget: int) -> Pattern:
  """A random pattern of one layer: each neuron draws `budget // N` inputs; see `init_patterns`."""
  num_inputs, num_neurons = layer.dense_fan_in, layer.num_neurons
  fan_in = budget // num_neurons
  block = max(1, min(num_neurons, _BLOCK_BYTES // (4 * num_inputs)))

  @jax.jit
  def draw(key: Array) -> Array:
    def step(first: Array | int, size: int, indices: Array) -> Array:
      scores = random_bits(key, _positions(num_inputs, num_neurons, first, size)) >> 1
      chosen = topk_mask_per_column(scores, jnp.int32(fan_in))
      upto = jnp.cumsum(chosen, axis=0, dtype=jnp.int32)
      neurons, nth = jnp.divmod(lax.iota(jnp.int32, size * fan_in), fan_in)
      rows = nth_in_column(upto, nth, neurons).reshape(size, fan_in)
      return lax.dynamic_update_slice_in_dim(indices, rows.astype(indices.dtype), first, axis=0)

    indices = jnp.zeros((num_neurons, fan_in), index_dtype(num_inputs))
    return tiles(step, num_neurons, block, indices).reshape(-1)

  return Pattern(
    jnp.pad(draw(key), (0, budget - num_neurons * fan_in)),
    jnp.arange(num_neurons, dtype=jnp.int32),
    jnp.asarray([num_neurons, fan_in], jnp.int32),
    layer.shape,
    layer.axes.neurons,
  )


def init_condensed_weights(
  key: Array, patterns: Mapping[str, Pattern], scheme: str = "he_normal"
) -> dict[str, Array]:
  """Random weights scaled by the fan-in: those that `init_sparse_weights` draws.

  Args:
    key: jax random key.
    patterns: of the sparse layers, by path.
    scheme: as for `init_sparse_weights`.

  Returns:
    `[C]` float32 by path; 0 for entries not in use.
  """
  check_by_path("patterns", patterns, Pattern, "patterns, from init_patterns(key, allocation)")
  keys = jax.random.split(key, max(1, len(patterns)))
  return {
    path: init_values(keys[i], pattern, scheme)
    for i, (path, pattern) in enumerate(patterns.items())
  }


def init_values(key: Array, pattern: Pattern, scheme: str = "he_normal") -> Array:
  """Random weights of one layer, `[C]` float32; see `init_condensed_weights`."""
  scale, is_uniform = scheme_scale(scheme)

  @jax.jit
  def draw(key: Array, pattern: Pattern) -> Array:
    step = lambda first, size, values: lax.dynamic_update_slice_in_dim(
      values, draw_block(key, pattern, first, size), first, axis=0
    )
    return tiles(step, pattern.capacity, _BLOCK_BYTES // 32, jnp.zeros(pattern.capacity))

  def draw_block(key: Array, pattern: Pattern, first: Array | int, size: int) -> Array:
    entries = first + lax.iota(jnp.int32, size)
    neurons = entry_neurons(pattern, entries)
    inputs = lax.dynamic_slice_in_dim(pattern.indices, first, size).astype(jnp.uint32)
    positions = _flat(inputs, neurons.astype(jnp.uint32), pattern.out_features)
    low = -1.0 if is_uniform else np.nextafter(np.float32(-1), np.float32(0))
    noise = _uniform(random_bits(key, positions), low)
    noise = noise if is_uniform else np.float32(np.sqrt(2)) * lax.erf_inv(noise)
    width = scale(jnp.maximum(pattern.fan_in, 1).astype(jnp.float32))
    # The barrier keeps the products apart, that they round as those of dense weights do.
    return jnp.where(entries < pattern.num_entries, lax.optimization_barrier(noise) * width, 0)

  return draw(key, pattern)


def random_bits(key: Array, positions: tuple[Array, Array]) -> Array:
  """`jax.random.bits(key, ...)` at some flat positions, given by their high and low 32 bits.

  Raises:
    ValueError: if random numbers are not of the kind that depends on key and position alone.
  """
  by_position = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
  if jax.random.key_impl(key) != "threefry2x32" or not by_position:
    raise ValueError(
      "Condensed training draws single random numbers of a matrix that is never made, for which "
      "keys must be of type threefry2x32 and the option jax_threefry_partitionable be on, as by "
      f"default; the key is of type {jax.random.key_impl(key)}."
    )
  high, low = (jnp.ravel(x) for x in jnp.broadcast_arrays(*positions))
  counters = jnp.concatenate([high, low])
  bits = jax.extend.random.threefry_2x32(tuple(jax.random.key_data(key)), counters)
  return (bits[: high.size] ^ bits[high.size :]).reshape(positions[1].shape)


def random_scores(key: Array, pattern: Pattern, first: Array | int, size: int) -> Array:
  """A block of neurons of `jax.random.uniform(key, (I, N))`, `[I, size]` float32."""
  positions = _positions(pattern.in_features, pattern.out_features, first, size)
  return _uniform(random_bits(key, positions), 0.0)


def _positions(
  num_inputs: int, num_neurons: int, first: Array | int, size: int
) -> tuple[Array, Array]:
  inputs = lax.iota(jnp.uint32, num_inputs)[:, None]
  neurons = (lax.iota(jnp.int32, size) + first).astype(jnp.uint32)[None]
  return _flat(inputs, neurons, num_neurons)


def _flat(inputs: Array, neurons: Array, num_neurons: int) -> tuple[Array, Array]:
  """High and low 32 bits of the flat index `input * N + neuron` into an `[I, N]` matrix."""
  low_half, high_half = inputs & 0xFFFF, inputs >> 16
  n = jnp.uint32(num_neurons)
  # Four products of 16 by 16 bits, carried by hand: there are no 64-bit integers.
  a, b = low_half * (n & 0xFFFF), low_half * (n >> 16)
  c, d = high_half * (n & 0xFFFF), high_half * (n >> 16)
  middle = (a >> 16) + (b & 0xFFFF) + (c & 0xFFFF)
  low = (a & 0xFFFF) | (middle << 16)
  high = d + (b >> 16) + (c >> 16) + (middle >> 16)
  total = low + neurons
  return high + (total < low), total


def _uniform(bits: Array, low: float) -> Array:
  """Floats in `[low, 1)` from random bits, as `jax.random.uniform` makes them."""
  floats = lax.bitcast_convert_type((bits >> 9) | 0x3F800000, jnp.float32) - 1
  least = np.float32(low)
  return jnp.maximum(least, floats * (np.float32(1) - least) + least)
