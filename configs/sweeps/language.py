"""Sparsity of a language model: methods at 70, 80 and 90 %, and SRigL's γ_sal.

`python -m experiments.sweep --config=configs/sweeps/language.py:quick --workdir=runs/language`

Scales: `quick` (3 blocks of 96, 600 steps, five seeds: 50 runs of one to two minutes on a core) and
`full` (6 blocks of 384, three seeds: hours for each run). Blocks are not scanned, and what has a
condensed form trains in it, in half of the time.
"""

from ml_collections import ConfigDict

from configs import gpt_gcide
from configs.sweeps import condensed_fields


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full"):
    raise ValueError(f"There is no scale {argument!r} here: give quick or full.")
  variants: list = [("dense", condensed_fields("dense"))]
  for sparsity in (0.7, 0.8, 0.9):
    others = ("static_fan_in", "srigl_no_ablation") if sparsity == 0.9 else ()
    for method in ("rigl", *others):
      variants.append(_variant(method, method, sparsity))
    for gamma in (0.3, 0.9) if sparsity == 0.9 else (0.3,):
      kwargs = {"gamma_sal": gamma}
      variants.append(_variant(f"srigl_{gamma:g}", "srigl", sparsity, kwargs=kwargs))
  base = gpt_gcide.get_config("quick" if argument == "quick" else "srigl")
  base.model.kwargs.scan = False
  if argument == "quick":
    base.train.total_epochs = 0.0348
  return ConfigDict(
    {
      "name": f"Language model ({argument})",
      "study": "sparsity",
      "base": base,
      "variants": tuple(variants),
      "seeds": (0, 1, 2, 3, 4) if argument == "quick" else (0, 1, 2),
      "comparisons": (
        ("srigl_0.3", "rigl"),
        ("srigl_0.3", "srigl_no_ablation"),
        ("srigl_0.3", "static_fan_in"),
        ("srigl_0.9", "srigl_0.3"),
      ),
    }
  )


def _variant(name: str, method: str, sparsity: float, **changes) -> tuple:
  axes = {"axes": {"method": name, "sparsity": sparsity}}
  fields = condensed_fields(method, sparsity=sparsity, **changes)
  return (f"{name}_{100 * sparsity:g}", fields, axes)
