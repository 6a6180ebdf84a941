"""The pattern of a layer read by its inputs: which weights each input has, without padding."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.format import Condensed, index_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Transposed:
  """The weights of a layer in the order of their inputs, then of their neurons.

  Attributes:
    starts: `[I + 1]` int32; input `i` has the weights `starts[i]` to `starts[i + 1] - 1`.
    neurons: `[A * K]` of type `index_dtype(A)`: which row of the layer's values each is in.
    positions: `[A * K]` int32: where it is in the layer's values, flattened.
  """

  starts: Array
  neurons: Array
  positions: Array


def transpose(condensed: Condensed) -> Transposed:
  """The transposed pattern. The values are not read.

  Works under jit, on the device: shapes depend on those of the layer only. Lists of fixed length
  would need the largest fan-out, which only the pattern tells; a sort does not.
  """
  num_active, fan_in = condensed.indices.shape
  inputs = condensed.indices.reshape(-1).astype(jnp.int32)
  positions = jnp.argsort(inputs, stable=True).astype(jnp.int32)
  ends = jnp.arange(condensed.in_features + 1, dtype=jnp.int32)
  starts = jnp.searchsorted(inputs[positions], ends, method="scan_unrolled").astype(jnp.int32)
  neurons = (positions // max(fan_in, 1)).astype(index_dtype(num_active))
  return Transposed(starts, neurons, positions)
