"""Images drawn from noise by a denoising network, step by step."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from experiments.data.noising import noise_levels


def draw_samples(
  model: nnx.Module,
  num_samples: int,
  image_shape: tuple[int, ...],
  *,
  num_steps: int = 100,
  noise: float = 1.0,
  seed: int = 0,
) -> np.ndarray:
  """Draws images.

  Args:
    model: a network of `denoising_diffusion`, as trained or condensed.
    num_samples: images to draw.
    image_shape: `(H, W, C)`.
    num_steps: of the chain from noise to an image.
    noise: the source's η, the share of each step's noise that is new: 1 is the ancestral sampling
      of denoising diffusion (DDPM), 0 a function of the first noise alone (DDIM).
    seed: of the noise.

  Returns:
    `[num_samples, H, W, C]` float32 in [0, 1]. What a step takes for the image is cut to the range
    of pixels.

  Raises:
    ValueError: if a number is out of range.

  Source: Song et al., Denoising Diffusion Implicit Models (arXiv:2010.02502), equations 12 and 16.
  """
  if num_samples < 1 or num_steps < 1 or not 0 <= noise <= 1:
    raise ValueError(
      f"num_samples is {num_samples}, num_steps {num_steps} and noise {noise}: give 1 or more, "
      "1 or more, and a share from 0 to 1."
    )
  graphdef, state = nnx.split(model)
  times = jnp.linspace(1, 0, num_steps + 1)

  @jax.jit
  def run(state: Any, key: Array) -> Array:
    denoise: Any = nnx.merge(graphdef, state)

    def step(image: Array, now: tuple[Array, Array, Array]) -> tuple[Array, None]:
      time, later, key = now
      signal, level = noise_levels(time)
      later_signal, later_level = noise_levels(later)
      found = denoise({"image": image, "time": jnp.full(num_samples, time)})
      clean = jnp.clip((image - level * found) / signal, -1, 1)
      found = (image - signal * clean) / level
      # The variance of an image of time `later` given one of `time` and the clean one.
      new = noise * later_level / level * jnp.sqrt(1 - (signal / later_signal) ** 2)
      old = jnp.sqrt(jnp.maximum(later_level**2 - new**2, 0))
      fresh = jax.random.normal(key, image.shape)
      return later_signal * clean + old * found + new * fresh, None

    keys = jax.random.split(key, num_steps + 1)
    image = jax.random.normal(keys[0], (num_samples, *image_shape))
    image, _ = jax.lax.scan(step, image, (times[:-1], times[1:], keys[1:]))
    return (image + 1) / 2

  return np.asarray(run(state, jax.random.key(seed)))
