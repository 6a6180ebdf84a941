"""From a masked kernel to the condensed form of its layer, and back, exactly.

On the host, because the sizes of the condensed form depend on what the mask holds.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_jax.layers import Axes, Layer, make_layer
from srigl_jax.stacks import host_stack, one_layer
from srigl_kernels.format import FLOATS, Condensed, check_structure, make_condensed
from srigl_kernels.precision import dequantize


def condense(kernel: Any, mask: Any, bias: Any = None, *, axes: Axes | None = None) -> Any:
  """The condensed form of a layer with constant fan-in, or of each layer of a stack.

  Args:
    kernel: float32 or bfloat16, in Flax's layout; exactly 0 off the mask.
    mask: bool of the kernel's shape, True where a weight is active.
    bias: of the shape of the kernel's neuron axes, `(out,)` for Dense and Conv, or None; of a
      stack with the stack's axes before, `(layers, out)`.
    axes: which axes of the kernel are neurons, and which a stack. By default the last one is the
      neurons, or where only these have one fan-in (in eight neurons or more, for fewer have it by
      chance) the first one, as Equinox and PyTorch have it, or all but the first (heads).

  Returns:
    A `Condensed` with its weights in order of the inputs. A weight of 0 on the mask is kept, so
    that `expand` gives back the mask. Of a stack, a list of them: of the layers in order, the last
    of several stack axes fastest.

  Raises:
    ValueError: if the active neurons' fan-ins differ, a weight off the mask is not 0, or shapes
      or types do not fit.
  """
  if any(isinstance(x, jax.core.Tracer) for x in (kernel, mask, bias)):
    raise ValueError("condense needs concrete arrays: call it outside of jit.")
  kernel, mask = np.asarray(kernel), np.asarray(mask)
  if kernel.dtype not in FLOATS:
    raise ValueError(f"`kernel` must be float32 or bfloat16, not {kernel.dtype.name}.")
  if mask.dtype != bool or mask.shape != kernel.shape:
    raise ValueError(
      f"`mask` must be bool of the kernel's shape {kernel.shape}, not {mask.dtype.name} of "
      f"{mask.shape}."
    )
  if kernel.ndim < 2:
    raise ValueError(f"`kernel` must have two axes or more, but has shape {kernel.shape}.")
  layer = make_layer("kernel", kernel.shape, lambda *_: axes or _axes_of(mask))
  biases: Any = [None] * layer.num_stacked
  if bias is not None:
    bias = np.asarray(bias)
    expected = layer.stack_shape + tuple(kernel.shape[a] for a in layer.axes.neurons)
    if bias.shape != expected:
      raise ValueError(f"`bias` must have the neurons' shape {expected}, not {bias.shape}.")
    biases = bias.reshape(layer.num_stacked, -1)
  if not layer.axes.stack:
    return _condense(layer, kernel, mask, biases[0])
  condensed = []
  stacked = zip(host_stack(kernel, layer), host_stack(mask, layer), biases, strict=True)
  for i, (one_kernel, one_mask, one_bias) in enumerate(stacked):
    try:
      condensed.append(_condense(one_layer(layer), one_kernel, one_mask, one_bias))
    except ValueError as error:
      raise ValueError(f"Layer {i} of the stack cannot be condensed: {error}") from error
  return condensed


def _condense(layer: Layer, kernel: np.ndarray, mask: np.ndarray, bias: Any) -> Condensed:
  order = layer.axes.neurons + layer.input_axes
  weights, on = (x.transpose(order).reshape(layer.num_neurons, -1) for x in (kernel, mask))
  stray = int(np.count_nonzero(weights[~on]))
  if stray:
    raise ValueError(
      f"`kernel` has {stray} weights off the mask that are not 0, which the condensed form would "
      "drop: apply_masks first, or give the mask that belongs to the kernel."
    )
  fan_ins = on.sum(axis=1)
  active = np.flatnonzero(fan_ins)
  counts = np.unique(fan_ins[active])
  if len(counts) > 1:
    shown = ", ".join(str(count) for count in counts[:8]) + (", ..." if len(counts) > 8 else "")
    raise ValueError(
      f"The active neurons must have one fan-in, but `mask` has {len(counts)}: {shown}. The "
      "condensed form is for masks of constant fan-in, as srigl and static_sparse keep; if this is "
      "one, its neurons lie along other axes: give `axes` as for training."
    )
  indices = np.nonzero(on[active])[1].reshape(len(active), -1 if len(active) else 0)
  return make_condensed(
    np.take_along_axis(weights[active], indices, axis=1),
    indices,
    active,
    bias,
    kernel_shape=layer.shape,
    neuron_axes=layer.axes.neurons,
  )


def axes_advice(mask: Any, neuron_axes: tuple[int, ...]) -> str:
  """What to do if a mask has a constant fan-in, but along other axes than a layer's neurons.

  Args:
    mask: bool, of any shape.
    neuron_axes: the axes that index the layer's neurons.

  Returns:
    A sentence after a space; empty if this is not so.
  """
  mask = np.asarray(mask)
  for taken in ((mask.ndim - 1,), tuple(range(1, mask.ndim))):
    inputs = tuple(a for a in range(mask.ndim) if a not in taken)
    if taken != neuron_axes and inputs and len({*mask.sum(inputs).ravel().tolist()} - {0}) == 1:
      return (
        f" It has a constant fan-in if axes {taken} are the neurons, as training took them, but "
        f"those of this layer are {neuron_axes}: train with `axes=` a function that gives "
        f"Axes(neurons={neuron_axes}) for this kernel."
      )
  return ""


def _axes_of(mask: np.ndarray) -> Axes:
  """The layout in which a mask has one fan-in; Flax's if it has in none, or in several."""

  def counts(axes: Axes) -> np.ndarray:
    counts = mask.sum(axis=tuple(a for a in range(mask.ndim) if a not in axes.neurons))
    return counts[counts > 0]

  last, first, heads = (Axes((mask.ndim - 1,)), Axes((0,)), Axes(tuple(range(1, mask.ndim))))
  if len(np.unique(counts(last))) > 1:
    # In three axes what looks like the first may be a stack of layers, alike in size.
    for axes in (heads,) if mask.ndim == 3 else (first, heads):
      if len(counts(axes)) >= 8 and len(np.unique(counts(axes))) == 1:
        return axes
  return last


def expand(condensed: Condensed) -> tuple[Array, Array, Array | None]:
  """The dense kernel, mask and bias that `condense` was given.

  Args:
    condensed: a concrete layer.

  Returns:
    `(kernel, mask, bias)`; the bias has the shape of the kernel's neuron axes, or is None.
    Weights off the mask are +0.
  """
  check_structure(condensed)
  condensed = dequantize(condensed)
  shape, axes = condensed.kernel_shape, condensed.neuron_axes
  layer = make_layer("kernel", shape, lambda *_: Axes(axes))
  weights = np.zeros((layer.num_neurons, layer.dense_fan_in), condensed.values.dtype)
  on = np.zeros(weights.shape, bool)
  where = np.asarray(condensed.active)[:, None], np.asarray(condensed.indices)
  weights[where] = condensed.values
  on[where] = True
  order = layer.axes.neurons + layer.input_axes
  split = [shape[a] for a in order]
  kernel, mask = (x.reshape(split).transpose(np.argsort(order)) for x in (weights, on))
  bias = condensed.bias
  if bias is not None:
    bias = jnp.asarray(np.reshape(bias, [shape[a] for a in axes]))
  return jnp.asarray(kernel), jnp.asarray(mask), bias
