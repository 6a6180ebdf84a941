"""Images under Gaussian noise, as denoising diffusion is trained: the schedule and the batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import data
from experiments.data.dataset import Dataset
from experiments.data.input_pipeline import InputPipeline, memory_pipeline

_OFFSET = 0.008  # of the source: little noise near time 0, but not none
_LEAST_SIGNAL = 1e-4  # of the variance; the source bounds its β for the same reason
_TEST_SEED = 0  # every run is tested under the same noise, whatever its own seed
_LOOKED_AT = 64  # images whose range is checked


def noise_levels(time: Array) -> tuple[Array, Array]:
  """Amplitudes of the image and of the noise in an image at a time, by the cosine schedule.

  Args:
    time: float32 of any shape, from 0 (the image) to 1 (next to nothing but noise). The steps of a
      chain of T are the multiples of 1 / T.

  Returns:
    Two float32 arrays of that shape, whose squares add up to 1.

  Source: Nichol & Dhariwal, Improved Denoising Diffusion Probabilistic Models (arXiv:2102.09672),
  equation 17.
  """
  level = lambda t: jnp.cos((t + _OFFSET) / (1 + _OFFSET) * (jnp.pi / 2)) ** 2
  signal = jnp.clip(level(time) / level(jnp.zeros(())), _LEAST_SIGNAL, 1.0)
  return jnp.sqrt(signal), jnp.sqrt(1 - signal)


def load_images(
  name: str, *, data_dir: str | None = None, validation_fraction: float = 0.0, **kwargs: Any
) -> Dataset:
  """Loads images for denoising: those of `experiments.data.load` that are held in memory.

  Args:
    name: a key of `experiments.data.DATASETS`.
    data_dir: see `experiments.data.load`.
    validation_fraction: see `experiments.data.load`.
    **kwargs: further arguments of the loader.

  Raises:
    ValueError: as `experiments.data.load`, or if the images are streamed, or leave [0, 1].
    FileNotFoundError: if the data set is not there.
  """
  found = data.load(name, data_dir=data_dir, validation_fraction=validation_fraction, **kwargs)
  if not isinstance(found, Dataset):
    raise ValueError(
      f"config.data.name is {name!r}, whose images are read from disk as they are needed: "
      "denoising takes a data set that is held in memory, such as digits or cifar10."
    )
  images = np.asarray(found.preprocess_fn(jnp.asarray(found.train_images[:_LOOKED_AT])))
  if images.min() < 0 or images.max() > 1:
    raise ValueError(
      f"The images of {name!r} lie between {images.min():.3g} and {images.max():.3g}, but "
      "denoising takes pixels between 0 and 1: leave out config.data.kwargs.normalize."
    )
  return found


def noising_pipeline(
  data: Dataset, *, batch_size: int, eval_batch_size: int, seed: int, test_draws: int = 10
) -> InputPipeline:
  """Noisy images, and the noise that is to be found in them.

  Inputs are `{"image": [B, H, W, C] float32, "time": [B] float32}`, of images scaled to [-1, 1];
  targets are `[B, H, W, C]` float32 noise of variance 1. Times and noise of training are drawn
  anew in every step. Those of testing are one and the same in all runs and tests: each test image
  comes `test_draws` times, each time from another of as many equal parts of [0, 1].

  Args:
    data: the images.
    batch_size: examples of a training step, in all processes together.
    eval_batch_size: examples of a test batch, in all processes together.
    seed: of the order of the images.
    test_draws: times at which each test image is looked at.
  """

  def noisy(images: Array, times: Array, keys: Array) -> tuple[Any, Array]:
    draw = lambda key, image: jax.random.normal(key, image.shape)
    noise = jax.vmap(draw)(keys, images)
    signal, level = (x[:, None, None, None] for x in noise_levels(times))
    return {"image": signal * (2 * images - 1) + level * noise, "time": times}, noise

  def train_examples(keys, device_data, index):
    images = jnp.asarray(device_data["train"])
    keys = jax.vmap(lambda key: jax.random.split(key, 3))(keys)
    augment = lambda key, i: data.augment_fn(key, images, i[None])[0]
    times = jax.vmap(jax.random.uniform)(keys[:, 1])
    return noisy(jax.vmap(augment)(keys[:, 0], index), times, keys[:, 2])

  def test_examples(device_data, index):
    image, draw = index // test_draws, index % test_draws
    key = jax.random.key(_TEST_SEED)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(index)
    within = jax.vmap(jax.random.uniform)(keys[:, 0])
    times = (draw + within) / test_draws
    return noisy(data.preprocess_fn(jnp.asarray(device_data["test"])[image]), times, keys[:, 1])

  return memory_pipeline(
    num_train=data.num_train,
    num_test=data.num_test * test_draws,
    device_data={"train": data.train_images, "test": data.test_images},
    train_examples=train_examples,
    test_examples=test_examples,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    seed=seed,
  )
