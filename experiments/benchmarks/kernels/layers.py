"""The layers that are measured: the paper's two, any shape, or those of an exported model."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

import srigl_jax as sx
from srigl_kernels.problems import LAYERS, Problem, make_problem


class Shape(NamedTuple):
  """Sizes of a layer at every sparsity.

  Attributes:
    in_features: `I`.
    out_features: `N`.
    num_active: `A`; the fan-in follows from it and the sparsity.
  """

  in_features: int
  out_features: int
  num_active: int


# The number of active neurons is kept at other sparsities than the paper's.
SHAPES = {name: Shape(*LAYERS[name][:3]) for name in ("vit_ffn_up", "vit_ffn_down")}
"""The paper's layers by name."""


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
  """A layer in the forms that methods are made from.

  Attributes:
    name: for tables.
    condensed: the layer, with a bias.
    kernel: `[I, N]` float32, its dense form.
    bias: `[N]` float32.
  """

  name: str
  condensed: sx.Condensed
  kernel: np.ndarray
  bias: np.ndarray

  @property
  def shape(self) -> Shape:
    """Its sizes."""
    num_inputs, num_neurons = self.kernel.shape
    return Shape(num_inputs, num_neurons, self.condensed.num_active)

  @property
  def sparsity(self) -> float:
    """Share of the dense layer's weights that are not there, to three digits."""
    return round(1 - self.condensed.values.size / self.kernel.size, 3)


def fan_in(shape: Shape, sparsity: float) -> int:
  """Weights of an active neuron, at least 1.

  Raises:
    ValueError: if so few active neurons cannot hold all weights.
  """
  num_weights = (1 - sparsity) * shape.in_features * shape.out_features
  count = max(1, round(num_weights / shape.num_active))
  if count > shape.in_features:
    raise ValueError(
      f"{shape.num_active} active neurons of {shape.in_features} inputs cannot hold the weights of "
      f"sparsity {sparsity:g}: give more active neurons, or a higher sparsity."
    )
  return count


def random_layer(name: str, shape: Shape, sparsity: float) -> Layer:
  """A layer of random weights and places."""
  problem = Problem(*shape, fan_in(shape, sparsity), batch=(1,))
  return as_layer(name, make_problem(problem)[1])


def as_layer(name: str, condensed: sx.Condensed) -> Layer:
  """A layer from its condensed form in float32; without a bias it gets one of zeros.

  Kernels of any rank are measured as the matrix product that they are; of a convolution that is
  the product with one patch per row of the batch.
  """
  num_inputs, num_neurons = condensed.in_features, condensed.out_features
  values = jnp.asarray(condensed.values, jnp.float32)
  bias = jnp.zeros(num_neurons) if condensed.bias is None else condensed.bias
  condensed = dataclasses.replace(condensed, values=values, bias=jnp.asarray(bias, jnp.float32))
  kernel = np.zeros((num_inputs, num_neurons), np.float32)
  kernel[condensed.indices, np.asarray(condensed.active)[:, None]] = values
  return Layer(name, condensed, kernel, np.asarray(condensed.bias))


def parse_shape(text: str) -> Shape:
  """`INxOUT` or `INxOUTxACTIVE` as a shape.

  Raises:
    ValueError: if it is neither.
  """
  match = re.fullmatch(r"(\d+)x(\d+)(?:x(\d+))?", text)
  sizes = [int(group) for group in match.groups() if group] if match else [0]
  shape = Shape(sizes[0], sizes[1], sizes[-1]) if match else None
  if shape is None or min(shape) < 1 or shape.num_active > shape.out_features:
    raise ValueError(
      f"--shape={text} must be inputs x outputs, or inputs x outputs x active neurons, such as "
      "768x3072 or 768x3072x1145, with at most as many active neurons as outputs."
    )
  return shape


def model_layers(path: str, names: Sequence[str]) -> list[Layer]:
  """Layers of a file written by `save_condensed`; all of them if no names are given.

  Raises:
    ValueError: if the file is not valid or has no layer of a name.
  """
  layers, _ = sx.load_condensed(path)
  if unknown := [name for name in names if name not in layers]:
    raise ValueError(f"{path} has no layer {unknown[0]!r}; it has {', '.join(layers)}.")
  stem = Path(path).stem
  return [as_layer(f"{stem}:{name}", layers[name]) for name in names or layers]
