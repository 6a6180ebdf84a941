"""Accuracy against the length of training: 1, 2 and 5 times.

`python -m experiments.sweep --config=configs/sweeps/length.py:quick`

Scales: `quick` (a tiny network), `resnet18`, `wrn22`. Learning rates and topology updates are
stretched with the run; ΔT is not.
"""

from configs.sweeps import RUNS, fields, study

_LENGTHS = (1, 2, 5)


def get_config(scale: str = "quick"):
  """The sweep at a scale."""
  epochs = RUNS[scale].get_config().train.total_epochs if scale in RUNS else 0.0
  decay = 77.0  # of the paper's stepwise schedule
  variants = [
    (
      f"{method}_{100 * sparsity:g}_{length}x",
      fields(method, sparsity=sparsity)
      | {
        "train": {"total_epochs": length * epochs},
        "optimizer": {"decay_epochs": length * decay},
      },
      {"axes": {"method": method, "sparsity": sparsity, "length": length}},
    )
    for method in ("rigl", "srigl_no_ablation", "srigl")
    for sparsity in ((0.95,) if scale == "quick" else (0.9, 0.95, 0.99))
    for length in _LENGTHS
  ]
  return study("Accuracy against length of training", "length", scale, variants)
