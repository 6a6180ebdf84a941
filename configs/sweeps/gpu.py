"""What a GPU is to do first, in order of importance; an interruption loses one run at most.

`python -m experiments.sweep --config=configs/sweeps/gpu.py`

CIFAR-10 with ResNet-18 in bfloat16, the data on the device: the paper's schedule at a fifth of its
length (dense, RigL, SRigL without and with ablation at 99, 95 and 90 %), then all 250 epochs of
the sparse ones at 99 %, where ablation matters most, and of dense training. Argument: the number
of seeds (1), or `tiny`: the same variants with two steps each of a small network on random images,
to try it out.
"""

from ml_collections import ConfigDict

from configs.sweeps import PAPER_SEEDS, fields, study

_SHORT = {"train": {"total_epochs": 50.0}, "optimizer": {"decay_epochs": 77.0 / 5}}


def get_config(argument: str = "1"):
  """The sweep for a number of seeds."""
  sparse = [
    (f"{method}_{100 * sparsity:g}", fields(method, sparsity=sparsity), method, sparsity)
    for sparsity in (0.99, 0.95, 0.9)
    for method in ("rigl", "srigl_no_ablation", "srigl")
  ]
  variants = [("dense_short", fields("dense") | _SHORT)]
  variants += [
    (
      f"{name}_short",
      changes | _SHORT,
      {"axes": {"method": f"{method}, 1/5", "sparsity": sparsity}},
    )
    for name, changes, method, sparsity in sparse
  ]
  variants += [
    (name, changes, {"axes": {"method": method, "sparsity": sparsity}})
    for name, changes, method, sparsity in sparse
    if sparsity == 0.99
  ]
  variants += [("dense", fields("dense"))]
  sweep = study("ResNet-18 on CIFAR-10, on a GPU", "sparsity", "resnet18", variants)
  if argument == "tiny":
    return _tiny(sweep)
  sweep.seeds = PAPER_SEEDS[: int(argument)]
  return sweep


def _tiny(sweep: ConfigDict) -> ConfigDict:
  """The sweep at a size that any machine has time for."""
  base = sweep.base
  base.data.name = "synthetic"
  base.data.kwargs = ConfigDict({"image_shape": (8, 8, 3), "num_train": 32, "num_test": 16})
  base.data.batch_size = 16
  base.model.kwargs = ConfigDict({"stage_sizes": (1, 1), "width": 16})
  sweep.seeds = PAPER_SEEDS[:1]
  short = lambda changes: {**changes, "train": {"total_epochs": 1.0}}
  sweep.variants = tuple((name, short(changes), *axes) for name, changes, *axes in sweep.variants)
  return sweep
