"""Images to be freed from noise, which makes a sampler of them: denoising diffusion."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments import models
from experiments.data.dataset import Dataset
from experiments.data.noising import load_images, noising_pipeline
from experiments.models.denoising_mlp import DenoisingMLP
from experiments.tasks.task import Task
from experiments.workdir.scores import Score

DENOISING_MODELS = {"denoising_mlp": DenoisingMLP}
"""Networks by name: from `{"image": [B, H, W, C], "time": [B]}` to the noise in the images."""
_SHAPES = ("image_height", "image_width", "channels")


def denoising_diffusion(*, label_smoothing: float = 0.0, test_draws: int = 10) -> Task:
  """The task; its score is the mean squared error of the noise in test images, whose variance is 1.

  Times are continuous, all equally likely, and all count alike (the source's simple loss).

  Args:
    label_smoothing: must be 0.
    test_draws: times at which each test image is looked at.

  Raises:
    ValueError: if an argument is out of range.

  Source: Ho et al., Denoising Diffusion Probabilistic Models (arXiv:2006.11239), equation 14.
  """
  if label_smoothing:
    raise ValueError(
      f"config.train.label_smoothing is {label_smoothing}, but denoising_diffusion has no labels: "
      "set it to 0."
    )
  if test_draws < 1:
    raise ValueError(f"config.task.kwargs.test_draws is {test_draws}; it must be 1 or more.")
  error = lambda noise, targets: ((noise - targets) ** 2).mean((1, 2, 3))

  def test_sums(noise, targets, valid):
    return {"loss": jnp.where(valid, error(noise, targets), 0).sum()}

  return Task(
    load=load_images,
    shapes=_shapes,
    build=functools.partial(models.construct, DENOISING_MODELS, _SHAPES),
    inputs=_inputs,
    pipeline=functools.partial(noising_pipeline, test_draws=test_draws),
    loss=lambda noise, targets: (error(noise, targets).mean(), {}),
    train_metrics=(),
    test_sums=test_sums,
    score=Score("loss", "error of the noise", lower_is_better=True),
    unit="images",
  )


def _shapes(data: Dataset) -> dict[str, Any]:
  return dict(zip(_SHAPES, data.image_shape, strict=True))


def _inputs(shapes: Any, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  image = (size, *(shapes[name] for name in _SHAPES))
  struct = lambda shape: jax.ShapeDtypeStruct(shape, jnp.float32)
  return {"image": struct(image), "time": struct((size,))}
