"""FLOPs of sparse networks, in training and inference, relative to dense ones.

One multiply-accumulate (MAC, see `layer_macs`) is two FLOPs.
"""

import numbers
from collections.abc import Mapping
from typing import Any

import numpy as np

from srigl_jax.allocation import allocate
from srigl_jax.arguments import check_by_path
from srigl_jax.layers import PyTree
from srigl_jax.structures import ConstantFanIn, Structure, as_structure


def relative_flops(macs: Mapping[str, int], densities: Mapping[str, Any]) -> float:
  """Inference FLOPs of the sparse network as a fraction of the dense network's.

  Args:
    macs: `{path: dense MACs}`, as from `layer_macs`.
    densities: `{path: density}` in 0..1, for a stack of layers an array of theirs; layers that
      are absent are dense.

  Returns:
    `sum(density * macs) / sum(macs)`. Published figures of sparse training are a little higher:
    those of SRigL for ResNet-50 come out digit by digit if one operation is added for each output
    of a layer (its norm or activation), which is 0.0014 of the dense network's and stays as it is.

  Raises:
    ValueError: if a density is out of range or of a layer not in `macs`, or no MACs are given.
  """
  check_by_path("macs", macs, numbers.Number, "counts, from layer_macs(fn, params, x)")
  check_by_path("densities", densities, object, "densities from 0 to 1")
  total = sum(macs.values())
  if not total:
    raise ValueError(f"`macs` must hold at least one multiply-accumulate, not {dict(macs)}.")
  unknown = [path for path in densities if path not in macs]
  if unknown:
    raise ValueError(f"`densities` names {unknown}, but only {list(macs)} have MACs.")
  densities = {path: float(np.mean(density)) for path, density in densities.items()}
  wrong = {path: density for path, density in densities.items() if not 0 <= density <= 1}
  if wrong:
    raise ValueError(f"Densities must lie in 0..1, but `densities` has {wrong}.")
  return float(sum(densities.get(path, 1.0) * n for path, n in macs.items()) / total)


def training_flops(
  inference: float, *, update_every: int | None = None, convention: str = "srigl"
) -> float:
  """Training FLOPs per step of the sparse network as a fraction of dense training's.

  A step costs three forward passes (forward, and backward for activations and for weights),
  sparse ones of `f_s` FLOPs against dense ones of `f_d`. What more it costs depends on when the
  method needs the dense gradient of the weights:

  - `"static"`, never: `f_s / f_d`.
  - `"srigl"` and `"rigl"`, in topology updates: one step in `update_every + 1` is one, of cost
    `u = 4 f_s + f_d` or `u = 2 f_s + f_d`, so `(3 f_s update_every + u) / (update_every + 1) /
    (3 f_d)`. Updates are assumed to go on to the end of training, though in practice they stop
    earlier.
  - `"every_step"`: `(2 f_s + f_d) / (3 f_d)`.
  - `"straight_through"`: `(f_s + 2 f_d) / (3 f_d)`, only the forward pass being sparse: N:M masks
    along a neuron's inputs are none along its outputs, so that hardware for them does not speed
    up the backward pass.

  For networks that start dense, see `mean_flops`.

  Args:
    inference: `f_s / f_d` in 0..1, as from `relative_flops`.
    update_every: ΔT in optimizer steps (not micro-batches), at least 1; for `"srigl"` and
      `"rigl"`.
    convention: one of the above.

  Returns:
    The fraction, between `inference` and 1.

  Raises:
    ValueError: if an argument is not one of those above.

  Source: `"rigl"` is RigL (arXiv:1911.11134), `"srigl"` the code of SRigL's authors. Only the
  latter gives SRigL's five published ResNet-50 figures (.415 → .419 at 80 %), with any ΔT in
  94..122, so with 100. The configured 800 are steps of an eighth of RigL's batch; as it stands it
  would give .416. No ΔT suits `"rigl"` (39..63 at 80 % sparsity, 81..161 at 99 %).
  """
  sparse_passes = {"srigl": 4, "rigl": 2}
  always = {
    "static": inference,
    "every_step": (2 * inference + 1) / 3,
    "straight_through": (inference + 2) / 3,
  }
  if convention not in sparse_passes.keys() | always.keys():
    raise ValueError(
      f"`convention` must be one of {[*sparse_passes, *always]}, not {convention!r}."
    )
  if not 0 <= inference <= 1:
    raise ValueError(f"`inference` must be a fraction in 0..1, not {inference}.")
  if convention in always:
    return always[convention]
  if update_every is None or update_every < 1:
    raise ValueError(f"`update_every` must be at least 1 step, not {update_every}.")
  update = sparse_passes[convention] * inference + 1
  return (3 * inference * update_every + update) / (update_every + 1) / 3


def sparsity_for_flops(
  params: PyTree,
  macs: Mapping[str, int],
  relative: float,
  distribution: str = "erk",
  *,
  structure: Structure | str = "constant_fan_in",
  **sparsity_kwargs: Any,
) -> float:
  """The sparsity at which a network costs a given fraction of its dense FLOPs.

  Distributions spend the same number of weights differently: Erdős–Rényi-Kernel keeps more of
  the layers that are computed at many positions. This makes them comparable at equal FLOPs.

  Args:
    params: parameter tree, of arrays or of `jax.ShapeDtypeStruct`.
    macs: `{path: dense MACs}` of one example, from `layer_macs`.
    relative: FLOPs of the sparse network over the dense one's, in (0, 1).
    distribution: see `allocate`.
    structure: see `allocate`; with constant fan-in only the connections that are used count.
    **sparsity_kwargs: further arguments of `allocate`, such as `sparse`.

  Returns:
    The lowest density's sparsity that costs no less than that, to four significant digits of the
    density. It costs up to 5 % more where fan-ins, which are whole numbers, come in coarse steps.

  Raises:
    ValueError: if `relative` is out of range, or cannot be reached since layers that stay dense
      cost more, or a layer's fan-in would be 0.
  """
  if not 0 < relative < 1:
    raise ValueError(f"relative is {relative}; it must lie in (0, 1): 0.2 is a fifth of dense.")

  is_constant = isinstance(as_structure(structure), ConstantFanIn)

  def flops(density: float) -> float:
    allocation = allocate(
      params, density=density, distribution=distribution, structure=structure, **sparsity_kwargs
    )
    densities = {}
    for path, given in allocation.budgets.items():
      layer, budget = allocation.layers[path], np.asarray(given)
      unused = budget % layer.num_neurons if is_constant else 0
      densities[path] = float(np.mean((budget - unused) / layer.size))
    return relative_flops(macs, densities)

  low, high = 0.0, 1.0  # densities; FLOPs grow with them
  while high - low > 1e-4 * high:
    middle = (low + high) / 2
    try:
      enough = flops(middle) >= relative
    except ValueError:  # too few weights for a layer: what is sought must lie above
      enough = False
    low, high = (low, middle) if enough else (middle, high)
  reached = flops(high)
  if abs(reached - relative) > 0.05 * relative:
    raise ValueError(
      f"No sparsity brings this network to {relative:.4g} of its dense FLOPs with distribution "
      f"{distribution!r}: the closest is {reached:.4g}, at a density of {high:.4g}. Ask for more "
      "FLOPs, or let more layers be sparse (argument `sparse`)."
    )
  return 1 - high


def mean_flops(history: Mapping[int, float], total_steps: int) -> float:
  """Mean FLOPs per step of a network whose sparsity changes: the `"static"` ones, over time.

  Args:
    history: `{step: fraction}`: what a step costs from that step on until the next one listed, as
      from `relative_flops`; step 0 must be among them.
    total_steps: of the run; at least 1.

  Raises:
    ValueError: if `history` does not begin at 0 or `total_steps` is less than 1.
  """
  steps = sorted(step for step in history if step < total_steps)
  if total_steps < 1 or not steps or steps[0] != 0:
    raise ValueError(
      f"`history` must begin at step 0 and `total_steps` be 1 or more, not {sorted(history)} and "
      f"{total_steps}."
    )
  ends = [*steps[1:], total_steps]
  weighted = (history[step] * (end - step) for step, end in zip(steps, ends, strict=True))
  return sum(weighted) / total_steps
