"""How the kernels of Flax NNX layers are laid out."""

import math
from typing import NamedTuple

from flax import nnx

Layer = nnx.Linear | nnx.LinearGeneral | nnx.Conv
LAYERS = (nnx.Linear, nnx.LinearGeneral, nnx.Conv)


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
  if isinstance(module, nnx.Conv):
    groups = module.feature_group_count
    inputs, neurons = (module.in_features // groups,), (module.out_features,)
    return KernelLayout(tuple(module.kernel_size), inputs, neurons, groups == 1, groups == 1)
  if isinstance(module, nnx.LinearGeneral):
    is_last, num_neuron_axes = tuple(module.axis) == (-1,), len(module.out_features)
    return KernelLayout((), module.in_features, module.out_features, is_last, num_neuron_axes == 1)
  return KernelLayout((), (module.in_features,), (module.out_features,), True, True)
