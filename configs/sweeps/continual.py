"""Continual learning: what is kept, by how connections are divided and how they grow.

`python -m experiments.sweep --config=configs/sweeps/continual.py:digits --workdir=runs/continual`

Arguments: `digits` (permuted digits, an MLP) or `cifar10` (five tasks of two classes), both in the
quick size, 5 seeds, half a minute to some minutes a run. Two sparsities (of the network in the end,
with all tasks); Erdős–Rényi-Kernel against uniform; growth by gradient against random; dense
fine-tuning and dense training on all tasks at once as bars below and above; and the whole network
in place of a task's own.
"""

from ml_collections import ConfigDict

from configs import continual_cifar10
from configs.sweeps import fields

SPARSITIES = {"digits": (0.5, 0.9), "cifar10": (0.5, 0.8)}
RUNS = (("continual", "erk"), ("continual", "uniform"))
AT_THE_HIGHER = (("continual_rigl", "erk"), ("continual_set", "erk"))


def get_config(argument: str = "digits") -> ConfigDict:
  """The sweep on a data set."""
  if argument not in SPARSITIES:
    raise ValueError(f"There is no {argument!r} here: give one of {', '.join(SPARSITIES)}.")
  variants = [
    ("dense", fields("dense")),
    ("dense_joint", fields("dense") | {"task": {"kwargs": {"joint": True}}}),
  ]
  low, high = SPARSITIES[argument]
  variants += [
    (f"{method}_{how}_{100 * at:g}", fields(method, sparsity=at, distribution=how))
    for at, runs in ((low, RUNS), (high, RUNS + AT_THE_HIGHER))
    for method, how in runs
  ]
  changes = fields("continual", sparsity=low, distribution="erk")
  told = {"task": {"kwargs": {"scenario": "head"}}}
  variants.append((f"continual_erk_{100 * low:g}_whole", changes | told))
  return ConfigDict(
    {
      "name": f"Continual learning ({argument})",
      "study": "methods",
      "base": continual_cifar10.get_config("digits-quick" if argument == "digits" else "quick"),
      "variants": tuple(variants),
      "seeds": (0, 1, 2, 3, 4),
      "comparisons": (
        (f"continual_erk_{100 * low:g}", f"continual_uniform_{100 * low:g}"),
        (f"continual_erk_{100 * high:g}", f"continual_uniform_{100 * high:g}"),
        (f"continual_rigl_erk_{100 * high:g}", f"continual_set_erk_{100 * high:g}"),
        (f"continual_erk_{100 * high:g}", f"continual_rigl_erk_{100 * high:g}"),
      ),
    }
  )
