"""CIFAR-10, ResNet-18: the paper's table (arXiv:2305.02299).

Published, not measured here: best test accuracy in percent, five seeds, mean ± 95 % interval, from
the authors' notebooks (the lossless CIFAR-10; dense 95.45):

| sparsity | RigL | SRigL without ablation | SRigL |
|---|---|---|---|
| 80 | 95.20 ± .08 | 95.19 ± .12 | 95.22 ± .04 |
| 90 | 95.06 ± .14 | 95.00 ± .11 | 95.11 ± .10 |
| 95 | 94.62 ± .20 | 94.48 ± .25 | 94.70 ± .18 |
| 99 | 92.88 ± .14 | 91.47 ± .28 | 92.79 ± .09 |

`python -m experiments.train --config=configs/cifar10_resnet18.py --workdir=runs/resnet18`; another
method by `--config=configs/cifar10_resnet18.py:rigl`, another sparsity by
`--config.method.sparsity=0.95`. 97,500 steps, for a GPU.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(method: str = "srigl") -> ConfigDict:
  """The paper's hyper-parameters, with a method of `base.get_config`."""
  config = base.get_config(method)
  config.name = f"CIFAR-10, ResNet-18, {method}"
  config.data.name = "cifar10"
  config.data.batch_size = 128
  config.model.name = "resnet18"
  config.method.sparse_init = "srigl_reference"
  config.optimizer.schedule = "step"  # × 0.2 every 77 epochs
  config.train.total_epochs = 250.0
  config.train.log_every_steps = 100
  return config
