"""Products of a program that is still to be rewritten: each one operation, with all that it takes.

While `recording`, `condensed_matmul` and `condensed_conv` bind `product_p` in place of what they
compute, so that whoever traced the program (`srigl_jax.fuse`) finds them, and may call them with
another activation or with a residual. The operation computes the same if nobody does, under every
transformation of JAX.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from srigl_kernels.matmul_precision import current_precision

_is_recording = contextvars.ContextVar("srigl_kernels_is_recording", default=False)

product_p = Primitive("srigl_product")
"""A call: the leaves of x, layer, layouts and residual, whose structure is `tree`."""


@contextlib.contextmanager
def recording() -> Iterator[None]:
  """Products that are traced in this context are recorded."""
  token = _is_recording.set(True)
  try:
    yield
  finally:
    _is_recording.reset(token)


def is_recording() -> bool:
  """Whether products are recorded now."""
  return _is_recording.get()


def call(
  apply: Callable[..., Array],
  x: Array,
  condensed: Any,
  layouts: dict[str, Any],
  residual: Array | None,
  activation: str | None,
  backend: str,
  *static: Any,
) -> Array:
  """`apply(x, condensed, layout, residual, activation, backend, *static)`, now or recorded.

  Args:
    apply: a function of a module; it takes x and residual with any leading axes.
    x: the input.
    condensed: the layer.
    layouts: by backend; its own is read, or another's if there are several.
    residual: what is added before the activation, or None.
    activation: a name in `ACTIVATIONS`.
    backend: a name in `BACKENDS`.
    *static: hashable.
  """
  if not is_recording():
    return apply(x, condensed, layouts[backend], residual, activation, backend, *static)
  leaves, tree = jax.tree.flatten((x, condensed, layouts, residual))
  params = {"apply": apply, "tree": tree, "activation": activation, "backend": backend}
  return product_p.bind(*leaves, **params, static=static, precision=current_precision())


class Product:
  """A recorded product, taken apart.

  Attributes:
    params: of the operation.
    x, condensed, layouts, residual: what it was given.
  """

  def __init__(self, leaves: Sequence[Any], params: dict[str, Any]):
    self.params = params
    self.x, self.condensed, self.layouts, self.residual = jax.tree.unflatten(params["tree"], leaves)

  @property
  def has_epilogue(self) -> bool:
    """Whether it has a residual or an activation."""
    return self.residual is not None or self.params["activation"] is not None

  def compute(self, **changes: Any) -> Array:
    """Its result, with another `residual`, `activation` or `backend` if these are given."""
    given = {"residual": self.residual, **self.params, **changes}
    layout = self.layouts[given["backend"]]
    how = given["activation"], given["backend"], *given["static"]
    with jax.default_matmul_precision(given["precision"]):
      return given["apply"](self.x, self.condensed, layout, given["residual"], *how)


def _compute(*leaves: Any, **params: Any) -> Array:
  return Product(leaves, params).compute()


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], **params: Any) -> tuple[Array, Any]:
  """By `apply`'s own rules, without the tangents that are 0."""
  moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]

  def run(*some: Any) -> Array:
    leaves = [*primals]
    for i, x in zip(moving, some, strict=True):
      leaves[i] = x
    return _compute(*leaves, **params)

  return jax.jvp(run, [primals[i] for i in moving], [tangents[i] for i in moving])


def _batch(args: Sequence[Any], dims: Sequence[Any], **params: Any) -> tuple[Array, int]:
  """Recorded again if x alone is batched, for one more leading axis."""
  residual = jax.tree.unflatten(params["tree"], range(len(args)))[3]
  rows = {0} if residual is None else {0, residual}
  if {i for i, d in enumerate(dims) if d is not None} == rows:
    args = [x if d is None else jnp.moveaxis(x, d, 0) for x, d in zip(args, dims, strict=True)]
    return product_p.bind(*args, **params), 0
  return jax.vmap(functools.partial(_compute, **params), in_axes=tuple(dims))(*args), 0


product_p.def_impl(_compute)
product_p.def_abstract_eval(
  lambda *avals, **params: jax.make_jaxpr(functools.partial(_compute, **params))(*avals).out_avals[
    0
  ]
)
ad.primitive_jvps[product_p] = _jvp
batching.primitive_batchers[product_p] = _batch
mlir.register_lowering(product_p, mlir.lower_fun(_compute, multiple_results=False))
