"""Who reads a model's parameters in a traced program: their layers, or others."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from srigl_jax.programs.flat_jaxpr import bodies, called, layer_p

Origins = list[int | None]  # for each variable, which input of the program it is, unchanged


class Uses(NamedTuple):
  """What `find_uses` finds.

  Attributes:
    read: numbers of the inputs that something else than a layer reads, or that are returned.
    changed: paths of the layers that are called with parameters which are no inputs, but computed
      from them: by a wrapper that normalises a kernel, say.
  """

  read: set[int]
  changed: set[str]


def find_uses(closed: Any) -> Uses:
  """Follows the inputs of a closed jaxpr, unchanged, through calls, loops and branches."""
  uses = Uses(set(), set())
  outputs = _visit(closed.jaxpr, list(range(len(closed.jaxpr.invars))), uses)
  uses.read.update(x for x in outputs if x is not None)
  return uses


def _visit(jaxpr: Any, origins: Origins, uses: Uses) -> Origins:
  """The origins of a jaxpr's outputs, given those of its arguments."""
  env = dict(zip(jaxpr.invars, origins, strict=True))
  read = lambda atom: None if isinstance(atom, jex.Literal) else env.get(atom)
  for eqn in jaxpr.eqns:
    outputs = _apply(eqn, [read(atom) for atom in eqn.invars], uses)
    env.update(zip(eqn.outvars, outputs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, inputs: Origins, uses: Uses) -> Origins:
  """The origins of an operation's outputs."""
  nothing: Origins = [None] * len(eqn.outvars)
  name, params = eqn.primitive.name, eqn.params
  if eqn.primitive is layer_p:
    if None in inputs[1:]:
      uses.changed.add(params["path"])
    uses.read.update(x for x in inputs[:1] if x is not None)
    return nothing
  if name == "scan":
    body = params["jaxpr"].jaxpr
    is_same = lambda a, b: len(a.aval.shape) == len(b.aval.shape)  # the others have an axis more
    carried = sum(map(is_same, eqn.outvars, body.outvars))
    whole = sum(map(is_same, eqn.invars, body.invars))
    slices = inputs[whole:]
    uses.read.update(x for x in slices if x is not None)
    consts, carry = inputs[: whole - carried], inputs[whole - carried : whole]
    rest: Origins = [None] * len(slices)
    return _loop(body, consts, carry, rest, uses) + nothing[carried:]
  if name == "while":
    first, second = params["cond_nconsts"], params["body_nconsts"]
    consts, carry = inputs[first : first + second], inputs[first + second :]
    carry = _loop(params["body_jaxpr"].jaxpr, consts, carry, [], uses)
    _visit(params["cond_jaxpr"].jaxpr, inputs[:first] + carry, uses)
    return carry
  if name == "cond":
    uses.read.update(x for x in inputs[:1] if x is not None)
    ends = [_visit(branch.jaxpr, inputs[1:], uses) for branch in params["branches"]]
    return [end[0] if len({*end}) == 1 else None for end in zip(*ends, strict=True)]
  if name == "optimization_barrier":
    return inputs
  function = called(eqn)
  inner = [function[0]] if function is not None else bodies(params.values())
  if len(inner) == 1 and len(inner[0].invars) == len(inputs):
    outputs = _visit(inner[0], inputs, uses)
    return outputs if len(outputs) == len(nothing) else nothing
  uses.read.update(x for x in inputs if x is not None)
  for jaxpr in inner:
    _visit(jaxpr, [None] * len(jaxpr.invars), uses)
  return nothing


def _loop(body: Any, consts: Origins, carry: Origins, rest: Origins, uses: Uses) -> Origins:
  """The origins of what a loop carries, of which only that counts which no iteration changes."""
  stable: Sequence[int | None] = carry
  while True:
    carry = list(stable)
    after = _visit(body, consts + carry + rest, uses)[: len(carry)]
    stable = [a if a == b else None for a, b in zip(carry, after, strict=True)]
    if stable == carry:
      return carry
