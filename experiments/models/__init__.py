"""The models of the experiments, by name.

Each is an ordinary Flax NNX module, unaware of sparsity, with the call
`model(x, *, train=False, rngs=None)` from `[B, H, W, C]` float images to `[B, classes]` float32
logits. `B` is the batch, `H`, `W` and `C` are height, width and channels. With `train`, batch
normalisations normalise by the batch and update their running statistics; `rngs` are the source of
dropout masks, needed only where there is dropout.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from experiments.common.registry import check_arguments, choose
from experiments.models import layers
from experiments.models.condensed import (
  CondensedModel,
  init_condensed,
  patterns_of,
  state_of,
  untrainable,
  with_patterns,
)
from experiments.models.convnet import ConvNet
from experiments.models.functional import (
  Apply,
  FunctionalModel,
  flatten,
  functional,
  init_functional,
  with_arrays,
)
from experiments.models.mlp import MLP
from experiments.models.mobilenet_v3 import mobilenet_v3_large, mobilenet_v3_small
from experiments.models.resnet import resnet18, resnet50
from experiments.models.vit import vit_b16
from experiments.models.wide_resnet import WideResNet, wide_resnet22_2

__all__ = [
  "MODELS",
  "Apply",
  "CondensedModel",
  "FunctionalModel",
  "WideResNet",
  "build",
  "builder",
  "construct",
  "flatten",
  "functional",
  "init",
  "init_condensed",
  "init_functional",
  "layers",
  "patterns_of",
  "state_of",
  "untrainable",
  "with_arrays",
  "with_patterns",
]

MODELS: dict[str, Callable[..., nnx.Module]] = {
  "convnet": ConvNet,
  "mlp": MLP,
  "mobilenet_v3_large": mobilenet_v3_large,
  "mobilenet_v3_small": mobilenet_v3_small,
  "resnet18": resnet18,
  "resnet50": resnet50,
  "vit_b16": vit_b16,
  "wide_resnet22_2": wide_resnet22_2,
}

_DTYPES = ("float32", "bfloat16")


def build(
  name: str,
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  rngs: nnx.Rngs,
  dtype: DTypeLike = jnp.float32,
  **kwargs: Any,
) -> nnx.Module:
  """Builds a model by name.

  Args:
    name: a key of `MODELS`.
    num_classes: number of logits.
    image_shape: `(H, W, C)` of one input.
    rngs: source of the initial parameters.
    dtype: compute type, float32 or bfloat16; parameters and logits are always float32.
    **kwargs: further arguments of the model, such as `widths` of "convnet".

  Raises:
    ValueError: if the name is unknown, or an argument common to all models is not usable.
  """
  if num_classes < 1:
    raise ValueError(f"num_classes must be at least 1, got {num_classes}.")
  if len(image_shape) != 3 or min(image_shape) < 1:
    raise ValueError(
      f"image_shape must be three positive sizes (H, W, C), got {tuple(image_shape)}."
    )
  shapes: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape}
  return construct(MODELS, tuple(shapes), name, rngs=rngs, dtype=dtype, **shapes, **kwargs)


def construct(
  table: Mapping[str, Callable[..., nnx.Module]],
  shapes: Sequence[str],
  name: str,
  *,
  rngs: nnx.Rngs,
  dtype: DTypeLike = jnp.float32,
  **arguments: Any,
) -> nnx.Module:
  """Builds a model of a table by name.

  Args:
    table: models by name.
    shapes: the arguments that say how large inputs and outputs are; the others are the model's own.
    name: a key of the table.
    rngs: source of the initial parameters.
    dtype: compute type, float32 or bfloat16.
    **arguments: of the model.

  Raises:
    ValueError: if the name, the type or an argument is unknown.
  """
  dtype_name = dtype if isinstance(dtype, str) else jnp.dtype(dtype).name
  if dtype_name not in _DTYPES:
    raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, got {dtype_name}.")
  constructor = choose(table, name, "model name")
  own = [key for key in arguments if key not in shapes]
  what = f"config.model.kwargs of {name!r}"
  check_arguments(constructor, own, reserved=["rngs", "dtype", *shapes], what=what)
  return constructor(rngs=rngs, dtype=dtype, **arguments)


def init(
  name: str,
  *,
  num_classes: int,
  image_shape: tuple[int, int, int],
  key: jax.Array,
  dtype: DTypeLike = jnp.float32,
  batch_axis: str | None = None,
  abstract: bool = False,
  **kwargs: Any,
) -> FunctionalModel:
  """Builds a model by name under `jax.jit` and splits it into a function and its arrays.

  Arguments not listed are those of `build`.

  Args:
    name: a key of `MODELS`.
    num_classes: number of logits.
    image_shape: `(H, W, C)` of one input.
    key: `[]` random key of the initial parameters.
    dtype: compute type, float32 or bfloat16; parameters and logits are always float32.
    batch_axis: name of the axis of devices that share a batch, if batch statistics are to be those
      of all of them.
    abstract: whether to compute nothing: of the arrays there are shapes and types only.
    **kwargs: further arguments of the model.

  Returns:
    `(apply, params, model_state)`, see `functional`.

  Raises:
    ValueError: as `build`.
  """
  shared: dict[str, Any] = {"num_classes": num_classes, "image_shape": image_shape}
  build_fn = builder(name, dtype=dtype, batch_axis=batch_axis, **shared, **kwargs)
  return init_functional(build_fn, key, abstract=abstract)


def builder(
  name: str, *, batch_axis: str | None = None, **kwargs: Any
) -> Callable[[nnx.Rngs], nnx.Module]:
  """A function that builds a model from its source of parameters.

  Args:
    name: a key of `MODELS`.
    batch_axis: see `init`.
    **kwargs: the other arguments of `build`.
  """

  def build_fn(rngs):
    model = build(name, rngs=rngs, **kwargs)
    if batch_axis:
      layers.share_batch_statistics(model, batch_axis)
    return model

  return build_fn
