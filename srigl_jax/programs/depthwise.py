"""Depthwise convolutions of programs as products, which are native with what follows them."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.programs.eight_bits import with_derivative_of
from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op
from srigl_kernels import deferred, depthwise
from srigl_kernels.backends.cpu import depthwise as native
from srigl_kernels.backends.dense import Structured
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.epilogue import apply_epilogue
from srigl_kernels.matmul_precision import current_precision
from srigl_kernels.precision import round_inputs


def rewrite(jaxpr: FlatJaxpr) -> FlatJaxpr:
  """The program with a product for each depthwise convolution that the native kernel takes.

  A bias that is added to one, `[C]` however it is broadcast, becomes the product's. What is
  replaced otherwise stays in the program, and nothing reads it. Products of masked layers that are
  computed densely are native, too.

  Args:
    jaxpr: the program.
  """
  makers = {x: op for op in jaxpr.ops for x in op.outputs}
  readers = [x for op in jaxpr.ops for x in op.inputs if isinstance(x, int)]
  readers += [x for x in jaxpr.outputs if isinstance(x, int)]
  found: dict[int, Op] = {}  # by output, convolutions without a bias
  ops = []
  for op in jaxpr.ops:
    if op.primitive is deferred.product_p:
      op = _of_product(op)
    elif op.primitive is jax.lax.conv_general_dilated_p:
      product = _of_convolution(op)
      if product is not None:
        found[op.outputs[0]] = op = product
    elif op.primitive.name == "add":
      for x, other in (op.inputs, op.inputs[::-1]):
        if isinstance(x, int) and x in found and readers.count(x) == 1:
          bias = _vector(other, op.out_avals[0].shape, makers)
          op = op if bias is None else _with_bias(found[x], bias, op)
          break
    ops.append(op)
  return jaxpr._replace(ops=tuple(ops))


def _of_product(op: Op) -> Op:
  """A recorded product as the native one, if it is a dense depthwise convolution."""
  avals = deferred.Product(op.in_avals, op.params)
  static, layout = avals.params["static"], avals.layouts.get("dense")
  if not static or len(avals.layouts) > 1 or not isinstance(layout, Structured):
    return op
  (geometry,) = static
  kernel = jax.eval_shape(lambda matrix: _kernel(matrix, geometry), layout.matrix)
  if native.why_not(avals.x, kernel, geometry):
    return op
  return op._replace(params={**op.params, "apply": _native_product(op.params["apply"])})


def _kernel(matrix: Array, geometry: Geometry) -> Array:
  return matrix.astype(jnp.float32).reshape(*geometry.kernel_size, -1, matrix.shape[1])


def _native_product(exact: Any) -> Any:
  """A product's function, computed natively; its derivative is that of the given one."""

  def apply(x, condensed, layout, residual, activation, backend, geometry):
    def fast(x, condensed, layout, residual):
      x = round_inputs(x, condensed, x.ndim - 1)
      kernel = _kernel(layout.matrix, geometry)
      return native.conv(x, kernel, condensed.bias, residual, activation, geometry)

    slow = lambda *arrays: exact(*arrays, activation, backend, geometry)
    return with_derivative_of(slow, fast)(x, condensed, layout, residual)

  return apply


def _of_convolution(op: Op) -> Op | None:
  """A convolution as a product without a bias, if the native kernel takes it."""
  (image, kernel), (out,), params = op.in_avals, op.out_avals, op.params
  if not depthwise.is_convolution(image, kernel, out, params):
    return None
  names = ("window_strides", "rhs_dilation", "padding")
  strides, dilation, padding = (tuple(params[name]) for name in names)
  size = tuple(kernel.shape[:-2])
  geometry = Geometry(size, strides, dilation, padding, params["feature_group_count"])
  if native.why_not(image, kernel, geometry):
    return None
  return _product(op, (image, (kernel, None)), op.inputs, op.in_avals, geometry)


def _with_bias(product: Op, bias: int, op: Op) -> Op:
  """The product with a bias, in place of an addition."""
  (geometry,) = product.params["static"]
  image, kernel = product.in_avals
  avals = (image, kernel, jax.core.ShapedArray(kernel.shape[-1:], jnp.float32))
  return _product(op, (image, (kernel, avals[2])), (*product.inputs, bias), avals, geometry)


def _product(op: Op, arrays: Any, inputs: Sequence[Any], avals: Any, geometry: Geometry) -> Op:
  """An operation of `product_p`, of an image and a layout `(kernel, bias)`, in place of another."""
  image, layout = arrays
  tree = jax.tree.structure((image, None, {"dense": layout}, None))
  params = {
    "apply": _apply, "tree": tree, "activation": None, "backend": "dense", "static": (geometry,),
    "precision": current_precision(),
  }  # fmt: skip
  return Op(deferred.product_p, params, tuple(inputs), op.outputs, tuple(avals), op.out_avals)


def _apply(x, _, layout, residual, activation, backend, geometry):
  """The product of `(kernel, bias)`; the derivative is that of XLA's operations."""

  def fast(x, layout, residual):
    kernel, bias = layout
    return native.conv(x, kernel, bias, residual, activation, geometry)

  def exact(x, layout, residual):
    kernel, bias = layout
    how = geometry.strides, geometry.padding, geometry.dilation
    y = depthwise.convolve(x, kernel, *how)
    return apply_epilogue(y, bias, activation, y.dtype, residual)

  return with_derivative_of(exact, fast)(x, layout, residual)


def _vector(x: Any, shape: Sequence[Any], makers: dict[int, Op]) -> int | None:
  """The `[C]` float32 that a tensor repeats along all axes but the last, if it does."""
  while isinstance(x, int) and x in makers:
    op = makers[x]
    (source, *others), (aval, *_) = op.inputs, op.in_avals
    if others or not isinstance(source, int) or aval.dtype != jnp.float32:
      return None
    if op.primitive.name == "broadcast_in_dim":
      last = op.params["broadcast_dimensions"][-1:]
      keeps = last == (len(op.out_avals[0].shape) - 1,)
    else:
      keeps = op.primitive.name == "reshape" and op.params.get("dimensions") is None
    if not keeps or aval.shape[-1:] != tuple(shape[-1:]) or any(n != 1 for n in aval.shape[:-1]):
      return None
    if aval.ndim == 1:
      return source
    x = source
  return None
