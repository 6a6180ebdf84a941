"""Accuracy against sparsity, and what becomes of the neurons: the paper's CIFAR-10 tables.

`python -m experiments.sweep --config=configs/sweeps/sparsity.py:quick`

Scales: `quick` (six methods at 90, 95, 98 and 99 %, two seeds, a tiny network), `resnet18` and
`wrn22` (50 to 99 %, five seeds, the paper's settings). The layers of each run are in the results
file, so that the same runs show which share of its neurons RigL silently ablates. The figure of the
paper's networks has the published accuracies beside: those of the best test of a run.
"""

from configs.sweeps import fields, study

_METHODS = ("static", "set", "gradual_pruning", "rigl", "srigl_no_ablation", "srigl")
_SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

# Published accuracies, each with the half width of its 95 % interval over five seeds, in percent,
# from the authors' notebooks: sparsity; RigL; SRigL without ablation; SRigL.
_PUBLISHED = {
  "resnet18": (
    (0.5, (95.40, 0.06), (95.35, 0.08), (95.36, 0.08)),
    (0.7, (95.41, 0.10), (95.42, 0.08), (95.29, 0.10)),
    (0.8, (95.20, 0.08), (95.19, 0.12), (95.22, 0.04)),
    (0.9, (95.06, 0.14), (95.00, 0.11), (95.11, 0.12)),
    (0.95, (94.62, 0.20), (94.48, 0.25), (94.70, 0.18)),
    (0.99, (92.88, 0.14), (91.47, 0.28), (92.79, 0.09)),
  ),
  "wrn22": (
    (0.5, (94.61, 0.15), (94.73, 0.18), (94.60, 0.10)),
    (0.7, (94.46, 0.12), (94.39, 0.13), (94.39, 0.19)),
    (0.8, (94.03, 0.08), (94.08, 0.21), (94.05, 0.12)),
    (0.9, (93.31, 0.10), (93.06, 0.09), (93.27, 0.12)),
    (0.95, (92.06, 0.15), (91.37, 0.08), (91.78, 0.20)),
    (0.99, (84.93, 0.22), (76.89, 0.35), (82.66, 0.89)),
  ),
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
    for sparsity, *points in _PUBLISHED.get(scale, ())
    for method, (accuracy, half_width) in zip(_METHODS[-3:], points, strict=True)
  )
  return sweep
