"""What a GPU is to do first: the sparsity at which the methods differ most, for the fewest seconds.

`python -m experiments.sweep --config=configs/sweeps/gpu.py:wrn22-99`

RigL, SRigL without and with ablation at one sparsity, three seeds, a fifth of the paper's length,
in bfloat16 with the data on the device. Argument: network (`wrn22` or `resnet18`), sparsity in
percent (`99`, `95` or `90`), and optionally `dense` (a dense run of the first seed as well, without
repeating what is finished), `full` (all 250 epochs), and `tiny` (two steps each of a small network
on random images, to try it out).
"""

from ml_collections import ConfigDict

from configs.base import read_argument
from configs.sweeps import PAPER_SEEDS, fields, study

_METHODS = ("rigl", "srigl_no_ablation", "srigl")
_SEEDS = PAPER_SEEDS[:3]


def get_config(argument: str = "wrn22-99"):
  """The sweep of a network at a sparsity."""
  given = read_argument(
    argument,
    network=("wrn22", "resnet18"),
    sparsity=("99", "95", "90"),
    reference=("dense",),
    length=("full",),
    size=("tiny",),
  )
  network, percent = given.get("network", "wrn22"), int(given.get("sparsity", "99"))
  sparsity = percent / 100
  variants: list[tuple] = [
    (method, fields(method, sparsity=sparsity), {"axes": {"method": method, "sparsity": sparsity}})
    for method in _METHODS
  ]
  if "reference" in given:
    variants += [("dense", fields("dense"), {"seeds": _SEEDS[:1]})]
  short = "" if "length" in given else ", a fifth of the paper's length"
  sweep = study(f"CIFAR-10 at {percent} % on a GPU{short}", "sparsity", network, variants)
  sweep.seeds = _SEEDS
  if short:
    sweep.base.train.total_epochs /= 5
    sweep.base.optimizer.decay_epochs /= 5
  # A pause for the host costs as much as tens of steps of these networks.
  sweep.base.train.log_every_steps = 400
  sweep.base.train.eval_every_epochs = 2.0
  sweep.base.train.checkpoint_every_epochs = 25.0
  sweep.base.train.keep_checkpoints = 1
  sweep.base.train.steps_per_dispatch = 100
  return _tiny(sweep) if "size" in given else sweep


def _tiny(sweep: ConfigDict) -> ConfigDict:
  """The sweep at a size that any machine has time for."""
  base = sweep.base
  base.data.name = "synthetic"
  base.data.kwargs = ConfigDict({"image_shape": (8, 8, 3), "num_train": 32, "num_test": 16})
  base.data.batch_size = 16
  base.model.name = "resnet18"
  base.model.dtype = "float32"  # jaxlib 0.11.2 evaluates bfloat16 networks to NaN on some CPUs
  base.model.kwargs = ConfigDict({"stage_sizes": (1, 1), "width": 16})
  base.train.total_epochs = 1.0
  base.train.eval_every_epochs = 1.0
  base.train.steps_per_dispatch = 0
  sweep.seeds = PAPER_SEEDS[:1]
  return sweep
