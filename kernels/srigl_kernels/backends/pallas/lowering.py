"""How Pallas kernels reach a device: the one file that knows Triton, Mosaic and interpret mode.

Kernels for GPUs go through Triton: it is the route on which Pallas lowers loads of rows at
computed places, in every JAX from 0.10 to 0.12. JAX calls that route deprecated in favour of
Mosaic GPU, which cannot lower such loads; when it goes, this file and the bodies that use `load`
and `store` change, nothing else. Kernels for TPUs go through Mosaic.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu, triton

program_id = pl.program_id


def gpu_call(
  kernel: Callable[..., None],
  out: Any,
  *,
  grid: Sequence[int],
  num_warps: int,
  interpret: bool,
  name: str,
  num_stages: int = 1,
) -> Callable[..., Any]:
  """A function that runs a kernel of references to whole arrays on a GPU.

  Args:
    kernel: `(*inputs, *outputs) -> None`, references.
    out: shapes and types of the results.
    grid: programs along each axis; the first one varies fastest over a card.
    num_warps: of 32 threads each, a power of two.
    interpret: whether to interpret it instead.
    name: for profiles.
    num_stages: steps of a loop with a matrix product whose loads are in flight at once.
  """
  return pl.pallas_call(
    kernel,
    out,
    grid=tuple(grid),
    interpret=interpret,
    name=name,
    compiler_params=triton.CompilerParams(num_warps=num_warps, num_stages=num_stages),
  )


def load(ref: Any, index: Any, mask: Array | None = None) -> Array:
  """`ref[index]`, zero where the mask is False; nothing is read there."""
  if mask is None:
    return triton.load(ref.at[index])
  return triton.load(ref.at[index], mask=mask, other=0)


def store(ref: Any, index: Any, value: Array, mask: Array | None = None) -> None:
  """`ref[index] = value` where the mask is True."""
  triton.store(ref.at[index], value.astype(ref.dtype), mask=mask)


def multiply_add(a: Array, b: Array, c: Array, interpret: bool) -> Array:
  """`a * b + c` of float32 arrays of one shape, rounded once: Triton forms no such instruction."""
  if interpret:
    return a * b + c
  return triton.elementwise_inline_asm(
    "fma.rn.f32 $0, $1, $2, $0;",
    args=[a, b, c],
    constraints="=f,f,f,0",
    pack=1,
    result_shape_dtypes=[jax.ShapeDtypeStruct(c.shape, c.dtype)],
  )[0]


def barrier(interpret: bool) -> None:
  """Waits for all threads of the program, and for what they stored; none in interpret mode."""
  if not interpret:
    triton.debug_barrier()


def tpu_call(
  kernel: Callable[..., None],
  out: Any,
  *,
  grid: Sequence[int],
  in_blocks: Sequence[tuple[tuple[int, ...], Callable[..., tuple[int, ...]], bool]],
  out_block: tuple[tuple[int, ...], Callable[..., tuple[int, ...]]],
  interpret: bool,
  name: str,
) -> Callable[..., Any]:
  """A function that runs a kernel of references to blocks on a TPU.

  Args:
    kernel: `(*inputs, output) -> None`, references.
    out: shape and type of the result.
    grid: programs along each axis, the last one fastest; they run one after the other.
    in_blocks: for each input the shape of a block, the block that a program gets, and whether it
      holds scalars that the program computes addresses with.
    out_block: the same for the result.
    interpret: whether to interpret it instead.
    name: for profiles.
  """
  spaces = {True: tpu.SMEM, False: tpu.VMEM}
  return pl.pallas_call(
    kernel,
    out,
    grid=tuple(grid),
    in_specs=[pl.BlockSpec(s, index, memory_space=spaces[m]) for s, index, m in in_blocks],
    out_specs=pl.BlockSpec(*out_block, memory_space=tpu.VMEM),
    interpret=interpret,
    name=name,
  )
