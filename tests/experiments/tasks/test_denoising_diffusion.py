"""Noise by the schedule, a small denoiser, and what is drawn from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import diffusion_digits
from experiments.analysis.sample_quality import frechet_distance, nearest_distances
from experiments.common.files import read_json
from experiments.data.noising import load_images, noise_levels
from experiments.deploy.sampling import draw_samples
from experiments.tasks.denoising_diffusion import denoising_diffusion
from experiments.training.loop import train
from tests.experiments.tiny import devices, quick_compiler


class Oracle:
  """Knows the image: for the arithmetic of sampling."""

  def __init__(self, image):
    self.image = image

  def __call__(self, inputs):
    signal, level = (x[:, None, None, None] for x in noise_levels(inputs["time"]))
    return (inputs["image"] - signal * self.image) / level


def test_the_schedule_goes_from_the_image_to_noise():
  signal, level = noise_levels(jnp.linspace(0, 1, 11))
  np.testing.assert_allclose(signal**2 + level**2, 1, rtol=1e-6)
  assert signal[0] == 1 and level[0] == 0 and signal[-1] == pytest.approx(0.01)
  assert (np.diff(signal) < 0).all()
  half = np.cos((0.5 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
  assert signal[5] == pytest.approx(half, rel=1e-5)


def test_test_noise_is_fixed_and_spread_over_all_times():
  data = load_images("synthetic", image_shape=(4, 4, 1), num_train=16, num_test=30)
  task = denoising_diffusion(test_draws=4)
  seen = []
  for seed in (0, 1):
    pipeline = task.pipeline(data, batch_size=8, eval_batch_size=4 * data.num_test, seed=seed)
    (batch,) = pipeline.test_batches()
    with quick_compiler():
      seen.append(jax.jit(pipeline.test_inputs)(pipeline.device_data, batch))
  for one, other in zip(*map(jax.tree.leaves, seen), strict=True):
    np.testing.assert_array_equal(one, other)
  inputs, noise, valid = seen[0]
  assert valid.all() and len(valid) == 4 * data.num_test
  times = np.asarray(inputs["time"]).reshape(-1, 4)
  assert (np.floor(4 * times) == np.arange(4)).all()
  signal, level = (np.asarray(x)[:, None, None, None] for x in noise_levels(inputs["time"]))
  image = np.repeat(data.test_images / 127.5 - 1, 4, 0)
  np.testing.assert_allclose(inputs["image"], signal * image + level * noise, atol=1e-5)
  assert np.mean(np.asarray(noise) ** 2) == pytest.approx(1, abs=0.1)
  (batch,) = pipeline.train_batches(0, 1)
  key, places = jax.random.key(0), jnp.arange(8)
  with quick_compiler():
    inputs, noise = jax.jit(pipeline.train_inputs)(key, places, pipeline.device_data, batch)
  assert noise.shape == (8, 4, 4, 1) and len(set(np.asarray(inputs["time"]).tolist())) == 8


def test_images_that_cannot_be_denoised_are_refused():
  with pytest.raises(ValueError, match="held in memory"):
    load_images("synthetic_imagenet")
  with pytest.raises(ValueError, match=r"test_draws is 0"):
    denoising_diffusion(test_draws=0)
  with pytest.raises(ValueError, match="has no labels"):
    denoising_diffusion(label_smoothing=0.1)


def test_distances_of_images_are_those_of_their_distributions():
  rng = np.random.default_rng(0)
  images = rng.normal(size=(500, 1, 2, 1))
  assert frechet_distance(images, images) == pytest.approx(0, abs=1e-9)
  assert frechet_distance(images, images + 3) == pytest.approx(2 * 9)
  variance = np.cov(images.reshape(500, 2), rowvar=False).trace()
  assert frechet_distance(images, 2 * images - images.mean(0)) == pytest.approx(variance)
  np.testing.assert_allclose(nearest_distances(images[:5], images), 0, atol=1e-6)
  np.testing.assert_allclose(nearest_distances(images[:1] + 100, images[:1]), 100 * 2**0.5)
  with pytest.raises(ValueError, match="of one size"):
    frechet_distance(images, images[:, :, :1])
  with pytest.raises(ValueError, match="two or more"):
    frechet_distance(images, images[:1])


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_sampling_finds_the_image_that_a_denoiser_knows(noise, monkeypatch):
  image = jnp.linspace(-1, 1, 4).reshape(1, 2, 2, 1)
  monkeypatch.setattr("flax.nnx.split", lambda model: (model, ()))
  monkeypatch.setattr("flax.nnx.merge", lambda model, state: model)
  found = draw_samples(Oracle(image), 3, (2, 2, 1), num_steps=5, noise=noise)
  np.testing.assert_allclose(found, np.broadcast_to((image + 1) / 2, (3, 2, 2, 1)), atol=1e-5)


def test_sampling_refuses_what_it_cannot_do():
  with pytest.raises(ValueError, match="noise 2"):
    draw_samples(Oracle(0), 3, (2, 2, 1), noise=2)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["masked", "condensed"])
def test_quick_learns_to_denoise_and_is_sampled(engine, tmp_path, command):
  """The config's own quick size, for two thirds of its time; no noise found is an error of 1."""
  config = diffusion_digits.get_config("srigl-quick")
  config.train.total_epochs = 100.0
  config.method.engine = engine
  with devices(1):
    results = train(config, tmp_path / "run")
    assert results["score"]["lower_is_better"] and results["score"]["last"] < 0.35
    figure, file = tmp_path / "a.png", tmp_path / "net.safetensors"
    code, _, err = command("export", f"--workdir={tmp_path / 'run'}", f"--out={file}")
    assert code == 0, err
    found = []
    for source in (f"--workdir={tmp_path / 'run'}", f"--model={file}"):
      out = tmp_path / "distances.json"
      wanted = ["--num_samples=200", f"--figure={figure}", f"--out={out}"]
      code, _, err = command("sample", source, *wanted)
      assert code == 0 and figure.exists(), err
      found.append(next(iter(read_json(out)["distances"].values()))[0][0])
  assert found[0] == pytest.approx(found[1], rel=0.05)
  assert found[0] < 2  # a trained one has 0.6
