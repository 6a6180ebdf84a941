"""`make demo`: dense, RigL, SRigL without and with ablation at 90 % on digits, three seeds each.

`python -m experiments.sweep --config=configs/sweeps/digits.py --workdir=runs/digits`
"""

from ml_collections import ConfigDict

from configs import digits
from configs.sweeps import fields

METHODS = ("dense", "rigl", "srigl_no_ablation", "srigl")


def get_config() -> ConfigDict:
  """A base config, the variants' differences from it, and seeds."""
  return ConfigDict(
    {
      "name": "Handwritten digits at 90 % sparsity",
      "base": digits.get_config(),
      "variants": tuple((method, fields(method)) for method in METHODS),
      "seeds": (0, 1, 2),
    }
  )
