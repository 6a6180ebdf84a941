"""Which images of a program its convolutions can pass on in tiles, and what computes them then."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from srigl_jax.programs.steps import Step, readers_of
from srigl_kernels.backends.cpu import tiled_conv


def find_tiled(
  steps: Sequence[Step], outputs: Sequence[Any], quantized: Collection[int]
) -> set[int]:
  """The tensors that are passed on in tiles: the native kernels then need not turn them around.

  Those that a native convolution in float32 writes, and that such alone read, as images or as what
  they add. A product of images `[..., H, W, C]` is a convolution, too.

  Args:
    steps: what is computed, in order.
    outputs: of the program.
    quantized: the tensors that are passed on in 8 bits.
  """
  readers, quantized = readers_of(steps, outputs), set(quantized)
  fits = {step.output: step for step in steps if _is_conv(step) and step.output not in quantized}
  reads = lambda reader, x: (
    reader is not None
    and reader.output in fits
    and not quantized & set(reader.inputs)
    and x not in jax.tree.leaves((reader.product.condensed, reader.product.layouts))
  )
  found = {x for x in fits if x in readers and all(reads(r, x) for r in readers[x])}
  while True:
    # Kernels that write tiles add what is in tiles.
    left = {x for x in found if fits[x].residual is None or fits[x].residual in found}
    if left == found:
      return found
    found = left


def _is_conv(step: Step) -> bool:
  """Whether a step is a native convolution of two spatial axes in float32."""
  if not step.is_packed:
    return False
  avals = step.avals
  packed, (y,) = avals.layouts["cpu"], step.op.out_avals
  is_float = packed.tile_values.dtype == jnp.float32 and not packed.is_quantized
  return is_float and avals.x.dtype == y.dtype == jnp.float32 and avals.x.ndim == y.ndim == 4


def uses(step: Step, tiled: Collection[int]) -> bool:
  """Whether a step reads or writes a tensor in tiles."""
  return step.output in tiled or any(x in tiled for x in step.inputs)


def compute(step: Step, env: Mapping[int, Any], to_tiles: bool) -> Any:
  """What a convolution gives.

  Args:
    step: of the ones that read or write a tensor in tiles.
    env: the tensors, some of them `Tiled`.
    to_tiles: whether its result is to be in tiles.
  """
  read = lambda x: env[x] if isinstance(x, int) else x
  product = step.product
  assert product is not None
  packed, bias = jax.tree.map(read, (product.layouts["cpu"], product.condensed.bias))
  geometry = product.params["static"]
  where = geometry[0] if geometry else tiled_conv.POINTWISE
  residual = None if step.residual is None else read(step.residual)
  return tiled_conv.conv(read(product.x), packed, bias, step.activation, where, residual, to_tiles)
