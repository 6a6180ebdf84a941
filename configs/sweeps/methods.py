"""Every method at one sparsity on CIFAR-10.

`python -m experiments.sweep --config=configs/sweeps/methods.py:quick`

Scales: `quick` (a tiny network at 95 %, three seeds), `mlp` (at 98 %, eight seeds), `resnet18` and
`wrn22` (the paper's settings at 90 %, for a GPU). N:M methods keep 1 of 16 inputs (93.75 %) in
layers whose inputs 16 divides; a first layer whose inputs it does not stays dense then.
"""

from configs.sweeps import RUNS, fields, study

_METHODS = (
  "dense", "small_dense", "static", "static_fan_in", "set", "rigl", "snfs", "srigl_no_ablation",
  "srigl", "srigl_shared", "nm_srigl", "sr_ste", "gradual_pruning", "one_shot", "one_shot_global",
  "lottery",
)  # fmt: skip
_N_OF_M = {"n": 1, "m": 16}


def get_config(scale: str = "quick"):
  """The sweep at a scale."""
  own = {"nm_srigl": _N_OF_M, "sr_ste": _N_OF_M}
  variants = {name: fields(name, kwargs=own.get(name)) for name in _METHODS}
  variants["lottery"]["train"] = {"total_epochs": _lottery_epochs(scale)}
  return study("Every method on CIFAR-10", "methods", scale, variants.items())


def _lottery_epochs(scale: str) -> float:
  """Six rounds (five prunings) of the length of the other runs, rewound to 5 % of a round."""
  epochs = RUNS[scale].get_config().train.total_epochs if scale in RUNS else 0.0
  return (1 + 5 * 0.95) * epochs
