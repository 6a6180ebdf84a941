"""Narrow dense networks: what a sparse network has to beat at the same number of weights."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flax import nnx

import srigl_jax as sx
from experiments.common.registry import choose
from experiments.models import MODELS, build

_WIDTHS = {  # model: argument that widens it, neurons for each unit of it
  "convnet": ("widths", 1),
  "mlp": ("hidden", 1),
  "resnet18": ("width", 1),
  "wide_resnet22_2": ("widen", 16),
}


def small_dense_kwargs(
  name: str,
  density: float,
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  **kwargs: Any,
) -> dict[str, Any]:
  """Arguments of the widest network of a kind that has no more weights than a sparse one.

  All layers are narrowed by one factor, each to a whole number of neurons and at least one.

  Args:
    name: a key of `MODELS`.
    density: fraction of the weights of all layers that the sparse network keeps, in (0, 1].
    num_classes: number of logits.
    image_shape: `(H, W, C)` of one input.
    **kwargs: further arguments of the model, its width among them or left at its default.

  Returns:
    `kwargs` with the width that `build` is to have.

  Raises:
    ValueError: if the density is out of range, or even one neuron a layer is too much.
  """
  argument, unit = choose(_WIDTHS, name, "model name")
  if not 0 < density <= 1:
    raise ValueError(f"density is {density}; it must lie in (0, 1].")
  wide = kwargs.get(argument, _default(MODELS[name], argument))
  widest = round(unit * (max(wide) if isinstance(wide, list | tuple) else wide))

  def with_width(width: int) -> dict[str, Any]:
    """The arguments in which the widest layers have been narrowed to `width`."""
    scale = lambda x: max(1, round(unit * x * width / widest)) / unit
    scaled = tuple(map(scale, wide)) if isinstance(wide, list | tuple) else scale(wide)
    if unit == 1:
      scaled = tuple(map(int, scaled)) if isinstance(scaled, tuple) else int(scaled)
    return kwargs | {argument: scaled}

  def num_weights(width: int) -> int:
    make = lambda: build(
      name,
      num_classes=num_classes,
      image_shape=image_shape,
      rngs=nnx.Rngs(0),
      **with_width(width),
    )
    return _num_weights(make)

  allowed = density * num_weights(widest)
  low, high = 0, widest + 1  # the first is narrow enough, the second is not
  while high - low > 1:
    middle = (low + high) // 2
    if num_weights(middle) <= allowed:
      low = middle
    else:
      high = middle
  if not low:
    raise ValueError(
      f"Even with one neuron a layer, {name} has more weights than a density of {density:.6g} "
      f"leaves ({allowed:.0f}): raise the density or choose a wider model."
    )
  return with_width(low)


def _default(constructor: Callable[..., Any], argument: str) -> Any:
  if isinstance(constructor, functools.partial):
    return constructor.keywords.get(argument, _default(constructor.func, argument))
  # The class itself shows its metaclass's signature.
  return inspect.signature(constructor.__init__).parameters[argument].default


def _num_weights(make: Callable[[], nnx.Module]) -> int:
  """Weights of a model's layers, as sparsity counts them; no array is made."""
  params = nnx.state(nnx.eval_shape(make), nnx.Param)
  return sum(layer.size for layer in sx.allocate(params, density=1.0).layers.values())
