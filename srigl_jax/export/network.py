"""A network to be exported, as a list of plain steps over one example; numpy only.

Every step maps tensors of the features of one example, row-major, to one such tensor. A linear
layer is a convolution of window 1 at one position, a batch norm or a factor a layer of fan-in 1, so
that there are four kinds of steps; activations belong to the step before them.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
  """How a window goes over an image.

  Attributes:
    size: `(height, width)`.
    strides: of these two axes.
    dilation: distance of neighbours in the window.
    pads: `((top, bottom), (left, right))`.
  """

  size: tuple[int, int] = (1, 1)
  strides: tuple[int, int] = (1, 1)
  dilation: tuple[int, int] = (1, 1)
  pads: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))

  def positions(self, height: int, width: int) -> tuple[int, int]:
    """The size of the output for an image of this size."""
    sizes = []
    for n, k, s, d, p in zip((height, width), *self[:3], self.pads, strict=True):
      sizes.append((n + sum(p) - (k - 1) * d - 1) // s + 1)
    return sizes[0], sizes[1]

  @property
  def is_padded(self) -> bool:
    """Whether it reads beyond the image."""
    return any(n != 0 for pads in self.pads for n in pads)


class Activation(NamedTuple):
  """An element-wise function: its name among `activations.ACTIVATIONS`, and its parameter."""

  name: str
  alpha: float = 0.0


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
  """A linear layer or convolution.

  Attributes:
    name: its path in the model.
    source: number of the tensor that it reads.
    shape: of its output.
    window: of a convolution; of a linear layer the default.
    values: `[A, K]` float32.
    indices: `[A, K]` int64, ascending in each row: `(y * width + x) * channels + channel` in the
      window.
    active: `[A]` int64, the neurons of these rows, ascending.
    bias: `[N]` float32; all that the other neurons output.
    num_inputs: of a neuron when dense, window and channels.
    activation: applied to the output, or None.
  """

  name: str
  source: int
  shape: tuple[int, ...]
  window: Window
  values: np.ndarray
  indices: np.ndarray
  active: np.ndarray
  bias: np.ndarray
  num_inputs: int
  activation: Activation | None = None

  @property
  def num_neurons(self) -> int:
    """Of its output at one position."""
    return len(self.bias)

  @property
  def dense(self) -> np.ndarray:
    """`[I, N]` float32, the weights that are missing as zeros."""
    kernel = np.zeros((self.num_inputs, self.num_neurons), np.float32)
    kernel[self.indices, self.active[:, None]] = self.values
    return kernel


@dataclasses.dataclass(frozen=True, eq=False)
class Pool:
  """The maximum or the sum over a window, channel by channel, times a factor.

  Attributes:
    source, shape, window, activation: as of `Layer`.
    kind: "max" or "sum".
    factor: 1 for "max".
  """

  source: int
  shape: tuple[int, ...]
  window: Window
  kind: str
  factor: float = 1.0
  activation: Activation | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Add:
  """The sum of two tensors of one shape.

  Attributes:
    source, other: their numbers.
    shape, activation: as of `Layer`.
  """

  source: int
  other: int
  shape: tuple[int, ...]
  activation: Activation | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class Reshape:
  """The same numbers in the same order under another shape."""

  source: int
  shape: tuple[int, ...]
  activation: None = None


Step = Layer | Pool | Add | Reshape


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
  """A network: tensor 0 is its input, tensor `i + 1` what step `i` outputs, the last its output.

  Attributes:
    input_shape: of one example.
    steps: in order of execution.
  """

  input_shape: tuple[int, ...]
  steps: tuple[Step, ...]

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    """Of all tensors."""
    return [self.input_shape, *(step.shape for step in self.steps)]

  @property
  def output_shape(self) -> tuple[int, ...]:
    """Of one example."""
    return self.shapes[-1]

  def readers(self, tensor: int) -> list[Step]:
    """The steps that read a tensor, one twice if it reads it twice."""
    return [step for step in self.steps for source in sources(step) if source == tensor]


def sources(step: Step) -> tuple[int, ...]:
  """Numbers of the tensors that a step reads."""
  return (step.source, step.other) if isinstance(step, Add) else (step.source,)


def as_image(shape: tuple[int, ...]) -> tuple[int, int, int]:
  """A shape as `(height, width, channels)`; of more axes all but the last become the width."""
  if len(shape) == 3:
    return shape[0], shape[1], shape[2]
  return 1, math.prod(shape[:-1]), shape[-1]


def patches(x: np.ndarray, window: Window, fill: float = 0) -> np.ndarray:
  """What each position of a window sees.

  Args:
    x: `[B, H, W, C]`.
    window: the window.
    fill: stands beyond the image.

  Returns:
    `[B, H', W', window height * window width, C]`.
  """
  height, width = window.positions(*x.shape[1:3])
  x = np.pad(x, ((0, 0), *window.pads, (0, 0)), constant_values=fill)
  (down, right), (far_y, far_x) = window.strides, window.dilation
  views = []
  for dy in range(window.size[0]):
    for dx in range(window.size[1]):
      y0, x0 = dy * far_y, dx * far_x
      rows = slice(y0, y0 + (height - 1) * down + 1, down)
      columns = slice(x0, x0 + (width - 1) * right + 1, right)
      views.append(x[:, rows, columns])
  return np.stack(views, axis=3)
