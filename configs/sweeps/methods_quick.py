"""Every method on real CIFAR-10 with a tiny network, three seeds: `methods.py:quick`.

`python -m experiments.sweep --config=configs/sweeps/methods_quick.py`
"""

from configs.sweeps import methods


def get_config():
  """The sweep."""
  return methods.get_config("quick")
