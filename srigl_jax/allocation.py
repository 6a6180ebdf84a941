"""How sparse each layer is: from a target for the network to integer budgets per layer.

Everything here runs once, on the host, in IEEE double: an allocation decides integers (fan-ins),
many of which lie exactly on a boundary (90 % of 1000 × 1000 is a fan-in of 99, not 100, since
`1 - 0.9` is a little less than 0.1).
"""

import math
import numbers
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from jax import Array

from srigl_jax.distributions import DISTRIBUTIONS
from srigl_jax.layer_filters import LayerFilter, judge_leaves, layers_of, select, warn_of_doubts
from srigl_jax.layers import AxesFn, Layer, check_countable
from srigl_jax.stacks import by_name, by_path, layer_names, unroll
from srigl_jax.structures import ConstantFanIn, Structure, as_structure

Distribution = (
  str | Mapping[str, float] | Callable[[Mapping[str, Layer], float | None], Mapping[str, float]]
)


class Allocation(NamedTuple):
  """Densities and budgets of the sparse layers; dense layers are absent from both.

  Of a stack of layers each is an array of the stack's shape, one number for each layer. If only
  some of its layers are sparse, the others have a density of 1 and a budget of all weights.

  Attributes:
    densities: fraction of weights kept, by path, as the distribution gives it, in (0, 1).
    budgets: active connections that the layer may have, by path. Constant fan-in leaves up to
      `N - 1` of them unused.
    layers: every layer that counts, dense ones included, by path.
    structure: that the budgets are for.
  """

  densities: dict[str, Any]
  budgets: dict[str, Any]
  layers: dict[str, Layer]
  structure: Structure = ConstantFanIn()


def allocate(
  params: Any,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  *,
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  structure: Structure | str = "constant_fan_in",
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
) -> Allocation:
  """Divides a network's weights among its layers.

  The methods take the same arguments by the same names.

  Args:
    params: parameter tree, of arrays or of `jax.ShapeDtypeStruct`.
    sparsity: fraction of the weights of all layers that are missing, in [0, 1). The density is
      formed in decimal: 0.9 means a density of 0.1, as the authors' configs say it.
    distribution: `"erk"` (Erdős–Rényi-Kernel), `"uniform"`, `{path: density}` (then without
      `sparsity`), or a function of `{path: Layer}` and the target density (None if there is
      none) that returns such a mapping. Layers absent from a mapping are dense. In a stack each
      layer is one of its own, named `"blocks/mlp/kernel[3]"`; the path alone stands for all.
    density: `1 - sparsity`, in its place.
    fan_in: connections of each neuron, in place of `sparsity` and `distribution`: one number for
      all sparse layers (those with no more inputs than that are dense) or `{path: fan_in}`
      (absent layers are dense). In blocks, connections in each block.
    structure: `ConstantFanIn(...)`, budget `trunc(I * N * (1 - S))`, or `Unstructured()`, budget
      `I * N - trunc(S * I * N)`, with S the layer's sparsity; or a name, see `as_structure`.
    sparse: which layers may be sparse. The others stay dense and count toward the target, so
      that the sparse ones become sparser to pay for them.
    axes: the layout of kernels, see `srigl_jax.axes`; without it they are recognised (`plan`).

  Returns:
    An `Allocation`. A layer whose density comes out as 1 or more is dense.

  Raises:
    ValueError: if the arguments contradict each other or are out of range, a path is unknown, or
      a layer's fan-in would be 0.

  Source: RigL (arXiv:1911.11134) for Erdős–Rényi-Kernel; integers as in SRigL's authors' code.
  """
  structure = as_structure(structure)
  judged = judge_leaves(params, sparse=sparse, axes=axes)
  leaves = layers_of(judged)
  chosen = select(sparse, leaves, name="sparse")
  warn_of_doubts(judged, chosen)
  layers = unroll(leaves)
  allowed = {name for path in chosen for name in layer_names(leaves[path])}
  target = _target_density(sparsity, density)
  if fan_in is not None:
    own = None if distribution == "erk" else distribution
    others = (("sparsity", sparsity), ("density", density), ("distribution", own))
    given = " and ".join(f"{name} ({x})" for name, x in others if x is not None)
    if given:
      raise ValueError(
        f"Both fan_in ({fan_in}) and {given} are given; either decides how sparse the layers are. "
        "Leave one out."
      )
    if isinstance(fan_in, Mapping):
      fan_in = by_name(fan_in, leaves, name="fan_in")
    return _of_leaves(_from_fan_ins(fan_in, layers, allowed, structure), leaves)
  if isinstance(distribution, str):
    sparsities = _from_target(distribution, target, layers, allowed)
    densities = {path: 1.0 - s for path, s in sparsities.items() if s > 0}
  else:
    densities = _given_densities(distribution, target, leaves)
    densities = {path: d for path, d in densities.items() if d < 1}
    if not callable(distribution):  # a function was shown every layer
      _check_allowed(densities, allowed, name="distribution")
    densities = {path: d for path, d in densities.items() if path in allowed}
    sparsities = {path: 1.0 - d for path, d in densities.items()}
  budgets = {
    path: _budget(layers[path], sparsities[path], density, structure)
    for path, density in densities.items()
  }
  return _of_leaves(Allocation(densities, budgets, layers, structure), leaves)


def _of_leaves(unrolled: Allocation, leaves: dict[str, Layer]) -> Allocation:
  """The allocation by path from that of the network unrolled."""
  for path in unrolled.budgets:
    check_countable(unrolled.layers[path])
  return Allocation(
    densities=by_path(unrolled.densities, leaves, default=lambda _: 1.0),
    budgets=by_path(unrolled.budgets, leaves, default=lambda layer: layer.size),
    layers=leaves,
    structure=unrolled.structure,
  )


def constant_fan_in(layer: Layer, sparsity: float) -> int:
  """Fan-in of a layer's neurons when none is ablated: `trunc(I * N * (1 - sparsity)) // N`.

  The formula alone: it gives 0 or less where `allocate` refuses.
  """
  return math.trunc(layer.size * (1.0 - sparsity)) // layer.num_neurons


def _budget(layer: Layer, sparsity: float, density: float, structure: Structure) -> int:
  if isinstance(structure, ConstantFanIn):
    blocks = structure.num_blocks(layer)
    budget, least = math.trunc(layer.size * density), layer.num_neurons * blocks
    each = "neurons" if blocks == 1 else f"neurons' blocks of {structure.block_size} inputs"
  else:
    budget, least, each = layer.size - math.trunc(sparsity * layer.size), 1, "neurons"
  if budget < least:
    raise ValueError(
      f"Layer {layer.path!r} of shape {layer.shape} may keep {max(budget, 0)} of its {layer.size} "
      f"weights (density {density:.6g}), fewer than one for each of its {layer.num_neurons} "
      f"{each}: a fan-in of 0. Ways out: (1) lower the sparsity, or use distribution='erk', "
      "which spares thin layers; (2) keep the layer dense with "
      f"sparse=all_but({_exactly(layer.path)!r}); "
      "(3) give fan-ins with fan_in=..., or densities with distribution={path: density}."
    )
  return budget


def _exactly(path: str) -> str:
  """A pattern that fits this path and no other."""
  return f"^{re.escape(path)}$"


def _target_density(sparsity: float | None, density: float | None) -> float | None:
  given = [("sparsity", sparsity), ("density", density)]
  for name, value in given:
    if isinstance(value, Array):
      raise ValueError(
        f"{name} is a jax array ({value}), but it decides shapes and integers on the host in "
        "double: pass a Python float. Under optax.inject_hyperparams, inject into a function of "
        "the other hyperparameters alone; see the docstring of srigl."
      )
    if value is not None and not isinstance(value, numbers.Real):
      raise ValueError(f"{name} is {value!r}; it must be a number, such as 0.9 without quotes.")
  if sparsity is not None and density is not None:
    raise ValueError(f"Both sparsity ({sparsity}) and density ({density}) are given: drop one.")
  if sparsity is not None:
    if not 0 <= sparsity < 1:
      raise ValueError(f"sparsity is {sparsity}; it must lie in [0, 1): 0.9 keeps a tenth.")
    return float(1 - Decimal(repr(float(sparsity))))
  if density is not None and not 0 < density <= 1:
    raise ValueError(f"density is {density}; it must lie in (0, 1]: 0.1 keeps a tenth.")
  return None if density is None else float(density)


def _from_target(
  distribution: str, target: float | None, layers: Mapping[str, Layer], allowed: Collection[str]
) -> dict[str, float]:
  if distribution not in DISTRIBUTIONS:
    raise ValueError(
      f"distribution is {distribution!r}; it must be one of {tuple(DISTRIBUTIONS)}, a mapping "
      "{path: density}, or a function (layers, density) -> {path: density}."
    )
  if target is None:
    raise ValueError(
      f"distribution {distribution!r} needs a target: pass sparsity=0.9 (or density=0.1), or "
      "give every layer its fan_in."
    )
  if target == 1:  # exactly: Erdős–Rényi-Kernel leaves a rounding error in the last layer
    return dict.fromkeys(layers, 0.0)
  dense = [path for path in layers if path not in allowed]
  sparsities = DISTRIBUTIONS[distribution](layers, target, dense)
  if max(sparsities.values()) >= 1:
    raise ValueError(
      f"The layers kept dense ({', '.join(dense)}) alone have more weights than a density of "
      f"{target:.6g} leaves: lower the sparsity or let more layers be sparse (argument `sparse`)."
    )
  return sparsities


def _given_densities(
  distribution: Distribution, target: float | None, leaves: Mapping[str, Layer]
) -> dict[str, float]:
  layers = unroll(leaves)
  if callable(distribution):
    distribution = distribution(layers, target)
  elif target is not None:
    raise ValueError(
      "distribution gives the density of each layer, so sparsity and density must be left out: "
      "drop them, or pass distribution='erk' or 'uniform'."
    )
  if not isinstance(distribution, Mapping):
    raise ValueError(
      f"distribution gave {distribution!r}; it must be a mapping {{path: density}}, or a function "
      "(layers, density) that returns one."
    )
  given = by_name(distribution, leaves, name="distribution")
  for path, density in given.items():
    if not 0 < density <= 1:
      raise ValueError(
        f"distribution gives layer {path!r} a density of {density}; it must lie in (0, 1]."
      )
  return {path: float(given[path]) for path in layers if path in given}


def _check_allowed(given: Iterable[str], allowed: Collection[str], *, name: str) -> None:
  for path in (path for path in given if path not in allowed):
    raise ValueError(f"{name} names {path!r}, which `sparse` keeps dense: drop it from either.")


def _from_fan_ins(
  fan_in: int | Mapping[str, int],
  layers: Mapping[str, Layer],
  allowed: Collection[str],
  structure: Structure,
) -> Allocation:
  blocks = structure if isinstance(structure, ConstantFanIn) else ConstantFanIn()
  block_size = blocks.block_size
  if isinstance(fan_in, Mapping):
    _check_allowed(fan_in, allowed, name="fan_in")
  by_path = fan_in if isinstance(fan_in, Mapping) else dict.fromkeys(allowed, fan_in)
  fan_ins = {path: by_path[path] for path in layers if path in by_path}
  size = {path: layers[path].dense_fan_in if block_size is None else block_size for path in fan_ins}
  for path, k in fan_ins.items():
    bounded = isinstance(fan_in, Mapping) or block_size is not None
    if not isinstance(k, numbers.Integral) or k < 1 or (bounded and k > size[path]):
      raise ValueError(
        f"fan_in of layer {path!r} is {k!r}; it must be a whole number from 1 to {size[path]}, the "
        f"inputs of each of its neurons{'' if block_size is None else ' in a block'}."
      )
  if not isinstance(fan_in, Mapping) and fan_ins and fan_in > max(size.values()):
    raise ValueError(
      f"fan_in is {fan_in}, but no layer's neurons have more than {max(size.values())} inputs: all "
      "layers would be dense. Give a smaller one."
    )
  num_blocks = {p: blocks.num_blocks(layers[p]) for p, k in fan_ins.items() if k < size[p]}
  return Allocation(
    densities={path: int(fan_ins[path]) / size[path] for path in num_blocks},
    budgets={p: int(fan_ins[p]) * n * layers[p].num_neurons for p, n in num_blocks.items()},
    layers=dict(layers),
    structure=structure,
  )
