"""What is computed of a program that is rewritten, and which backend runs each product."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op
from srigl_kernels import deferred
from srigl_kernels.auto import fastest, is_worth_staying_native
from srigl_kernels.backends.cpu import library, matmul

_VIEWS = {"reshape", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"}


class Step(NamedTuple):
  """An operation that is computed.

  Attributes:
    op: the operation; of a product that with its inputs.
    output: its first output.
    product: None of others; of its pytrees, leaves are numbers of tensors.
    residual: the tensor that is added to a product, or None.
    activation: of a product.
    backend: likewise.
  """

  op: Op
  output: int | None
  product: deferred.Product | None = None
  residual: int | None = None
  activation: str | None = None
  backend: str = ""

  @property
  def inputs(self) -> list[int]:
    """The tensors that it reads."""
    read = (*self.op.inputs, self.residual)
    return [x for x in read if isinstance(x, int)]

  @property
  def avals(self) -> deferred.Product:
    """A product with the types of its arrays."""
    return deferred.Product(self.op.in_avals, self.op.params)

  @property
  def is_packed(self) -> bool:
    """Whether it is a product by native kernels that take activations in forms of their own."""
    if self.product is None or self.backend != "cpu":
      return False
    if not isinstance(self.product.layouts.get("cpu"), matmul.Packed):
      return False
    geometry = self.product.params["static"]
    if geometry and len(geometry[0].kernel_size) != 2:
      return False
    avals = self.avals
    sizes = (*self.op.out_avals[0].shape, *avals.x.shape, avals.condensed.num_active)
    return all(isinstance(n, int) and n > 0 for n in sizes)


def readers_of(steps: Sequence[Step], outputs: Sequence[Any]) -> dict[int, list[Step | None]]:
  """What reads each tensor of a program; None stands for its outputs."""
  readers: dict[int, list[Step | None]] = {}
  for step in steps:
    for x in step.inputs:
      readers.setdefault(x, []).append(step)
  for x in outputs:
    if isinstance(x, int):
      readers.setdefault(x, []).append(None)
  return readers


def may_be_native(jaxpr: FlatJaxpr) -> bool:
  """Whether operations other than products may become native: on a CPU, where the library is, and
  unless products are prepared for other backends alone, which need no library.
  """
  if jax.default_backend() != "cpu" or not library.is_available():
    return False
  products = [op for op in jaxpr.ops if op.primitive is deferred.product_p]
  layouts = [deferred.Product(op.in_avals, op.params).layouts for op in products]
  return not layouts or any("cpu" in layout for layout in layouts)


def backend_of(op: Op) -> str:
  """What runs a product: of several layouts the one that is fastest for all its rows, of which a
  call that is under `jax.vmap` saw those of one example.
  """
  product = deferred.Product(op.in_avals, op.params)
  if len(product.layouts) == 1:
    return op.params["backend"]
  rows = math.prod(op.out_avals[0].shape[:-1])
  return fastest(product.condensed, rows, product.layouts)


def is_native(steps: Sequence[Step]) -> bool:
  """Whether a program is nothing but products, all of which may as well be native."""
  for step in steps:
    if step.product is None:
      if step.op.primitive.name in _VIEWS:
        continue
      return False
    avals = step.avals
    if avals.params["static"] or "cpu" not in avals.layouts:
      return False
    rows = math.prod(avals.x.shape[:-1])
    if not is_worth_staying_native(avals.condensed, step.backend, rows):
      return False
  return True
