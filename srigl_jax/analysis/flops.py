"""Multiply-accumulates of a model, per parameter leaf, and FLOPs of its sparse version.

The count is read off the traced program, so it holds for any function of a parameter tree, and
no array is computed. Only matrix products and convolutions count, not norms or activations
(about 0.1 % of a ResNet-50); one multiply-accumulate (MAC) is two FLOPs.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from srigl_jax.allocation import allocate
from srigl_jax.layers import PyTree, leaf_path
from srigl_jax.structures import ConstantFanIn, Structure, as_structure

# A traced value has an origin: the index of the parameter leaf that it is a version of, or
_FREE = -1  # a value computed without looking at the data: masks, constants, mixed parameters
_DATA = -2  # a value that depends on a numeric argument: inputs and activations

_Walked = tuple[Counter[int], list[int]]  # MACs by origin, origins of the outputs


def layer_macs(fn: Callable[..., Any], params: PyTree, *args: Any) -> dict[str, int]:
  """Multiply-accumulates of `fn(params, *args)`, by the parameter leaf they multiply with.

  A product belongs to the one leaf that is an operand of it. A leaf remains itself while it is
  cast, transposed, reshaped, sliced, masked, scaled or otherwise combined with anything that
  depends on no numeric argument (masks are boolean arguments or constants), as long as the
  result has no more elements; of several leaves, the one as large as the result counts. So
  fused or standardised kernels are recognised, but not those concatenated, broadcast over the
  batch, or multiplied with a *numeric* argument.

  Convolutions count every output position with the whole window, padding included (transposed
  ones every input position); `scan` counts its length, `cond` its most expensive branch, and
  `while`, whose number of iterations is unknown, **one** iteration.

  Args:
    fn: function of `params` and `args` that returns arrays; traced, not run. Bind flags before.
    params: parameter tree; arrays or `jax.ShapeDtypeStruct`.
    *args: likewise. Give the input batch size 1 for MACs per example.

  Returns:
    `{path: MACs}` with paths as in `leaf_path`, in tree order, for the leaves that take part in
    a product. A leaf used twice adds up. Products that belong to no leaf, as attention scores,
    are in `total_macs` only.

  Raises:
    ValueError: if a product sits where it cannot be counted, as in a device kernel.
  """
  paths, macs = _count(fn, params, args)
  return {path: macs[i] for i, path in enumerate(paths) if i in macs}


def total_macs(fn: Callable[..., Any], params: PyTree, *args: Any) -> int:
  """All multiply-accumulates of `fn(params, *args)`: those of `layer_macs` and of no leaf."""
  return _count(fn, params, args)[1].total()


def relative_flops(macs: Mapping[str, int], densities: Mapping[str, float]) -> float:
  """Inference FLOPs of the sparse network as a fraction of the dense network's.

  Args:
    macs: `{path: dense MACs}`, as from `layer_macs`.
    densities: `{path: density}` in 0..1; layers that are absent are dense.

  Returns:
    `sum(density * macs) / sum(macs)`. Published figures of sparse training are a little higher:
    those of SRigL for ResNet-50 come out digit by digit if one operation is added for each output
    of a layer (its norm or activation), which is 0.0014 of the dense network's and stays as it is.

  Raises:
    ValueError: if a density is out of range or of a layer not in `macs`, or no MACs are given.
  """
  total = sum(macs.values())
  if not total:
    raise ValueError(f"`macs` must hold at least one multiply-accumulate, not {dict(macs)}.")
  unknown = [path for path in densities if path not in macs]
  if unknown:
    raise ValueError(f"`densities` names {unknown}, but only {list(macs)} have MACs.")
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
  """The sparsity at which a network costs a given share of its dense FLOPs.

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
    for path, budget in allocation.budgets.items():
      layer = allocation.layers[path]
      unused = budget % layer.num_neurons if is_constant else 0
      densities[path] = (budget - unused) / layer.size
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


def _count(fn, params: PyTree, args: Sequence[Any]) -> tuple[list[str], Counter[int]]:
  """Paths of the parameter leaves, and MACs by leaf index (`_FREE`: of no leaf)."""
  paths = [leaf_path(key_path) for key_path, _ in jax.tree_util.tree_leaves_with_path(params)]
  jaxpr = jax.make_jaxpr(fn)(params, *args).jaxpr
  origins = list(range(len(paths)))
  for var in jaxpr.invars[len(paths) :]:
    aval: Any = var.aval  # an array's: the arguments are nothing else
    origins.append(_DATA if jnp.issubdtype(aval.dtype, jnp.number) else _FREE)
  return paths, _walk(jaxpr, origins)[0]


def _walk(jaxpr: Jaxpr, origins: Sequence[int]) -> _Walked:
  """MACs by origin, and the origins of the outputs, from the origins of the inputs."""
  known = dict(zip(jaxpr.invars, origins, strict=True))

  def origin(atom):
    return _FREE if isinstance(atom, Literal) else known.get(atom, _FREE)

  macs: Counter[int] = Counter()
  for eqn in jaxpr.eqns:
    eqn_macs, outputs = _visit(eqn, [origin(atom) for atom in eqn.invars])
    macs.update(eqn_macs)
    known.update(zip(eqn.outvars, outputs, strict=True))
  return macs, [origin(atom) for atom in jaxpr.outvars]


def _visit(eqn: JaxprEqn, inputs: list[int]) -> _Walked:
  """`_walk` for one equation."""
  if eqn.primitive.name in _CONTROL_FLOW:
    return _CONTROL_FLOW[eqn.primitive.name](eqn, inputs)
  bodies = list(jaxprs_in_params(eqn.params))
  shapes, out_shapes = _shapes(eqn.invars), _shapes(eqn.outvars)
  # Calls (jit, remat, custom derivatives, ...) are told by their signature, not by their names,
  # which differ from one version of jax to the next. It excludes maps over devices and kernels.
  if [(_shapes(b.invars), _shapes(b.outvars)) for b in bodies] == [(shapes, out_shapes)]:
    return _walk(bodies[0], inputs)
  if any(_has_products(body) for body in bodies):
    raise ValueError(
      f"Cannot count the products inside a `{eqn.primitive.name}`: give a version of the model "
      "that multiplies with plain jax operations."
    )
  outputs = []
  for size in map(math.prod, out_shapes):
    leaf = _only_leaf(i for i, x in zip(inputs, shapes, strict=True) if math.prod(x) >= size)
    outputs.append(_DATA if _DATA in inputs else leaf)
  if eqn.primitive.name not in _PRODUCTS:
    return Counter(), outputs
  return Counter({_only_leaf(inputs): _PRODUCTS[eqn.primitive.name](eqn)}), outputs


def _only_leaf(origins: Iterable[int]) -> int:
  leaves = {i for i in origins if i >= 0}
  return leaves.pop() if len(leaves) == 1 else _FREE


def _join(a: list[int], b: list[int]) -> list[int]:
  """Origins of values that may come from either of two places."""
  return [x if x == y else min(x, y, _FREE) for x, y in zip(a, b, strict=True)]


def _scan(eqn: JaxprEqn, inputs: list[int]) -> _Walked:
  (body,) = jaxprs_in_params(eqn.params)
  # What is scanned over or stacked has one axis less inside. Told from the shapes, because
  # versions of jax differ in how the equation's parameters say it.
  num_xs, num_ys = (
    sum(len(a) > len(b) for a, b in zip(_shapes(outer), _shapes(inner), strict=True))
    for outer, inner in ((eqn.invars, body.invars), (eqn.outvars, body.outvars))
  )
  num_carry = len(eqn.outvars) - num_ys
  first = len(inputs) - num_xs - num_carry
  macs, outputs = _loop(
    body, inputs[:first], inputs[first:][:num_carry], inputs[first + num_carry :]
  )
  return Counter({i: n * eqn.params["length"] for i, n in macs.items()}), outputs


def _while(eqn: JaxprEqn, inputs: list[int]) -> _Walked:
  cond, body = jaxprs_in_params({k: eqn.params[k] for k in ("cond_jaxpr", "body_jaxpr")})
  first, second = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
  macs, outputs = _loop(body, inputs[first:][:second], inputs[first + second :], [])
  return macs + _walk(cond, inputs[:first] + outputs)[0], outputs


def _loop(body: Jaxpr, consts: list[int], carry: list[int], xs: list[int]) -> _Walked:
  """`_walk` of a loop's body once its origins no longer change from iteration to iteration."""
  macs, outputs = _walk(body, consts + carry + xs)
  joined = _join(carry, outputs[: len(carry)])
  return (macs, outputs) if joined == carry else _loop(body, consts, joined, xs)


def _cond(eqn: JaxprEqn, inputs: list[int]) -> _Walked:
  branches = [_walk(branch, inputs[1:]) for branch in jaxprs_in_params(eqn.params)]
  macs = max((branch_macs for branch_macs, _ in branches), key=Counter.total)
  return macs, functools.reduce(_join, (outputs for _, outputs in branches))


def _dot_macs(eqn: JaxprEqn) -> int:
  (contracted, _), _ = eqn.params["dimension_numbers"]
  shape, _, out_shape = _shapes([*eqn.invars, *eqn.outvars])
  return math.prod(out_shape) * math.prod(shape[axis] for axis in contracted)


def _conv_macs(eqn: JaxprEqn) -> int:
  shape, kernel, out_shape = _shapes([*eqn.invars, *eqn.outvars])
  out_axis, in_axis, *_ = eqn.params["dimension_numbers"].rhs_spec
  if math.prod(eqn.params["lhs_dilation"]) == 1:
    return math.prod(out_shape) * math.prod(kernel) // kernel[out_axis]
  # Transposed: most positions of the dilated input are inserted zeros, which cost nothing.
  in_channels = kernel[in_axis] * eqn.params["feature_group_count"]
  return math.prod(shape) * math.prod(kernel) // in_channels


_PRODUCTS = {"dot_general": _dot_macs, "conv_general_dilated": _conv_macs}
_CONTROL_FLOW = {"scan": _scan, "while": _while, "cond": _cond}


def _has_products(jaxpr: Jaxpr) -> bool:
  return any(
    eqn.primitive.name in _PRODUCTS or any(map(_has_products, jaxprs_in_params(eqn.params)))
    for eqn in jaxpr.eqns
  )


def _shapes(atoms: Iterable[Any]) -> list[tuple[int, ...]]:
  return [getattr(atom.aval, "shape", ()) for atom in atoms]  # tokens have none
