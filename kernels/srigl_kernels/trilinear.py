"""The three products of a condensed layer, each the derivative of the others, to any order.

With x `[B, I]`, values v `[A, K]` and g `[B, N]`, the sum of `g * (x @ W(v))` is linear in each of
the three. Its derivatives are the product `y(x, v)`, the gradient in the inputs `dx(g, v)` and that
in the values `dv(g, x)`. A product's tangents are the same product, its transposes the two others:
so forward mode, reverse mode and any nesting of them run on the kernels of the layer's backend.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from srigl_kernels.backends import xla
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.format import Condensed
from srigl_kernels.matmul_precision import current_precision
from srigl_kernels.prepared import Layout

_product = Primitive("condensed_product")


def tangent(
  backend: str,
  primals: tuple[Array, Array],
  tangents: tuple[Array | None, Array | None],
  condensed: Condensed,
  layout: Layout,
) -> Array | None:
  """The tangent of the product `x @ W(v)`, `[B, N]` of x's type; None if it is 0.

  Args:
    backend: a name in `BACKENDS`.
    primals: x `[B, I]` and the layer's values `[A, K]`.
    tangents: of these; None for 0.
    condensed: the layer.
    layout: of the backend.
  """
  (x, values), (dx, dvalues) = primals, tangents
  rest, tree = jax.tree.flatten((condensed, layout))
  how = rest, tree, current_precision()
  parts = [] if dx is None else [_bind("y", backend, True, dx, values, *how)]
  parts += [] if dvalues is None else [_bind("y", backend, False, x, dvalues, *how)]
  return sum(parts[1:], parts[0]) if parts else None


def _bind(
  kind: str,
  backend: str,
  known: bool,
  a: Array,
  b: Array,
  rest: list[Any],
  tree: Any,
  precision: str | None,
) -> Array:
  """One of the products; not `known`: of values that no layout was made of, such as tangents."""
  return _product.bind(
    a, b, *rest, kind=kind, backend=backend, known=known, tree=tree, precision=precision
  )


def _compute(
  a: Array,
  b: Array,
  *rest: Any,
  kind: str,
  backend: str,
  known: bool,
  tree: Any,
  precision: str | None,
) -> Array:
  with jax.default_matmul_precision(precision):
    return _of_kind(kind, backend, known, a, b, *jax.tree.unflatten(tree, rest))


def _of_kind(
  kind: str, backend: str, known: bool, a: Array, b: Array, condensed: Condensed, layout: Layout
) -> Array:
  if kind == "dv":
    return (BACKENDS[backend].values_gradient or xla.values_gradient)(a, b, condensed, layout)
  condensed = dataclasses.replace(condensed, values=b)
  entry, layout = (BACKENDS[backend], layout) if known else (xla.BACKEND, xla.pack(condensed))
  if kind == "y":
    return entry.matmul(a, entry.with_values(layout, b), None, None)
  return (entry.input_gradient or xla.input_gradient)(a, condensed, layout)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Array, Any]:
  a, b, *rest = primals
  da, db = tangents[:2]
  y = _product.bind(a, b, *rest, **params)
  parts = [] if type(da) is ad.Zero else [_product.bind(da, b, *rest, **params)]
  if type(db) is not ad.Zero:
    parts.append(_product.bind(a, db, *rest, **{**params, "known": params["kind"] == "dv"}))
  return y, sum(parts[1:], parts[0]) if parts else ad.Zero(jax.typeof(y))


def _transpose(
  ct: Any,
  a: Any,
  b: Any,
  *rest: Any,
  kind: str,
  backend: str,
  known: bool,
  tree: Any,
  precision: str | None,
) -> list[Any]:
  nothing: list[Any] = [None] * (2 + len(rest))
  if type(ct) is ad.Zero:
    return nothing
  first = ad.is_undefined_primal(a)
  like = (a if first else b).aval
  operands = {
    ("y", True): ("dx", known, ct, b),
    ("y", False): ("dv", True, ct, a),
    ("dx", True): ("y", known, ct, b),
    ("dx", False): ("dv", True, a, ct),
    ("dv", True): ("y", False, b, ct),
    ("dv", False): ("dx", False, a, ct),
  }
  of, is_known, p, q = operands[kind, first]
  ct = _bind(of, backend, is_known, p, q, list(rest), tree, precision)
  nothing[0 if first else 1] = ct.astype(like.dtype)
  return nothing


def _batch(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Array, int]:
  args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
  mapped = [d is not None for d in dims]
  if params["kind"] != "dv" and mapped[0] and not any(mapped[1:]):  # more rows
    rows = args[0].reshape(-1, args[0].shape[-1])
    y = _product.bind(rows, *args[1:], **params)
    return y.reshape(*args[0].shape[:-1], y.shape[-1]), 0

  def one(each: list[Array]) -> Array:
    row = iter(each)
    return _product.bind(
      *(next(row) if m else x for x, m in zip(args, mapped, strict=True)), **params
    )

  return lax.map(one, [x for x, m in zip(args, mapped, strict=True) if m]), 0


def _shape_of(*args: Any, **params: Any) -> Any:
  return jax.make_jaxpr(functools.partial(_compute, **params))(*args).out_avals[0]


_product.def_impl(
  jax.jit(_compute, static_argnames=("kind", "backend", "known", "tree", "precision"))
)
_product.def_abstract_eval(_shape_of)
ad.primitive_jvps[_product] = _jvp
ad.primitive_transposes[_product] = _transpose
batching.primitive_batchers[_product] = _batch
mlir.register_lowering(_product, mlir.lower_fun(_compute, multiple_results=False))
