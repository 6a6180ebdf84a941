"""CIFAR-10, Wide ResNet-22-2: the paper's table (arXiv:2305.02299).

Published, not measured here: best test accuracy in percent, five seeds, mean ± 95 % interval, from
the authors' notebooks (the lossless CIFAR-10; dense 95.00):

| sparsity | RigL | SRigL without ablation | SRigL |
|---|---|---|---|
| 80 | 94.03 ± .08 | 94.08 ± .21 | 94.05 ± .12 |
| 90 | 93.31 ± .10 | 93.06 ± .09 | 93.27 ± .12 |
| 95 | 92.06 ± .15 | 91.37 ± .08 | 91.78 ± .20 |
| 99 | 84.93 ± .22 | 76.89 ± .35 | 82.66 ± .89 |

`python -m experiments.train --config=configs/cifar10_wrn22.py --workdir=runs/wrn22`. The authors'
runs may ablate classes of the classifier, which is surely not meant; here it is protected.
"""

from ml_collections import ConfigDict

from configs import cifar10_resnet18


def get_config(method: str = "srigl") -> ConfigDict:
  """The paper's hyper-parameters, with a method of `base.get_config`."""
  config = cifar10_resnet18.get_config(method)
  config.name = f"CIFAR-10, Wide ResNet-22-2, {method}"
  config.model.name = "wide_resnet22_2"
  return config
