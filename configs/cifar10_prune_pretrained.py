"""CIFAR-10: a trained dense network pruned at once to a constant fan-in, and fine-tuned.

First the dense network, then the rest; accuracies not measured:

`python -m experiments.train --config=configs/cifar10_quick.py:dense --workdir=runs/quick-dense`

`python -m experiments.train --config=configs/cifar10_prune_pretrained.py --workdir=runs/pruned`

The weights are those of the dense run's last checkpoint (`config.model.init_from`). In every layer
the largest magnitudes of each neuron stay, neurons with few of the layer's largest are ablated
(`config.method.kwargs.gamma_sal`), and what is left is trained for a third of the dense run's
epochs, at a tenth of its learning rate. `:resnet18` takes configs/cifar10_resnet18.py's network
from runs/resnet18-dense, `:tiny` that of configs/cifar10_tiny.py from runs/tiny-dense.
"""

from ml_collections import ConfigDict

from configs import base, cifar10_quick, cifar10_resnet18, cifar10_tiny

_NETWORKS = {"quick": cifar10_quick, "resnet18": cifar10_resnet18, "tiny": cifar10_tiny}


def get_config(argument: str = "prune_pretrained-quick") -> ConfigDict:
  """Another method of `base.get_config` (masks of `srigl` are random at first), or network."""
  chosen = base.read_argument(argument, method=base.preset_names(), network=_NETWORKS)
  network, method = chosen.get("network", "quick"), chosen.get("method", "prune_pretrained")
  config = _NETWORKS[network].get_config(method)
  config.name = f"{config.name}, from a dense run"
  config.model.init_from = f"runs/{network}-dense"
  config.method.sparse_init = ""  # the weights are there
  config.optimizer.learning_rate = config.optimizer.learning_rate / 10
  config.optimizer.schedule = "cosine"
  config.train.total_epochs = round(config.train.total_epochs / 3, 2)
  return config
