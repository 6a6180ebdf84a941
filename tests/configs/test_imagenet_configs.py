"""The ImageNet configs: what their arguments choose, and the authors' settings."""

import pytest

from configs import base, imagenet_mobilenetv3, imagenet_resnet50, imagenet_vit_b16

CONFIGS = {
  "resnet50": imagenet_resnet50,
  "mobilenetv3": imagenet_mobilenetv3,
  "vit_b16": imagenet_vit_b16,
}
NUM_IMAGES = 1_281_167


def optimizer_steps(config, num_images=NUM_IMAGES):
  """Optimizer steps of a run, over the full batches of each epoch, and T_end among them."""
  batches = round(config.train.total_epochs * (num_images // config.data.batch_size))
  steps = batches // config.optimizer.accumulation_steps
  return steps, int(config.method.update_until_fraction * steps)


@pytest.mark.parametrize(
  "name, argument, steps, t_end, batch, score_batches",
  [
    # `score_batches`: batches over which a growth score averages, in optimizer steps.
    ("resnet50", "1x", 256_000, 192_000, 512, 8),
    ("resnet50", "2x", 512_000, 384_000, 512, 8),
    ("resnet50", "5x", 160_000, 120_000, 4096, 4),
    ("mobilenetv3", "small", 750_600, 562_950, 1024, 2),
    ("mobilenetv3", "large", 750_600, 562_950, 1024, 2),
    ("vit_b16", "srigl", 46_918, 35_188, 4096, 8),
  ],
)
def test_steps_and_batches_are_the_authors(name, argument, steps, t_end, batch, score_batches):
  config = CONFIGS[name].get_config(argument)
  assert optimizer_steps(config) == (steps, t_end)
  assert config.data.batch_size * config.optimizer.accumulation_steps == batch
  assert config.method.grad_accumulation_steps == score_batches
  # RigL's 100 steps of 4096, or as many of the batch at hand.
  assert config.method.update_every_steps == (800 if batch == 512 else 100)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_all_have_in_common(name):
  config = CONFIGS[name].get_config()
  assert config.method.sparse_init == "srigl_reference"
  assert config.method.drop_fraction == 0.3
  assert config.method.never_ablate == ("head",)
  assert config.method.dense == ()
  assert config.data.kwargs.image_size == 224


def test_words_may_come_in_any_order_and_be_left_out():
  default = imagenet_resnet50.get_config()
  assert default == imagenet_resnet50.get_config("srigl-1x") == imagenet_resnet50.get_config("1x")
  five = imagenet_resnet50.get_config("5x-rigl")
  assert five == imagenet_resnet50.get_config("rigl-5x")
  assert (five.method.name, five.optimizer.learning_rate) == ("rigl", 1.6)
  small = imagenet_mobilenetv3.get_config("srigl_no_ablation-small")
  assert (small.model.name, small.method.kwargs.gamma_sal) == ("mobilenet_v3_small", 0)
  assert imagenet_mobilenetv3.get_config("rigl").model.name == "mobilenet_v3_large"


@pytest.mark.parametrize(
  "argument, message",
  [
    ("10x", r"no method or length or size '10x' here: give one of dense, .*; 1x, 2x, 5x; smoke\."),
    ("1x-rigl-5x", "'1x-rigl-5x' chooses two lengths, 1x and 5x: drop one"),
    ("rigl-rigl", "chooses two methods, rigl and rigl"),
    ("", "no method or length or size ''"),
  ],
)
def test_arguments_that_cannot_be_meant(argument, message):
  with pytest.raises(ValueError, match=message):
    imagenet_resnet50.get_config(argument)


@pytest.mark.parametrize("name", CONFIGS)
def test_smoke_fits_a_sample_on_a_cpu(name):
  """12 steps of 800 images, with two topology updates, ablation and a growth score of two."""
  full, smoke = (CONFIGS[name].get_config(argument) for argument in ("rigl", "rigl-smoke"))
  assert optimizer_steps(smoke, num_images=800) == (12, 9)
  assert smoke.method.update_every_steps == 4
  assert smoke.optimizer.accumulation_steps == (2 if name != "resnet50" else 1)
  assert smoke.model.name == full.model.name
  assert smoke.method.sparsity == full.method.sparsity == base.get_config().method.sparsity
  assert smoke.method.name == "rigl"
  batch = 16 * smoke.optimizer.accumulation_steps
  full_batch = full.data.batch_size * full.optimizer.accumulation_steps
  rate = full.optimizer.learning_rate * batch / full_batch
  assert smoke.optimizer.learning_rate == pytest.approx(rate)
  assert smoke.model.dtype == "float32"
