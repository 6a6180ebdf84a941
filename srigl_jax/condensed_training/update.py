"""One SRigL topology update of a condensed layer, without a dense matrix.

It makes the pattern that `srigl_update` makes of the dense weights, gradients and mask. Dense
gradients exist in blocks of neurons only, formed anew in each pass over them: some passes to find
the largest gradients of the layer (if neurons may be ablated), one to count them, one to grow. On
CPU the native library does it where it can: see `is_native`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.condensed_training.ranking import (
  ENTRIES_AT_ONCE,
  DenseGradient,
  Entries,
  Gradients,
  largest_entries,
  largest_gradients,
  nth_in_column,
)
from srigl_jax.exact_counts import Fraction, truncated_count
from srigl_jax.methods.srigl import salient_threshold
from srigl_jax.topk import ALWAYS, ranking_key, topk_mask_per_column
from srigl_kernels.backends.cpu.topology import update_topology
from srigl_kernels.backends.cpu.training import is_available
from srigl_kernels.backends.xla import tiles
from srigl_kernels.pattern import Pattern, entry_neurons, for_entries

BLOCK_BYTES = 16 * 2**20
"""Default limit on the bytes of a block of a layer's dense gradient."""


class Moves(NamedTuple):
  """What a topology update did.

  Attributes:
    pattern: the new one.
    source: `[C]` int32, for each of its entries the entry of the old pattern that was the same
      connection, -1 for a new connection and for entries not in use.
  """

  pattern: Pattern
  source: Array

  def apply(self, stored: Array, start: Array | float = 0) -> Array:
    """Values, or moments, `[C]` moved along with their connections; new ones as at the start."""
    moved = stored.at[self.source].get(mode="clip")
    return jnp.where(self.source >= 0, moved, jnp.asarray(start, moved.dtype))

  def unless(self, stays: Array, old: Pattern) -> "Moves":
    """These moves, or none from the old pattern if it stays (`[]` bool)."""
    entries = lax.iota(jnp.int32, old.capacity)
    same = Moves(old, jnp.where(entries < old.num_entries, entries, -1))
    return jax.tree.map(lambda kept, new: jnp.where(stays, kept, new), same, self)

  @property
  def stays(self) -> Array:
    """Which entries of the old pattern are in the new one, `[C]` bool."""
    places = jnp.where(self.source >= 0, self.source, self.source.size)
    return jnp.zeros(self.source.shape, bool).at[places].set(True, mode="drop")


def streamed_update(
  values: Array,
  pattern: Pattern,
  gradients: Gradients,
  *,
  drop_fraction: Fraction,
  gamma_sal: float = 0.3,
  salient_base: str = "constant_fan_in",
  block_bytes: int = BLOCK_BYTES,
) -> Moves:
  """One SRigL update of a layer in condensed form; see `srigl_update`, which it equals.

  The layer's budget is the capacity C of its pattern.

  Args:
    values: `[C]` float32, the weights after the optimizer's step.
    pattern: where they are.
    gradients: the dense gradient `[I, N]` (or another score for growth), in blocks of neurons.
      Asked for the same block again, it must return the same bits.
    drop_fraction: as for `srigl_update`.
    gamma_sal: as for `srigl_update`.
    salient_base: as for `srigl_update`.
    block_bytes: of a block of the gradient; several arrays of its size exist at a time.

  Source: SRigL (arXiv:2305.02299), section 3, as `srigl_update`.
  """
  required = salient_threshold(
    gamma_sal,
    constant_fan_in=pattern.capacity // pattern.out_features,
    dense_fan_in=pattern.in_features,
    salient_base=salient_base,
  )
  num_pruned = truncated_count(pattern.num_entries, drop_fraction)
  num_inputs, num_neurons, budget = pattern.in_features, pattern.out_features, pattern.capacity
  if is_native(values, pattern, gradients, block_bytes):
    if _is_product(gradients):
      x, g = gradients.signals  # type: ignore[misc]
    else:
      x, g = None, gradients(0, num_neurons)
    moved = update_topology(values, pattern, x, g, num_pruned=num_pruned, required=required)
    return Moves(*moved)
  block = _block_size(num_neurons, block_bytes // (4 * num_inputs))
  if block == num_neurons:  # it fits, so it is formed once, not anew in each pass
    whole = gradients(0, num_neurons)
    gradients = lambda first, size: whole
  stored = functools.partial(_stored, values, pattern)

  def per_neuron(flags: Array) -> Array:
    """How many of a neuron's entries are marked, `[N]` int32."""

    def step(first: Array | int, size: int, counts: Array) -> Array:
      neurons = stored(first, size)[2]
      marked = lax.dynamic_slice_in_dim(flags, first, size).astype(jnp.int32)
      return counts.at[neurons].add(marked, mode="drop", indices_are_sorted=True)

    return tiles(step, pattern.capacity, ENTRIES_AT_ONCE, jnp.zeros(num_neurons, jnp.int32))

  def keep(entries: Entries, num_kept: Array) -> Array:
    """Marks the largest magnitudes, `[C]` bool."""
    largest = largest_entries(entries, pattern.capacity, num_kept)
    step = lambda first, size, kept: lax.dynamic_update_slice_in_dim(
      kept, largest.chosen(*entries(first, size)), first, axis=0
    )
    return tiles(step, pattern.capacity, ENTRIES_AT_ONCE, jnp.zeros(pattern.capacity, bool))

  nonzero = per_neuron(values != 0)
  num_kept = jnp.minimum(pattern.num_entries - num_pruned, nonzero.sum(dtype=jnp.int32))
  kept = keep(stored, num_kept)

  if gamma_sal == 0:
    stays = jnp.ones(num_neurons, bool)
  else:
    largest = largest_gradients(
      gradients, num_inputs, num_neurons, pattern.num_entries - num_kept, block
    )

    def count(first: Array | int, size: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
      num_salient, also_kept = carry
      chosen = largest.chosen_block(ranking_key(gradients(first, size)), first)

      def look_up(entries: Array, local: Array, also_kept: Array) -> Array:
        inputs = pattern.indices.at[entries].get(mode="clip").astype(jnp.int32)
        found = chosen.at[inputs, local].get(mode="clip")
        places = jnp.where(local < size, entries, pattern.capacity)
        return also_kept.at[places].set(found, mode="drop", indices_are_sorted=True)

      num_salient = lax.dynamic_update_slice_in_dim(
        num_salient, chosen.sum(0, dtype=jnp.int32), first, axis=0
      )
      return num_salient, for_entries(pattern, first, size, look_up, also_kept)

    carry = jnp.zeros(num_neurons, jnp.int32), jnp.zeros(pattern.capacity, bool)
    by_gradient, by_both = tiles(count, num_neurons, block, carry)
    num_salient = by_gradient + per_neuron(kept & ~by_both)
    floor = jnp.sort(num_salient, descending=True)[budget // num_inputs]
    stays = num_salient >= jnp.minimum(required, floor)

    def alive(first: Array | int, size: int) -> tuple[Array, Array, Array]:
      keys, inputs, neurons = stored(first, size)
      return jnp.where(stays.at[neurons].get(mode="clip"), keys, 0), inputs, neurons

    num_alive = jnp.where(stays, nonzero, 0).sum(dtype=jnp.int32)
    kept = keep(alive, jnp.minimum(num_kept, num_alive))

  num_active = stays.sum(dtype=jnp.int32)
  fan_in = budget // num_active
  active = jnp.nonzero(stays, size=num_neurons, fill_value=num_neurons)[0].astype(jnp.int32)
  new = dataclasses.replace(pattern, active=active, sizes=jnp.stack([num_active, fan_in]))
  fan_ins = jnp.where(stays, fan_in, 0)
  return _grow(pattern, new, fan_ins, kept, values, per_neuron(kept) > fan_in, gradients, block)


def is_native(
  values: Array, pattern: Pattern, gradients: Gradients | None, block_bytes: int = BLOCK_BYTES
) -> bool:
  """Whether the native library does an update: it forms the gradient of a product by itself, and
  reads any other one from memory if all of it fits into a block.
  """
  fits = 4 * pattern.in_features * pattern.out_features <= block_bytes
  return values.dtype == jnp.float32 and is_available() and (_is_product(gradients) or fits)


def _is_product(gradients: Any) -> TypeGuard[DenseGradient]:
  return isinstance(gradients, DenseGradient) and gradients.is_product_of_one_device


def _stored(
  values: Array, pattern: Pattern, first: Array | int, size: int
) -> tuple[Array, Array, Array]:
  """Magnitudes' keys, inputs and neurons of stored entries; see `Entries`."""
  take = lambda x: lax.dynamic_slice_in_dim(x, first, size)
  neurons = entry_neurons(pattern, first + lax.iota(jnp.int32, size))
  nonzero = (neurons < pattern.out_features) & (take(values) != 0)
  magnitudes = jnp.where(nonzero, ranking_key(take(values)), 0)
  return magnitudes, take(pattern.indices).astype(jnp.int32), neurons


def _block_size(num_neurons: int, most: int) -> int:
  """Neurons in a block: a divisor of their number if there is one, since a rest compiles anew."""
  most = max(1, min(num_neurons, most))
  divisor = max(n for n in range(1, most + 1) if num_neurons % n == 0)
  return divisor if 2 * divisor >= most else most


def _grow(
  old: Pattern,
  new: Pattern,
  fan_ins: Array,
  kept: Array,
  values: Array,
  overfull: Array,
  gradients: Gradients,
  block: int,
) -> Moves:
  """Fills each neuron that stays: the kept first, then by gradient; trims the over-full ones.

  Args:
    old: the pattern before.
    new: the pattern to be, but for its indices.
    fan_ins: `[N]` int32, the connections that each neuron will have.
    kept: `[C]` bool, entries of the old pattern that were not pruned.
    values: `[C]` float32, of all entries.
    overfull: `[N]` bool, neurons that kept more than the new fan-in: they keep their largest.
    gradients: see `streamed_update`.
    block: neurons at once.
  """

  def grow(first: Array | int, size: int, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    over = lax.dynamic_slice_in_dim(overfull, first, size)
    keys = jnp.where(over, 0, ranking_key(gradients(first, size)))
    owners = jnp.full(keys.shape, -1, jnp.int32)

    def place(entries: Array, local: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
      keys, owners = carry
      where = old.indices.at[entries].get(mode="clip").astype(jnp.int32), local
      outranks = jnp.where(
        over.at[local].get(mode="clip"),
        ranking_key(values.at[entries].get(mode="clip")),
        jnp.uint32(ALWAYS),
      )
      is_kept = kept.at[entries].get(mode="clip")
      keys = keys.at[where[0], jnp.where(is_kept, local, size)].set(outranks, mode="drop")
      return keys, owners.at[where].set(entries, mode="drop")

    keys, owners = for_entries(old, first, size, place, (keys, owners))
    chosen = topk_mask_per_column(keys, lax.dynamic_slice_in_dim(fan_ins, first, size))
    upto = jnp.cumsum(chosen, axis=0, dtype=jnp.int32)

    def take(entries: Array, local: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
      indices, source = carry
      inputs = nth_in_column(upto, entries % jnp.maximum(new.fan_in, 1), local)
      places = jnp.where(local < size, entries, new.capacity)
      put = lambda x, y: x.at[places].set(y.astype(x.dtype), mode="drop", indices_are_sorted=True)
      return put(indices, inputs), put(source, owners.at[inputs, local].get(mode="clip"))

    return for_entries(new, first, size, take, carry)

  carry = jnp.zeros_like(new.indices), jnp.full(new.capacity, -1, jnp.int32)
  indices, source = tiles(grow, new.out_features, block, carry)
  return Moves(dataclasses.replace(new, indices=indices), source)
