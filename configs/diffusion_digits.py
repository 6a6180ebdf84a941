"""Denoising diffusion on handwritten digits (1,797 8×8 images, bundled with scikit-learn).

A residual MLP finds the noise in an image, told how much there is: 3 blocks of 256, 1.3 million
weights, 90 % sparse by default; 4,000 steps.

    python -m experiments.train --config=configs/diffusion_digits.py:quick --workdir=runs/diffusion
    python -m experiments.sample --workdir=runs/diffusion --figure=runs/diffusion/samples.png

What follows a colon chooses a method, `:rigl`, and a size: `:quick` (2 blocks of 128, 1,500 steps:
half a minute on two cores) or `:rigl-quick`. Other images that are held in memory:
`--config.data.name=cifar10`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """The network at 90 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"digits, denoising MLP, {method}"
  config.task.name = "denoising_diffusion"
  config.task.kwargs = ConfigDict({"test_draws": 10})
  config.data.batch_size = 256
  config.model.name = "denoising_mlp"
  config.model.kwargs = ConfigDict({"depth": 3, "width": 256, "mlp_width": 512})
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.warmup_epochs = 20.0
  config.train.total_epochs = 800.0  # 5 steps each
  config.train.log_every_steps = 250
  config.train.eval_every_epochs = 200.0
  config.train.eval_batch_size = 4500
  config.train.checkpoint_every_epochs = 800.0
  if "size" in given:
    config.name += ", quick"
    config.model.kwargs = ConfigDict({"depth": 2, "width": 128, "mlp_width": 256})
    config.method.update_every_steps = 50
    config.data.batch_size = 128
    config.optimizer.learning_rate = 1e-2  # the best of 0.001, 0.003 and 0.01 on a validation part
    config.train.total_epochs = 150.0  # 10 steps each
    config.train.eval_every_epochs = 50.0
    config.train.checkpoint_every_epochs = 150.0
  return config
