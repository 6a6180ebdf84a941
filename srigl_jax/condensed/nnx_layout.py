"""How the kernels of Flax NNX layers are laid out, and which layers can be condensed."""

import math
from typing import Any, NamedTuple

import numpy as np
from flax import nnx
from jax import lax

from srigl_kernels.format import FLOATS

Layer = nnx.Linear | nnx.LinearGeneral | nnx.Conv | nnx.ConvTranspose
LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv, nnx.ConvTranspose)
CONVOLUTIONS = (nnx.Conv, nnx.ConvTranspose)


class KernelLayout(NamedTuple):
  """How a layer's kernel is laid out.

  Attributes:
    window: sizes of a convolution's window.
    inputs: sizes of the input axes, per group of a grouped convolution.
    neurons: sizes of the neuron axes.
    can_lose_inputs: whether inputs are the channels of what the layer reads.
    can_lose_neurons: whether neurons are the channels of what the layer outputs.
  """

  window: tuple[int, ...]
  inputs: tuple[int, ...]
  neurons: tuple[int, ...]
  can_lose_inputs: bool
  can_lose_neurons: bool

  @property
  def shape(self) -> tuple[int, ...]:
    """Of the kernel."""
    return (*self.window, *self.inputs, *self.neurons)

  @property
  def neuron_axes(self) -> tuple[int, ...]:
    """Of the kernel."""
    return tuple(range(len(self.shape) - len(self.neurons), len(self.shape)))

  @property
  def num_inputs(self) -> int:
    """Of a neuron, window positions included."""
    return math.prod(self.window) * math.prod(self.inputs)

  @property
  def num_neurons(self) -> int:
    """Of the layer."""
    return math.prod(self.neurons)

  def fits(self, shape: tuple[int, ...]) -> bool:
    """Whether a kernel's shape is this but for channels that folding has removed."""
    may_shrink = [False] * len(self.window) + [self.can_lose_inputs] * len(self.inputs)
    may_shrink += [self.can_lose_neurons] * len(self.neurons)
    return len(shape) == len(self.shape) and all(
      a == b or (m and 1 <= a < b) for m, a, b in zip(may_shrink, shape, self.shape, strict=True)
    )

  def resized(self, num_inputs: int, num_neurons: int) -> "KernelLayout":
    """With so many inputs and neurons."""
    inputs = self.inputs if math.prod(self.inputs) == num_inputs else (num_inputs,)
    neurons = self.neurons if math.prod(self.neurons) == num_neurons else (num_neurons,)
    return self._replace(inputs=inputs, neurons=neurons)


def kernel_layout(module: Layer) -> KernelLayout:
  """The layout that a layer's settings say its kernel has."""
  if isinstance(module, CONVOLUTIONS):
    groups = getattr(module, "feature_group_count", 1)
    inputs, neurons = (module.in_features // groups,), (module.out_features,)
    return KernelLayout(tuple(module.kernel_size), inputs, neurons, groups == 1, groups == 1)
  if isinstance(module, nnx.LinearGeneral):
    is_last, num_neuron_axes = tuple(module.axis) == (-1,), len(module.out_features)
    return KernelLayout((), module.in_features, module.out_features, is_last, num_neuron_axes == 1)
  return KernelLayout((), (module.in_features,), (module.out_features,), True, True)


def is_stack(module: Any) -> bool:
  """Whether a layer's kernel is a stack along its first axis, as `nnx.vmap` and `nnx.scan` make."""
  if type(module) not in LAYERS:
    return False
  kernel, layout = module.kernel.get_value(), kernel_layout(module)
  return kernel.ndim == len(layout.shape) + 1 and kernel.shape[1:] == layout.shape


def why_not_condensable(module: Any, *, stacks_too: bool = False) -> str | None:
  """Why a layer cannot be condensed or folded, or None if it can."""
  if type(module) not in LAYERS:
    return (
      "only nnx.Linear, nnx.LinearGeneral (attention projections), nnx.Conv and nnx.ConvTranspose "
      "themselves can be condensed, no subclass, which may compute something else"
    )
  is_transposed = isinstance(module, nnx.ConvTranspose)
  if is_transposed and (module.transpose_kernel or module.padding == "CIRCULAR"):
    return "its kernel is transposed, or it pads circularly"
  shape = kernel_layout(module).shape
  if module.kernel.get_value().shape != shape and not (stacks_too and is_stack(module)):
    found = module.kernel.get_value().shape
    return (
      f"its kernel should have the shape {shape}, but has {found}: that of a stack of layers"
      + (", which must lie along the first axis" if stacks_too else ", which is not handled here")
    )
  if getattr(module, "batch_axis", None) or getattr(module, "mask", None) is not None:
    return "its batch_axis or mask is set"
  product = "conv_general_dilated" if isinstance(module, CONVOLUTIONS) else "dot_general"
  own = getattr(module, product, None) not in (None, getattr(lax, product))
  if own or getattr(module, "dot_general_cls", None) is not None:
    return f"it computes with a {product} of its own"
  if module.promote_dtype is not nnx.nn.dtypes.promote_dtype:
    return "it has a promote_dtype of its own"
  if module.preferred_element_type is not None:
    return "its preferred_element_type is set"
  if module.dtype is not None and np.dtype(module.dtype) not in FLOATS:
    return f"it computes in {np.dtype(module.dtype).name}, not in float32 or bfloat16"
  return None
