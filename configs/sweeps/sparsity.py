"""Accuracy against sparsity, and what becomes of the neurons: the paper's CIFAR-10 tables.

`python -m experiments.sweep --config=configs/sweeps/sparsity.py:quick`

Scales: `quick` (six methods at 90, 95, 98 and 99 %, two seeds, a tiny network), `resnet18` and
`wrn22` (50 to 99 %, five seeds, the paper's settings). The layers of each run are in the results
file, so that the same runs show which share of its neurons RigL silently ablates.
"""

from configs.sweeps import fields, study

_METHODS = ("static", "set", "rigl", "srigl_no_ablation", "srigl", "gradual_pruning")
_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)


def get_config(scale: str = "quick"):
  """The sweep at a scale."""
  sparsities = (0.9, 0.95, 0.98, 0.99) if scale == "quick" else _SPARSITIES
  variants = [("dense", fields("dense"))]
  variants += [
    (
      f"{method}_{100 * sparsity:g}",
      fields(method, sparsity=sparsity),
      {"axes": {"method": method, "sparsity": sparsity}},
    )
    for method in _METHODS
    for sparsity in sparsities
  ]
  return study("Accuracy against sparsity", "sparsity", scale, variants, quick_seeds=(0, 1))
