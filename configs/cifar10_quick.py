"""CIFAR-10 on a few CPU cores, with a small convolutional network; time and accuracy not measured.

`python -m experiments.train --config=configs/cifar10_quick.py --workdir=runs/quick`
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "srigl") -> ConfigDict:
  """90 % sparsity, with a method of `base.get_config`."""
  config = base.get_config(method)
  config.name = f"CIFAR-10, small convolutional network, {method}"
  config.data.name = "cifar10"
  config.data.batch_size = 128
  config.model.name = "convnet"
  config.model.kwargs = ConfigDict({"widths": (32, 64, 128, 256), "convs_per_stage": 1})
  config.optimizer.learning_rate = 0.1
  config.train.total_epochs = 15.0
  return config
