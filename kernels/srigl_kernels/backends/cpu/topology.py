"""Native topology update of a layer in training: what `streamed_update` does, in a few passes.

The dense gradient is formed 64 neurons at a time at most, in the second-level cache, and anew in
each pass: three of them, the first over a sixteenth of the neurons. Its sums are in another order
than XLA's, so patterns may part from XLA's where two gradients lie within rounding of each other.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.backends.cpu import library
from srigl_kernels.pattern import Pattern


def update_topology(
  values: Array,
  pattern: Pattern,
  x: Array | None,
  g: Array,
  *,
  num_pruned: Array,
  required: Array | int,
) -> tuple[Pattern, Array]:
  """The pattern after one SRigL update.

  Args:
    values: `[C]` float32, the weights.
    pattern: where they are.
    x: `[B, I]`, the layer's inputs, or None.
    g: `[B, N]`, gradient of the loss in its outputs; without x the layer's dense gradient `[I, N]`,
      or another score for growth.
    num_pruned: `[]` int32, entries to prune, from 0 to those in use.
    required: salient weights of a neuron that stays; 0: all stay.

  Returns:
    The new pattern, and `[C]` int32: the entry that was the same connection, or -1.

  Raises:
    RuntimeError: if the library is not there.
  """
  library.require()
  shape = jax.ShapeDtypeStruct
  results = (
    shape(pattern.indices.shape, pattern.indices.dtype),
    shape(pattern.active.shape, jnp.int32),
    shape((2,), jnp.int32),
    shape(pattern.indices.shape, jnp.int32),
  )
  counts = jnp.stack([jnp.asarray(num_pruned, jnp.int32), jnp.asarray(required, jnp.int32)])
  indices, active, sizes, source = jax.ffi.ffi_call(library.UPDATE_TOPOLOGY, results)(
    jnp.zeros((0, 0)) if x is None else x.astype(jnp.float32),
    g.astype(jnp.float32),
    values,
    pattern.indices,
    pattern.active,
    pattern.sizes,
    counts,
  )
  return dataclasses.replace(pattern, indices=indices, active=active, sizes=sizes), source
