"""Multiply-accumulates of a model, per parameter leaf.

The count is read off the traced program, so it holds for any function of a parameter tree, and
no array is computed. Only matrix products and convolutions count, not norms or activations
(about 0.1 % of a ResNet-50).
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from srigl_jax.arguments import check_callable
from srigl_jax.layers import PyTree, leaf_path

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


def _count(fn, params: PyTree, args: Sequence[Any]) -> tuple[list[str], Counter[int]]:
  """Paths of the parameter leaves, and MACs by leaf index (`_FREE`: of no leaf)."""
  check_callable("fn", fn, "the network's function, (params, *args) -> outputs")
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
