"""Backends that multiply with a dense matrix: of the active neurons only, or of all.

They need the memory of that matrix. A value of x that is infinite or NaN reaches every neuron,
also those that have no weight for it (0 * inf is NaN).
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.epilogue import finish, spread
from srigl_kernels.format import Condensed
from srigl_kernels.xla import densify, dot


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Structured:
  """The dense matrix of the active neurons.

  Attributes:
    matrix: `[I, A]`.
    active: `[A]`.
    out_features: `N`.
  """

  matrix: Array
  active: Array
  out_features: int = dataclasses.field(metadata={"static": True})


def pack_structured(condensed: Condensed) -> Structured:
  """The layout of the structured backend."""
  matrix = densify(condensed.values, condensed.indices, condensed.in_features).T
  return Structured(matrix, condensed.active, condensed.out_features)


def matmul(
  x: Array, layout: Structured, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it, with a layout of either backend."""
  y = dot(x, layout.matrix)
  y = spread(y.T, layout.active, layout.out_features).T
  return finish(y, bias, activation, x.dtype)


def pack_dense(condensed: Condensed) -> Structured:
  """The layout of the dense backend: all neurons count as active."""
  rows = densify(condensed.values, condensed.indices, condensed.in_features)
  matrix = spread(rows, condensed.active, condensed.out_features).T
  everyone = jnp.arange(condensed.out_features, dtype=jnp.int32)
  return Structured(matrix, everyone, condensed.out_features)
