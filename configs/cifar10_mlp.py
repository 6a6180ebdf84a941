"""CIFAR-10 with an MLP 3072–1024–1024–10, where sparse networks are wide; accuracy not measured.

`python -m experiments.train --config=configs/cifar10_mlp.py --workdir=runs/mlp`

The testbed of SET (arXiv:1707.04780) and RigL (arXiv:1911.11134) for fully connected networks. Its
layers are wide enough for 99.9 % sparsity, and for training in condensed form to pay:
`--config.method.engine=condensed` makes the same network in a fraction of the time. Learning rate
and γ_sal are to be chosen on the validation part, see docs/studies/protocol.md.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "srigl") -> ConfigDict:
  """98 % sparsity, with a method of `base.get_config`."""
  config = base.get_config(method)
  config.name = f"CIFAR-10, MLP, {method}"
  config.data.name = "cifar10"
  config.data.batch_size = 128
  config.data.kwargs = ConfigDict({"normalize": True})
  config.model.kwargs = ConfigDict({"hidden": (1024, 1024)})
  config.method.sparsity = 0.98
  config.optimizer.learning_rate = 0.05
  config.train.total_epochs = 20.0
  config.train.log_every_steps = 390
  config.train.eval_every_epochs = 5.0
  config.train.checkpoint_every_epochs = 5.0
  config.train.keep_checkpoints = 1
  return config
