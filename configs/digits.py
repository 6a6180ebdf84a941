"""Handwritten digits (1,797 8×8 images, bundled with scikit-learn), an MLP, seconds on a CPU core.

Measured on one core, three seeds (experiments/results/digits.json): test accuracy 97.6 ± 1.7 % at
90 % sparsity (dense 98.1 ± 0.6 %), 5 to 6 s of training.

One run: `python -m experiments.train --config=configs/digits.py --workdir=runs/digits`, with
another method: `--config=configs/digits.py:rigl` (dense, static, set, rigl, srigl_no_ablation,
srigl). All of them side by side: `make demo`, that is `configs/sweeps/digits.py`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "srigl") -> ConfigDict:
  """90 % sparsity on digits with a method of `base.get_config`."""
  config = base.get_config(method)
  config.name = f"digits, {method}"
  config.data.batch_size = 64
  config.model.kwargs = ConfigDict({"hidden": (256, 256)})
  config.method.update_every_steps = 20
  base.set_gamma_sal(config, 0.7)  # the usual 0.3 ablates nothing in so small a network
  config.optimizer.learning_rate = 0.05
  config.train.total_epochs = 40.0
  config.train.log_every_steps = 20
  config.train.eval_every_epochs = 2.0
  config.train.eval_batch_size = 512
  config.train.checkpoint_every_epochs = 10.0
  return config
