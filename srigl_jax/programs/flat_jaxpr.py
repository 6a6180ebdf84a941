"""Traced programs with calls written out, in which each layer with parameters is one operation."""

from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

layer_p = jex.Primitive("srigl_layer")
"""A layer with parameters, given its input and then these; `path` names it; `shape` and `dtype` are
its output's."""


@layer_p.def_abstract_eval
def _layer_abstract(x, *parameters, path, shape, dtype):
  return jax.core.ShapedArray(shape, jnp.dtype(dtype))


def _layer_batched(args, dims, *, path, shape, dtype):
  # Mapped over its parameters it is a stack of layers, over x alone it is given one axis more.
  size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
  args = [a if dim is None else jnp.moveaxis(a, dim, 0) for a, dim in zip(args, dims, strict=True)]
  return layer_p.bind(*args, path=path, shape=(size, *shape), dtype=dtype), 0


jax.interpreters.batching.primitive_batchers[layer_p] = _layer_batched


class Op(NamedTuple):
  """One operation; inputs are numbers of tensors, or values of scalars."""

  primitive: Any
  params: dict[str, Any]
  inputs: tuple[Any, ...]
  outputs: tuple[int, ...]
  in_avals: tuple[Any, ...]
  out_avals: tuple[Any, ...]
  has_effects: bool = False

  @property
  def layer(self) -> str | None:
    """The path, if the operation is a layer."""
    return self.params["path"] if self.primitive is layer_p else None


class FlatJaxpr(NamedTuple):
  """A jaxpr with calls of functions written out.

  Attributes:
    inputs: the arguments' tensors.
    ops: in order of execution.
    outputs: tensors, or values of scalars.
    consts: the tensors that are constants of the program.
  """

  inputs: tuple[int, ...]
  ops: tuple[Op, ...]
  outputs: tuple[Any, ...]
  consts: dict[int, Any]

  def fingerprint(self) -> list[tuple[Any, ...]]:
    """What is computed apart from shapes: operations and scalars, in order."""
    return [
      (op.layer or op.primitive.name, *(str(x) for x in op.inputs if isinstance(x, np.ndarray)))
      for op in self.ops
    ]

  def calls(self) -> dict[str, int]:
    """How often each layer is called; one inside a loop or branch counts as several."""
    counts: dict[str, int] = {}
    for op in self.ops:
      found = [op.layer] if op.layer is not None else 2 * _layers_within(op.params.values())
      for path in found:
        counts[path] = counts.get(path, 0) + 1
    return counts

  def in_loops(self) -> set[str]:
    """The layers that a loop calls."""
    loops = [op for op in self.ops if op.primitive.name in ("scan", "while")]
    return {path for op in loops for path in _layers_within(op.params.values())}


def is_number(x: Any) -> bool:
  """Whether an array is a scalar, and no random key."""
  return np.ndim(x) == 0 and not jax.dtypes.issubdtype(jnp.result_type(x), jax.dtypes.extended)


_BODIES = {
  "jit": "jaxpr",
  "pjit": "jaxpr",
  "checkpoint": "jaxpr",
  "remat2": "jaxpr",
  "closed_call": "call_jaxpr",
  "custom_jvp_call": "call_jaxpr",
  "custom_vjp_call": "call_jaxpr",
}
JIT = frozenset({"jit", "pjit"})


def inline(closed: Any, calls: Container[str] = frozenset(_BODIES)) -> FlatJaxpr:
  """Writes out the calls of a closed jaxpr.

  Args:
    closed: the jaxpr.
    calls: the primitives whose calls are written out: by default those of jit, of functions with
      their own derivative, and of such that are computed again in the backward pass.
  """
  ops: list[Op] = []
  numbers = iter(range(2**62))
  constants: dict[int, Any] = {}

  def constant(value):
    if is_number(value) and not isinstance(value, jax.core.Tracer):
      return np.asarray(value)
    number = next(numbers)
    constants[number] = value
    return number

  def walk(jaxpr, consts, args):
    known = [constant(c) for c in consts]
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*known, *args], strict=True))

    def read(atom):
      return np.asarray(atom.val) if isinstance(atom, jex.Literal) else env[atom]

    for eqn in jaxpr.eqns:
      inputs = tuple(read(atom) for atom in eqn.invars)
      body = called(eqn) if eqn.primitive.name in calls else None
      if body is None:
        outputs = tuple(next(numbers) for _ in eqn.outvars)
        avals = tuple(a.aval for a in eqn.invars), tuple(v.aval for v in eqn.outvars)
        ops.append(Op(eqn.primitive, eqn.params, inputs, outputs, *avals, bool(eqn.effects)))
      else:
        outputs = walk(*body, inputs)
      env.update(zip(eqn.outvars, outputs, strict=True))
    return tuple(read(atom) for atom in jaxpr.outvars)

  inputs = tuple(next(numbers) for _ in closed.jaxpr.invars)
  outputs = walk(closed.jaxpr, closed.consts, inputs)
  return FlatJaxpr(inputs, tuple(ops), outputs, constants)


def evaluate(op: Op, values: Sequence[Any]) -> Sequence[Any]:
  """The outputs of an operation for these values of its inputs."""
  values = [
    jnp.asarray(x, aval.dtype) if isinstance(x, np.ndarray) and x.ndim == 0 else x
    for x, aval in zip(values, op.in_avals, strict=True)
  ]
  outputs = op.primitive.bind(*values, **op.primitive.get_bind_params(op.params))
  return outputs if op.primitive.multiple_results else [outputs]


def called(eqn: Any) -> tuple[Any, Sequence[Any]] | None:
  """The jaxpr and constants of an equation that only calls a function."""
  name = _BODIES.get(eqn.primitive.name)
  body = eqn.params.get(name)
  if body is None:
    return None
  return (body.jaxpr, body.consts) if isinstance(body, jex.ClosedJaxpr) else (body, ())


def bodies(params: Any) -> list[Any]:
  """The jaxprs among the parameters of an operation: of a loop, a branch, any other function."""
  found: list[Any] = []
  for param in params:
    jaxpr = param.jaxpr if isinstance(param, jex.ClosedJaxpr) else param
    if isinstance(jaxpr, jex.Jaxpr):
      found.append(jaxpr)
    elif isinstance(param, (tuple, list)):
      found += bodies(param)
  return found


def _layers_within(params: Any) -> list[str]:
  """Paths of the layers called in jaxprs among the parameters of an operation."""
  found: list[str] = []
  for eqn in (eqn for jaxpr in bodies(params) for eqn in jaxpr.eqns):
    inside = _layers_within(eqn.params.values())
    found += [eqn.params["path"]] if eqn.primitive is layer_p else inside
  return found
