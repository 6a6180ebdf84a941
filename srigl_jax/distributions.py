"""A target for the network divided among its layers: Erdős–Rényi-Kernel, or evenly; in double."""

import math
import warnings
from collections.abc import Collection, Mapping

from srigl_jax.layers import Layer


def erk(
  layers: Mapping[str, Layer], density: float, dense: Collection[str] = ()
) -> dict[str, float]:
  """Erdős–Rényi-Kernel: a layer's density is proportional to `sum(dims) / prod(dims)`.

  Where that exceeds 1, the layer is dense and the rest is divided anew, one layer a round.

  Args:
    layers: all layers that count, by path, in order (the first of several equals goes first).
    density: fraction of weights to keep in all of them together, in (0, 1].
    dense: paths of layers that stay dense from the start.

  Returns:
    `{path: sparsity}` for every layer, 0 where dense.

  Source: RigL (arXiv:1911.11134), section 3, with power 1.
  """
  fixed = set(dense)
  scale = {path: sum(layer.dims) / math.prod(layer.dims) for path, layer in layers.items()}
  zeros = {path: math.trunc(layer.size * (1 - density)) for path, layer in layers.items()}
  while len(fixed) < len(layers):
    budget = 0
    divisor = 0.0
    for path, layer in layers.items():
      if path in fixed:
        budget -= zeros[path]
      else:
        budget += layer.size - zeros[path]
        divisor += scale[path] * layer.size
    epsilon = budget / divisor
    densest = max((path for path in layers if path not in fixed), key=scale.__getitem__)
    if scale[densest] * epsilon <= 1:
      return {p: 0.0 if p in fixed else 1 - epsilon * scale[p] for p in layers}
    fixed.add(densest)
  return dict.fromkeys(layers, 0.0)


def uniform(
  layers: Mapping[str, Layer], density: float, dense: Collection[str] = ()
) -> dict[str, float]:
  """The same density in every layer that may be sparse, so that the whole has the target's.

  Args:
    layers: all layers that count, by path.
    density: fraction of weights to keep in all of them together, in (0, 1].
    dense: paths of layers that stay dense.

  Returns:
    `{path: sparsity}` for every layer, 0 where dense. If the dense layers alone exceed the
    target, the others get the target's own density, with a warning.

  Source: SRigL's authors' code, whose dense layers count toward the target.
  """
  total = sum(layer.size for layer in layers.values())
  num_dense = sum(layers[path].size for path in dense)
  num_sparse = total - num_dense
  if not num_sparse:
    return dict.fromkeys(layers, 0.0)
  sparsity = 1 - ((total * density - num_dense) / num_sparse)
  if sparsity > 1:
    sparsity = 1 - density
    warnings.warn(
      f"The layers kept dense ({', '.join(dense)}) alone exceed a density of {density:.6g}: the "
      "others get that density themselves, and the network as a whole ends at "
      f"{(num_dense + num_sparse * density) / total:.6g}.",
      stacklevel=2,
    )
  return {path: 0.0 if path in dense else sparsity for path in layers}


DISTRIBUTIONS = {"erk": erk, "uniform": uniform}
