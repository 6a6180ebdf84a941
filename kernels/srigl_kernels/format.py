"""The condensed form of a layer: the weights that are there, and where they are.

Shape letters of this package: `B` batch, `I` inputs of a neuron when dense, `N` neurons (outputs)
of the layer, `A` active neurons, `K` fan-in, the number of weights of each active neuron.
"""

import dataclasses
import math
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

FLOATS = (np.dtype(np.float32), np.dtype(jnp.bfloat16))
"""Types that values, bias and inputs may have."""

_MAX_FEATURES = 2**31 - 1  # active neurons and wide indices are int32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Condensed:
  """A layer with constant fan-in; `make_condensed` makes one from arrays and validates it.

  A pytree whose leaves are the arrays. The kernel's inputs and neurons are numbered row-major
  over their axes: a convolution's input `(y, x, channel)` is `(y * width + x) * channels +
  channel`.

  Attributes:
    values: `[A, K]` float32 or bfloat16, the weights; or int8, the weights over their scales.
    indices: `[A, K]` of type `index_dtype(in_features)`, the input that each weight multiplies;
      ascending in each row, without repetition.
    active: `[A]` int32, the active neurons, ascending; the output of any other is its bias.
    bias: `[N]` float32 or bfloat16, or None.
    kernel_shape: shape of the dense kernel, `(in, out)` for a Dense layer.
    neuron_axes: which axes of the kernel index the neurons; the others are inputs.
    scales: `[A]` float32, of int8 weights; else None. See `precision`.
    input_range: `[2]` float32, within which inputs are rounded to 8 bits; None for each row's own.
    rounds_inputs: whether inputs are rounded as the weights are, to 8 bits or to bfloat16.
  """

  values: Array
  indices: Array
  active: Array
  bias: Array | None
  kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  neuron_axes: tuple[int, ...] = dataclasses.field(metadata={"static": True})
  scales: Array | None = None
  input_range: Array | None = None
  rounds_inputs: bool = dataclasses.field(default=False, metadata={"static": True})

  @property
  def is_reduced(self) -> bool:
    """Whether products are of fewer bits than the arrays that come and go: see `precision`."""
    return self.rounds_inputs or self.scales is not None

  @property
  def in_features(self) -> int:
    """Number of inputs `I` of a neuron when dense."""
    return math.prod(n for a, n in enumerate(self.kernel_shape) if a not in self.neuron_axes)

  @property
  def out_features(self) -> int:
    """Number of neurons `N`, ablated ones included."""
    return math.prod(self.kernel_shape[a] for a in self.neuron_axes)

  @property
  def num_active(self) -> int:
    """Number of active neurons `A`."""
    return self.values.shape[-2]

  @property
  def fan_in(self) -> int:
    """Number of weights `K` of each active neuron."""
    return self.values.shape[-1]


def index_dtype(in_features: int) -> np.dtype:
  """The type of indices into so many inputs: uint16 if they fit, else int32."""
  return np.dtype(np.uint16 if in_features <= 2**16 else np.int32)


def make_condensed(
  values: Any,
  indices: Any,
  active: Any,
  bias: Any = None,
  *,
  kernel_shape: Sequence[int],
  neuron_axes: Sequence[int] = (-1,),
  scales: Any = None,
  input_range: Any = None,
  rounds_inputs: bool = False,
) -> Condensed:
  """A validated `Condensed` of jax arrays.

  Args:
    values: `[A, K]` float32 or bfloat16, or int8 with `scales`; `A` may be 0.
    indices: `[A, K]` of any integer type.
    active: `[A]` of any integer type.
    bias: `[N]` float32 or bfloat16, or None.
    kernel_shape: shape of the dense kernel, `(in, out)` for a Dense layer.
    neuron_axes: its neuron axes; negative counts from the end.
    scales: `[A]` float32, positive, or None.
    input_range: `[2]` float32, or None; only of a layer of int8 that rounds its inputs.
    rounds_inputs: whether inputs are rounded as the weights are; not of float32.

  Raises:
    ValueError: if the arrays are not what `Condensed` says, or are traced.
  """
  arrays = (values, indices, active, bias, scales, input_range)
  if any(isinstance(x, jax.core.Tracer) for x in arrays):
    raise ValueError(
      "A Condensed is made of concrete arrays, outside of jit and other transformations, because "
      "every index is checked. Make it before, and pass it to the function as an argument."
    )
  shape = tuple(operator.index(n) for n in kernel_shape)
  ndim = len(shape)
  axes = tuple(sorted(operator.index(a) + ndim * (a < 0) for a in neuron_axes))
  values, indices, active = (np.asarray(x) for x in (values, indices, active))
  bias, scales, input_range = (
    None if x is None else np.asarray(x) for x in (bias, scales, input_range)
  )
  host = Condensed(
    values, indices, active, bias, shape, axes, scales, input_range, bool(rounds_inputs)
  )
  _check_axes(host)
  for name in ("indices", "active"):
    if not np.issubdtype(getattr(host, name).dtype, np.integer):
      raise ValueError(f"`{name}` must be integers, not {getattr(host, name).dtype}.")
  _check_shapes(host)
  _check_entries(host)  # before the casts, which would wrap
  host = dataclasses.replace(
    host,
    indices=host.indices.astype(index_dtype(host.in_features)),
    active=host.active.astype(np.int32),
  )
  check_condensed(host)
  return jax.tree.map(jnp.asarray, host)


def check_condensed(condensed: Condensed) -> None:
  """Validates a concrete `Condensed`, every index of it.

  Raises:
    ValueError: naming the field, what it holds and what it must hold.
  """
  check_structure(condensed)
  _check_entries(condensed)


def check_structure(condensed: Condensed) -> None:
  """Validates shapes and types only, which are also known of traced arrays.

  Raises:
    ValueError: as `check_condensed`.
  """
  if not isinstance(condensed, Condensed):
    raise ValueError(
      f"A condensed layer is needed, from srigl_jax.condense(kernel, mask, bias), not a "
      f"{type(condensed).__name__}."
    )
  _check_axes(condensed)
  _check_shapes(condensed)
  is_int8 = condensed.scales is not None
  expected = {
    "values": (np.dtype(np.int8),) if is_int8 else FLOATS,
    "indices": (index_dtype(condensed.in_features),),
    "active": (np.dtype(np.int32),),
    "bias": FLOATS,
    "scales": FLOATS[:1],
    "input_range": FLOATS[:1],
  }
  for name, dtypes in expected.items():
    array = getattr(condensed, name)
    if array is not None and array.dtype not in dtypes:
      names = " or ".join(dtype.name for dtype in dtypes)
      raise ValueError(f"`{name}` must be {names}, not {np.dtype(array.dtype).name}.")
  if condensed.rounds_inputs and np.dtype(condensed.values.dtype) == FLOATS[0]:
    raise ValueError("`rounds_inputs` is for values of bfloat16 or int8, not float32.")
  if condensed.input_range is not None and not (is_int8 and condensed.rounds_inputs):
    raise ValueError("`input_range` is for values of int8 in a layer that rounds its inputs.")


def _check_axes(condensed: Condensed) -> None:
  shape, axes = condensed.kernel_shape, condensed.neuron_axes
  if len(shape) < 2 or any(n < 1 for n in shape):
    raise ValueError(f"`kernel_shape` must be two or more sizes of at least 1, not {shape}.")
  if list(axes) != sorted({*axes}) or not axes or axes[0] < 0 or axes[-1] >= len(shape):
    raise ValueError(f"`neuron_axes` {axes} must be distinct axes of a kernel of shape {shape}.")
  if len(axes) == len(shape):
    raise ValueError(f"`neuron_axes` {axes} leave a kernel of shape {shape} no input axis.")
  if max(condensed.in_features, condensed.out_features) > _MAX_FEATURES:
    raise ValueError(f"A kernel of shape {shape} has more inputs or neurons than 2**31 - 1.")


def _check_shapes(condensed: Condensed) -> None:
  shapes = {
    name: np.shape(getattr(condensed, name)) for name in ("values", "indices", "active", "bias")
  }
  num_inputs, num_neurons = condensed.in_features, condensed.out_features
  if len(shapes["values"]) != 2 or shapes["indices"] != shapes["values"]:
    raise ValueError(
      "`values` and `indices` must have one shape (active neurons, fan-in), not "
      f"{shapes['values']} and {shapes['indices']}."
    )
  num_active, fan_in = shapes["values"]
  if num_active > num_neurons:
    raise ValueError(f"`values` has {num_active} active neurons, but the layer has {num_neurons}.")
  if not (num_active == 0 or fan_in >= 1) or fan_in > num_inputs:
    raise ValueError(f"`values` has fan-in {fan_in}; it must lie in 1..{num_inputs}.")
  if shapes["active"] != (num_active,):
    raise ValueError(
      f"`active` must name the {num_active} rows of `values`, but has shape {shapes['active']}."
    )
  if condensed.bias is not None and shapes["bias"] != (num_neurons,):
    raise ValueError(f"`bias` must have shape ({num_neurons},), not {shapes['bias']}.")
  for name, shape in (("scales", (num_active,)), ("input_range", (2,))):
    array = getattr(condensed, name)
    if array is not None and np.shape(array) != shape:
      raise ValueError(f"`{name}` must have shape {shape}, not {np.shape(array)}.")


def _check_entries(condensed: Condensed) -> None:
  _check_ascending("active", condensed.active, condensed.out_features)
  _check_ascending("indices", condensed.indices, condensed.in_features)
  scales, bounds = condensed.scales, condensed.input_range
  if scales is not None and not (np.isfinite(scales) & (np.asarray(scales) > 0)).all():
    raise ValueError("`scales` must be finite and positive.")
  if bounds is not None and not (np.isfinite(bounds).all() and bounds[0] <= bounds[1]):
    raise ValueError("`input_range` must be two finite numbers in order.")


def _check_ascending(name: str, array: Any, end: int) -> None:
  """Checks that rows ascend without repetition within 0..end-1: their ends tell the range."""
  array = np.asarray(array)
  if not array.size:
    return
  low, high = int(array[..., 0].min()), int(array[..., -1].max())
  if not np.all(array[..., 1:] > array[..., :-1]):
    raise ValueError(f"`{name}` must ascend without repetition (in each row).")
  if low < 0 or high >= end:
    raise ValueError(f"`{name}` must lie in 0..{end - 1}, but range over {low}..{high}.")
