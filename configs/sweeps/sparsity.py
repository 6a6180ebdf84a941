"""Accuracy against sparsity, and what becomes of the neurons: the paper's CIFAR-10 tables.

`python -m experiments.sweep --config=configs/sweeps/sparsity.py:quick`

Scales: `quick` (six methods at 90, 95, 98 and 99 %, two seeds, a tiny network), `resnet18` and
`wrn22` (50 to 99 %, five seeds, the paper's settings). The layers of each run are in the results
file, so that the same runs show which share of its neurons RigL silently ablates. The figure of the
paper's networks has the published accuracies beside: those of the best test of a run.
"""

from configs.sweeps import fields, study

_METHODS = ("static", "set", "rigl", "srigl_no_ablation", "srigl", "gradual_pruning")
_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

# Mean over five seeds and half width of its 95 % interval, in percent: from the authors' notebooks.
_PUBLISHED_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
_PUBLISHED = {
  "resnet18": {
    "rigl": (95.40, 95.41, 95.20, 95.06, 94.62, 92.88),
    "srigl_no_ablation": (95.35, 95.42, 95.19, 95.00, 94.48, 91.47),
    "srigl": (95.36, 95.29, 95.22, 95.11, 94.70, 92.79),
  },
  "wrn22": {
    "rigl": (94.61, 94.46, 94.03, 93.31, 92.06, 84.93),
    "srigl_no_ablation": (94.73, 94.39, 94.08, 93.06, 91.37, 76.89),
    "srigl": (94.60, 94.39, 94.05, 93.27, 91.78, 82.66),
  },
}
_HALF_WIDTHS = {
  "resnet18": {
    "rigl": (0.06, 0.10, 0.08, 0.14, 0.20, 0.14),
    "srigl_no_ablation": (0.08, 0.08, 0.12, 0.11, 0.25, 0.28),
    "srigl": (0.08, 0.10, 0.04, 0.12, 0.18, 0.09),
  },
  "wrn22": {
    "rigl": (0.15, 0.12, 0.08, 0.10, 0.15, 0.22),
    "srigl_no_ablation": (0.18, 0.13, 0.21, 0.09, 0.08, 0.35),
    "srigl": (0.10, 0.19, 0.12, 0.12, 0.20, 0.89),
  },
}


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
  sweep = study("Accuracy against sparsity", "sparsity", scale, variants, quick_seeds=(0, 1))
  sweep.published = tuple(
    (method, sparsity, accuracy / 100, half_width / 100)
    for method, accuracies in _PUBLISHED.get(scale, {}).items()
    for sparsity, accuracy, half_width in zip(
      _PUBLISHED_SPARSITIES, accuracies, _HALF_WIDTHS[scale][method], strict=True
    )
  )
  return sweep
