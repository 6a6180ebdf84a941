"""CIFAR-10 in about 70 seconds of one CPU core, for studies of many runs.

`python -m experiments.train --config=configs/cifar10_tiny.py --workdir=runs/tiny`

Three convolutions of stride 2 (the fastest kind on CPU, some 2,400 images a second and core) and
98 % sparsity, where methods part though the network is small: about 1,900 of 94,000 weights are
left. At 3 epochs the learning rate is high. A multilayer perceptron (256, 256) trains five times as
fast, but its methods did not part from a static mask within 10 epochs. Updates more often
(every 25 steps) that change more (half of the weights) leave RigL with 24 % of its neurons and
below the static mask.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "srigl") -> ConfigDict:
  """98 % sparsity, with a method of `base.METHODS`."""
  config = base.get_config(method)
  config.name = f"CIFAR-10, tiny convolutional network, {method}"
  config.data.name = "cifar10"
  config.data.batch_size = 128
  config.model.name = "convnet"
  config.model.kwargs = ConfigDict({"widths": (32, 64, 128), "convs_per_stage": 1})
  config.method.sparsity = 0.98
  config.method.update_every_steps = 50
  config.optimizer.learning_rate = 0.1
  config.train.total_epochs = 3.0
  config.train.log_every_steps = 130
  config.train.checkpoint_every_epochs = 1.0
  return config
