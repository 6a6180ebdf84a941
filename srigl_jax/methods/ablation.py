"""Which neurons of a layer stay: those with enough salient weights."""

import math

import jax.numpy as jnp
from jax import Array

from srigl_jax.exact_counts import truncated_count

SALIENT_BASES = ("constant_fan_in", "dense_fan_in")


def salient_threshold(
  gamma_sal: float, *, constant_fan_in: int | Array, dense_fan_in: int, salient_base: str
) -> int | Array:
  """Salient weights that a neuron needs in order not to be ablated, before the floor; 0: none.

  Args:
    gamma_sal: as for `srigl_update`.
    constant_fan_in: fan-in of the layer's neurons when none is ablated; may be traced.
    dense_fan_in: fan-in of a dense neuron.
    salient_base: which of the two a `gamma_sal` below 1 is a fraction of.

  Raises:
    ValueError: if `gamma_sal` is negative or not a number, or `salient_base` unknown.
  """
  if salient_base not in SALIENT_BASES:
    raise ValueError(f"salient_base is {salient_base!r}; it must be one of {SALIENT_BASES}.")
  if isinstance(gamma_sal, Array) or not 0 <= gamma_sal < math.inf:
    raise ValueError(
      f"gamma_sal is {gamma_sal}; it must be a Python number: 0 for no ablation, a fraction of the "
      "fan-in below 1 (the paper's 0.3), or an absolute number of weights from 1 on."
    )
  if gamma_sal == 0:
    return 0
  if gamma_sal >= 1:
    return math.ceil(gamma_sal)
  base = constant_fan_in if salient_base == "constant_fan_in" else dense_fan_in
  if isinstance(base, Array):
    return jnp.maximum(1, truncated_count(base, float(gamma_sal)))
  return max(1, math.trunc(float(gamma_sal) * base))


def neurons_that_stay(
  num_salient: Array, required: int | Array, *, budget: int | Array, num_inputs: int
) -> Array:
  """Bool `[1, N]`: neurons with enough salient weights, and in any case `budget // I + 1` of them.

  Args:
    num_salient: `[1, N]` int32, salient weights of each neuron.
    required: as from `salient_threshold`.
    budget: connections that have to fit into the neurons that stay.
    num_inputs: I.
  """
  floor = jnp.sort(num_salient[0], descending=True)[budget // num_inputs]
  return num_salient >= jnp.minimum(required, floor)
