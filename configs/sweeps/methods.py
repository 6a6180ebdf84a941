"""Every method at one sparsity on CIFAR-10.

`python -m experiments.sweep --config=configs/sweeps/methods.py:quick`

Scales: `quick` (a tiny network at 95 %, three seeds), `resnet18` and `wrn22` (the paper's settings
at 90 %, for a GPU). N:M methods keep 1 of 16 inputs (93.75 %) in layers whose inputs 16 divides;
the first layer stays dense then.
"""

from configs.sweeps import fields, study

_N_OF_M = {"block_fan_in": 1, "block_size": 16}


def get_config(scale: str = "quick"):
  """The sweep at a scale."""
  variants = (
    ("dense", fields("dense")),
    ("narrow", fields("narrow")),
    ("static", fields("static")),
    ("static_fan_in", fields("static_fan_in")),
    ("set", fields("set")),
    ("rigl", fields("rigl")),
    ("snfs", fields("snfs")),
    ("srigl_no_ablation", fields("srigl_no_ablation")),
    ("srigl", fields("srigl")),
    ("srigl_shared", fields("srigl_shared")),
    ("nm_srigl", fields("nm_srigl", **_N_OF_M)),
    ("sr_ste", fields("sr_ste", **_N_OF_M)),
    ("gradual_pruning", fields("gradual_pruning")),
    ("one_shot", fields("one_shot")),
    ("one_shot_global", fields("one_shot_global")),
    ("lottery", fields("lottery") | {"train": {"total_epochs": _lottery_epochs(scale)}}),
  )
  return study("Every method on CIFAR-10", "methods", scale, variants)


def _lottery_epochs(scale: str) -> float:
  """Six rounds (five prunings) of the length of the other runs, rewound to 5 % of a round."""
  return (1 + 5 * 0.95) * {"quick": 3.0}.get(scale, 250.0)
