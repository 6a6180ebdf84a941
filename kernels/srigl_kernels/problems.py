"""Named layers of random weights: what every backend is tested and timed on."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from srigl_kernels.format import Condensed, make_condensed


class Problem(NamedTuple):
  """Sizes of a layer and of its input.

  Attributes:
    in_features: `I`.
    out_features: `N`.
    num_active: `A`.
    fan_in: `K`.
    batch: leading axes of the input.
  """

  in_features: int
  out_features: int
  num_active: int
  fan_in: int
  batch: tuple[int, ...]


LAYERS: dict[str, Problem] = {
  # The feed-forward layers of ViT-B/16 at 90 % sparsity, as in the SRigL paper's timings: of 3072
  # neurons the paper's network keeps 1145.
  "vit_ffn_up": Problem(768, 3072, 1145, 206, (4,)),
  "vit_ffn_down": Problem(3072, 768, 768, 307, (4,)),
  "wide": Problem(4096, 16384, 16384, 410, (1,)),  # bound by memory
  "square_90": Problem(4096, 4096, 4096, 410, (1,)),
  "square_95": Problem(4096, 4096, 4096, 205, (1,)),
  "classes": Problem(768, 500_000, 500_000, 32, (1,)),  # an output layer
}
"""By name: the layers of the benchmarks, which replace the batch and, by sparsity, the fan-in."""

PROBLEMS: dict[str, Problem] = {
  "vit_ffn_up": LAYERS["vit_ffn_up"],
  "vit_ffn_down": LAYERS["vit_ffn_down"],
  "odd_sizes": Problem(37, 53, 41, 13, (3, 5)),
  "odd_all_active": Problem(131, 17, 17, 7, (19,)),
  "no_batch_axes": Problem(20, 9, 5, 4, ()),
  "one_row": Problem(65, 33, 20, 9, (1,)),
  "many_rows": Problem(24, 11, 8, 5, (700,)),
  "empty_batch": Problem(16, 8, 6, 3, (2, 0)),
  "fan_in_one": Problem(40, 24, 18, 1, (6,)),
  "fan_in_all": Problem(12, 10, 7, 12, (6,)),
  "one_active": Problem(33, 19, 1, 5, (4,)),
  "none_active": Problem(14, 6, 0, 0, (4,)),
  "one_by_one": Problem(1, 1, 1, 1, (2,)),
  "wide_indices": Problem(70_001, 6, 4, 9, (3,)),
}
"""By name: small enough to test."""


def make_problem(
  problem: Problem, *, seed: int = 0, dtype: DTypeLike = jnp.float32, bias: bool = True
) -> tuple[jnp.ndarray, Condensed]:
  """A random input and layer: normal inputs and bias, values of variance `1 / K`.

  Args:
    problem: the sizes.
    seed: of everything random.
    dtype: of the values, float32 or bfloat16.
    bias: whether the layer has one (float32).

  Returns:
    `(x, condensed)`, x being float32.
  """
  rng = np.random.default_rng(seed)
  num_inputs, num_neurons, num_active, fan_in, batch = problem
  order = rng.random((num_active, num_inputs)).argsort(axis=1)[:, :fan_in]
  values = rng.normal(size=(num_active, fan_in)) / np.sqrt(max(fan_in, 1))
  condensed = make_condensed(
    jnp.asarray(values, dtype),
    np.sort(order, axis=1),
    np.sort(rng.permutation(num_neurons)[:num_active]),
    jnp.asarray(rng.normal(size=num_neurons), jnp.float32) if bias else None,
    kernel_shape=(num_inputs, num_neurons),
  )
  return jnp.asarray(rng.normal(size=(*batch, num_inputs)), jnp.float32), condensed
