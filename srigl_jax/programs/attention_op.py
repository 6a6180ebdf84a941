"""The operation that stands for an attention in a program, and how it is computed."""

from typing import Any, NamedTuple

from jax.extend import core as jex

from srigl_jax.programs.flat_jaxpr import Op, evaluate
from srigl_kernels.backends.cpu import attention as native

attention_p = jex.Primitive("srigl_attention")
"""What `attention.rewrite` puts in a program; only ever evaluated by `function_of`."""


class Found(NamedTuple):
  """An attention, as a parameter of its operation.

  Attributes:
    ops: those that it replaces, in order.
    externals: the tensors that these read.
    roles: numbers among them of queries, keys and values, and of keys and values that follow these,
      if there are some; a mask is behind them all.
    how: the keyword arguments of the native function.
    output: the tensor that is the result.
  """

  ops: tuple[Op, ...]
  externals: tuple[int, ...]
  roles: tuple[int, ...]
  how: dict[str, Any]
  output: int


def function_of(op: Op) -> tuple[Any, Any]:
  """Two functions of the inputs of an operation of `attention_p`: as it was written, and native."""
  found: Found = op.params["found"]

  def exact(*values):
    env = dict(zip(found.externals, values, strict=False))
    for part in found.ops:
      read = [env[x] if isinstance(x, int) else x for x in part.inputs]
      env.update(zip(part.outputs, evaluate(part, read), strict=True))
    return env[found.output]

  def fast(*values):
    q, k, v, *tail = (values[i] for i in found.roles)
    mask = values[-1] if found.how["layout"].mask else None
    return native.attention(q, k, v, mask, tuple(tail) or None, **found.how)

  return exact, fast
