"""Layers whose products are of 16 or 8 bits, and what that does to weights and inputs.

Weights of 8 bits are `int8` times a scale for each neuron, its largest weight over 127. Inputs of 8
bits are integers times one scale, of all of x where its range was calibrated, else of each row
(of each image, in a convolution) anew: 0..255 steps where no input is negative, else -127..127.
Products of such integers are summed exactly. Where a backend has no such products it multiplies the
same rounded numbers in float32, which differs by the rounding of float32 only.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_kernels.format import Condensed, check_structure

DTYPES = ("float32", "bfloat16", "int8", "int8_weights")
"""What products can be of: `int8_weights` multiplies 8-bit weights by inputs as they are."""


def convert(condensed: Condensed, dtype: str, input_range: Any = None) -> Condensed:
  """A layer with its weights in another precision.

  Args:
    condensed: a concrete layer, of any precision.
    dtype: a name in `DTYPES`. `"bfloat16"` and `"int8"` round the inputs, too, in every call.
    input_range: for `"int8"`, the least and the largest input to expect: inputs beyond are clipped.
      None: each row of x has its own range.

  Returns:
    The layer; its bias stays as it is.

  Raises:
    ValueError: if the name is unknown, a weight or the range is not finite, or a range is given for
      another precision.
  """
  if dtype not in DTYPES:
    raise ValueError(f"`dtype` must be one of {list(DTYPES)}, not {dtype!r}.")
  if input_range is not None and dtype != "int8":
    raise ValueError(
      f"`input_range` is for dtype='int8', which rounds the inputs to steps of it, not {dtype!r}."
    )
  if any(isinstance(x, jax.core.Tracer) for x in (condensed.values, condensed.scales)):
    raise ValueError("Layers are converted outside of jit: `dtype` needs concrete weights.")
  check_structure(condensed)
  if precision_of(condensed) != dtype:
    condensed = dequantize(condensed)
  values = np.asarray(condensed.values)
  if not np.isfinite(values.astype(np.float32)).all():
    raise ValueError(f"A layer with weights that are not finite cannot be converted to {dtype!r}.")
  if dtype in ("float32", "bfloat16"):
    cast = jnp.asarray(values).astype(dtype)
    return dataclasses.replace(condensed, values=cast, rounds_inputs=dtype == "bfloat16")
  if condensed.scales is None:
    largest = np.abs(values.astype(np.float32)).max(axis=1, initial=0)
    tiny = np.finfo(np.float32).tiny
    scales = np.where(largest < 127 * tiny, 1, largest / np.float32(127)).astype(np.float32)
    integers = np.rint(values.astype(np.float32) / scales[:, None]).astype(np.int8)
    condensed = dataclasses.replace(
      condensed, values=jnp.asarray(integers), scales=jnp.asarray(scales)
    )
  if input_range is not None:
    low, high = map(float, np.asarray(input_range, np.float32))
    if not (np.isfinite(low) and np.isfinite(high) and low <= high):
      raise ValueError(f"`input_range` must be two finite numbers in order, not {input_range!r}.")
    input_range = jnp.asarray([low, high], jnp.float32)
  return dataclasses.replace(condensed, rounds_inputs=dtype == "int8", input_range=input_range)


def precision_of(condensed: Condensed) -> str:
  """The name in `DTYPES` of a layer's precision."""
  if condensed.scales is not None:
    return "int8" if condensed.rounds_inputs else "int8_weights"
  return condensed.values.dtype.name


def dequantize(condensed: Condensed) -> Condensed:
  """The layer with weights of floating point, which are those that 8 bits stood for."""
  if condensed.scales is None:
    return dataclasses.replace(condensed, rounds_inputs=False)
  values = condensed.values.astype(jnp.float32) * condensed.scales[..., None]
  return dataclasses.replace(
    condensed, values=values, scales=None, input_range=None, rounds_inputs=False
  )


def round_inputs(x: Array, condensed: Condensed, num_axes: int = 1) -> Array:
  """Inputs as a layer rounds them, in their own type; their derivative is 1.

  Args:
    x: float32 or bfloat16.
    condensed: the layer; x is as it is unless the layer rounds its inputs.
    num_axes: of x, from the last one, that have one scale where no range was calibrated.
  """
  if not condensed.rounds_inputs:
    return x
  exact = x.astype(jnp.float32)
  if condensed.scales is None:
    rounded = exact.astype(jnp.bfloat16).astype(jnp.float32)
  else:
    rounded = round_to_steps(exact, condensed.input_range, num_axes)
  return x + lax.stop_gradient(rounded - exact).astype(x.dtype)


def round_to_steps(x: Array, input_range: Array | None, num_axes: int) -> Array:
  """Inputs of float32 rounded to 8 bits, and back; arguments as for `round_inputs`."""
  x = x.astype(jnp.float32)
  if input_range is None:
    axes = tuple(range(x.ndim - num_axes, x.ndim))
    low, high = (f(x, axis=axes, keepdims=True, initial=0) for f in (jnp.min, jnp.max))
  else:
    low, high = jnp.minimum(input_range[0], 0), jnp.maximum(input_range[1], 0)
  scale = jnp.where(low < 0, jnp.maximum(-low, high) / 127, high / 255)
  least, largest = jnp.where(low < 0, -127, 0), jnp.where(low < 0, 127, 255)
  steps = jnp.clip(jnp.round(x / jnp.where(scale > 0, scale, 1)), least, largest)
  return steps * scale
