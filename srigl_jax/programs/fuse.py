"""A function rewritten so that its condensed products also do what follows them."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from srigl_jax.programs import attention, cpu_rewrites, depthwise, eight_bits, tiles
from srigl_jax.programs.eight_bits import find_ranges, with_derivative_of
from srigl_jax.programs.elementwise import GRID, Curve, curve_of, number_of, same_values
from srigl_jax.programs.flat_jaxpr import JIT, FlatJaxpr, Op, bodies, evaluate, inline
from srigl_jax.programs.steps import Step, backend_of, is_native, may_be_native
from srigl_kernels import deferred
from srigl_kernels.backends.registry import is_traced
from srigl_kernels.epilogue import ACTIVATIONS


class _Sum(NamedTuple):
  """What a product becomes.

  Attributes:
    product: the operation.
    residual: the tensor that is added, or None.
    activation: a name in `ACTIVATIONS`.
  """

  product: Op
  residual: int | None
  activation: str | None


def fuse(function: Callable[..., Any]) -> Callable[..., Any]:
  """A function that computes the same, where condensed products do what follows them.

  A residual that is added to a product, or the activation behind it or behind that sum, is applied
  as the product is written, in place of one more pass over memory: by the native kernels; other
  backends leave it to XLA as before. Activations are told by what they compute, however they are
  written; those in `condensed_matmul`'s list are. Products in float32 are rewritten, and only
  where nothing else reads what lies between.

  Native products pass on 8 bits to products of 8 bits whose inputs have a calibrated range, which
  round them as these would have done. What is a residual, too, is added in 8 bits then. Native
  convolutions in float32 pass on images in the tiles that they are computed in, where only such and
  max-poolings between them read them. The derivative is that of products which pass on arrays of
  float32.

  Max-poolings and sums over pixels, which XLA computes slowly on a CPU, become other operations of
  XLA there, and depthwise convolutions native ones with the bias and the activation behind them, or
  other operations of XLA where nothing else is native.

  `condense_model`, `condense_linen` and `merge_condensed` do this to the calls of the models that
  they return. For others, for another method than the call, or for a function around several
  models:

      serve = jax.jit(sx.fuse(lambda x: jax.vmap(model)(x)))

  Args:
    function: any function that could be given to `jax.jit`; arguments that are no arrays are
      static. It is traced in every call, so the result belongs under `jax.jit`; called with arrays
      that are not traced it is left as it is.

  Returns:
    The function; it can be transformed as the given one.
  """

  @functools.wraps(function)
  def fused(*args: Any, **kwargs: Any) -> Any:
    if deferred.is_recording() or not is_traced((args, kwargs)):
      return function(*args, **kwargs)
    leaves, tree = jax.tree.flatten((args, kwargs))
    is_array = [isinstance(x, (jax.Array, np.ndarray)) for x in leaves]
    arrays = [x for x, dynamic in zip(leaves, is_array, strict=True) if dynamic]

    def call(arrays):
      rest = iter(arrays)
      given = [next(rest) if d else x for x, d in zip(leaves, is_array, strict=True)]
      args, kwargs = jax.tree.unflatten(tree, given)
      return function(*args, **kwargs)

    with deferred.recording():
      closed, shapes = jax.make_jaxpr(call, return_shape=True)(arrays)
    outputs = evaluate_fused(closed, arrays)
    return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

  return fused


def evaluate_fused(closed: Any, inputs: Sequence[Any]) -> list[Any]:
  """The outputs of a jaxpr that was traced while products were recorded, these rewritten.

  Args:
    closed: a closed jaxpr.
    inputs: its arguments.
  """
  jaxpr = inline(closed, JIT)
  if may_be_native(jaxpr):
    jaxpr = depthwise.rewrite(attention.rewrite(jaxpr))
  steps = _steps(jaxpr)
  known = {**jaxpr.consts, **dict(zip(jaxpr.inputs, inputs, strict=True))}
  ranges = find_ranges(steps, jaxpr.outputs, known)
  tiled = tiles.find_tiled(steps, jaxpr.outputs, ranges)
  computed = {x for x in jaxpr.outputs if isinstance(x, int) and x not in known}

  def run(ranges: Mapping[int, int], tiled: Collection[int], *values: Any) -> dict[int, Any]:
    env: dict[int, Any] = dict(zip(known, values, strict=True))
    for step in steps:
      env.update(zip(step.op.outputs, _compute(step, env, ranges, tiled), strict=True))
    return {x: env[x] for x in computed}

  compute: Callable[..., dict[int, Any]] = functools.partial(run, {}, ())
  if (ranges or tiled) and not any(step.op.has_effects for step in steps):
    compute = with_derivative_of(compute, functools.partial(run, ranges, tiled))
  env = {**known, **compute(*known.values())}
  return [
    env[x] if isinstance(x, int) else jnp.asarray(x, aval.dtype)
    for x, aval in zip(jaxpr.outputs, closed.out_avals, strict=True)
  ]


def _steps(jaxpr: FlatJaxpr) -> list[Step]:
  """What is computed of a program, products with what follows them."""
  sums = _find_sums(jaxpr)
  needed = _needed(jaxpr, sums)
  steps = []
  for op in jaxpr.ops:
    if not needed.intersection(op.outputs) and not op.has_effects:
      continue
    output = op.outputs[0] if op.outputs else None
    found = None if output is None else sums.get(output)
    if found is None and op.primitive is not deferred.product_p:
      steps.append(Step(op, output))
      continue
    product_op = op if found is None else found.product
    product = deferred.Product(product_op.inputs, product_op.params)
    residual = product.residual if found is None else found.residual
    activation = product.params["activation"] if found is None else found.activation
    op = product_op._replace(outputs=op.outputs)
    steps.append(Step(op, output, product, residual, activation, backend_of(op)))
  if is_native(steps):
    steps = [step._replace(backend="cpu" if step.product else "") for step in steps]
  return steps


def _compute(
  step: Step, env: Mapping[int, Any], ranges: Mapping[int, int], tiled: Collection[int]
) -> Sequence[Any]:
  """The outputs of an operation."""
  is_quantized = step.output in ranges or any(x in ranges for x in step.inputs)
  if is_quantized:
    return [eight_bits.compute(step, env, ranges.get(step.op.outputs[0]))]
  if tiles.uses(step, tiled):
    return [tiles.compute(step, env, step.output in tiled)]
  read = lambda x: env[x] if isinstance(x, int) else x
  values = [read(x) for x in step.op.inputs]
  if step.product is None:
    compute = cpu_rewrites.find(step.op)
    return evaluate(_with_fused_bodies(step.op), values) if compute is None else [compute(*values)]
  product = deferred.Product(values, step.op.params)
  how = {"activation": step.activation, "backend": step.backend}
  residual = None if step.residual is None else read(step.residual)
  return [product.compute(residual=residual, **how)]


def _find_sums(jaxpr: FlatJaxpr) -> dict[int, _Sum]:
  """The tensors that products compute together with what follows them."""
  readers: dict[int, list[Op | None]] = {}
  for op in [*jaxpr.ops, None]:
    for x in jaxpr.outputs if op is None else op.inputs:
      if isinstance(x, int):
        readers.setdefault(x, []).append(op)
  bases: dict[int, _Sum] = {}
  shapes: dict[int, tuple[Any, ...]] = {}
  known: dict[int, Any] = {}  # tensor -> its base, a Curve, or a number
  ends: dict[int, dict[int, Any]] = {}  # base -> tensors that are curves of it
  for op in jaxpr.ops:
    values = [known.get(x) if isinstance(x, int) else x for x in op.inputs]
    if op.primitive is deferred.product_p:
      aval = op.out_avals[0]
      if aval.dtype == jnp.float32 and not deferred.Product(op.inputs, op.params).has_epilogue:
        base = op.outputs[0]
        bases[base], shapes[base], known[base] = _Sum(op, None, None), aval.shape, base
    elif len(op.outputs) == 1:
      (out,) = op.outputs
      number = number_of(op, values)
      source = {x if isinstance(x, int) else x.base for x in values if isinstance(x, int | Curve)}
      if number is not None:
        known[out] = number
      elif (summand := _residual_base(op, bases, readers)) is not None:
        other = next(x for x in op.inputs if x != summand)
        bases[out], shapes[out] = bases[summand]._replace(residual=other), shapes[summand]
        known[out] = out
      elif len(source) == 1:
        curve = curve_of(op, values, shapes[next(iter(source))])
        if curve is not None:
          known[out] = curve
          ends.setdefault(curve.base, {})[out] = curve
  return _choose(bases, ends, readers)


def _residual_base(op: Op, bases: dict[int, _Sum], readers: dict[int, Any]) -> int | None:
  """The product that a sum of two tensors adds a residual to: the later one, if both are."""
  if op.primitive.name not in ("add", "add_any"):
    return None
  a, b = op.inputs
  if not isinstance(a, int) or not isinstance(b, int) or a == b:
    return None
  if any(aval.shape != op.out_avals[0].shape for aval in op.in_avals):
    return None
  if any(aval.dtype != jnp.float32 for aval in op.in_avals):
    return None
  free = [x for x in (a, b) if x in bases and bases[x].residual is None and len(readers[x]) == 1]
  return max(free, default=None)


def _choose(
  bases: dict[int, _Sum], curves: dict[int, dict[int, Curve]], readers: dict[int, list[Op | None]]
) -> dict[int, _Sum]:
  """For each product where it ends: behind its activation, its residual, or nothing of both."""
  chosen: dict[int, _Sum] = {}
  for base, found in bases.items():
    own = curves.get(base, {})
    # What is read by something else than a curve of this product must be computed.
    inside = lambda op, own=own: op is not None and op.outputs[0] in own
    ends = [x for x in (base, *own) if not all(map(inside, readers.get(x, [])))]
    if len(ends) == 1 and ends[0] in own:
      name = _activation(own[ends[0]].values)
      if name is not None:
        chosen[ends[0]] = found._replace(activation=name)
        continue
    if found.residual is not None:
      chosen[base] = found
  return chosen


@functools.cache
def _known_values() -> dict[str, np.ndarray]:
  with jax.ensure_compile_time_eval():
    return {name: np.asarray(f(jnp.asarray(GRID))) for name, f in ACTIVATIONS.items() if name}


def _activation(values: np.ndarray) -> str | None:
  return next((name for name, y in _known_values().items() if same_values(values, y)), None)


def _needed(jaxpr: FlatJaxpr, sums: dict[int, _Sum]) -> set[int]:
  """The tensors that have to be computed."""
  needed = {x for x in jaxpr.outputs if isinstance(x, int)}
  for op in reversed(jaxpr.ops):
    if not needed.intersection(op.outputs) and not op.has_effects:
      continue
    found = sums.get(op.outputs[0]) if op.outputs else None
    inputs = op.inputs if found is None else (*found.product.inputs, found.residual)
    needed |= {x for x in inputs if isinstance(x, int)}
  return needed


def _with_fused_bodies(op: Op) -> Op:
  """A loop or branch whose bodies are rewritten, too."""
  if op.primitive.name not in ("scan", "while", "cond"):
    return op
  params = dict(op.params)
  for name, value in params.items():
    if isinstance(value, jex.ClosedJaxpr):
      params[name] = _fused_body(value)
    elif isinstance(value, (tuple, list)) and any(isinstance(x, jex.ClosedJaxpr) for x in value):
      params[name] = type(value)(map(_fused_body, value))
  return op._replace(params=params)


def _fused_body(closed: Any) -> Any:
  if not any(eqn.primitive is deferred.product_p for eqn in _all_equations(closed.jaxpr)):
    return closed
  return jax.make_jaxpr(lambda *inputs: evaluate_fused(closed, inputs))(*closed.in_avals)


def _all_equations(jaxpr: Any) -> list[Any]:
  found = []
  for eqn in jaxpr.eqns:
    found.append(eqn)
    for body in bodies(eqn.params.values()):
      found += _all_equations(body)
  return found
