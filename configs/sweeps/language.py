"""Sparsity of a language model: methods at 70, 80 and 90 %, and SRigL's γ_sal.

`python -m experiments.sweep --config=configs/sweeps/language.py:quick --workdir=runs/language`

Scales: `quick` (3 blocks of 96, two seeds: 32 runs of some minutes on two cores) and `full`
(6 blocks of 384, three seeds: hours for each run).
"""

from ml_collections import ConfigDict

from configs import gpt_gcide
from configs.sweeps import fields


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full"):
    raise ValueError(f"There is no scale {argument!r} here: give quick or full.")
  variants: list = [("dense", fields("dense"))]
  for sparsity in (0.7, 0.8, 0.9):
    place = f"{100 * sparsity:g}"
    axes = lambda method, sparsity=sparsity: {"axes": {"method": method, "sparsity": sparsity}}
    for method in ("rigl", "static", "srigl_no_ablation"):
      variants.append((f"{method}_{place}", fields(method, sparsity=sparsity), axes(method)))
    for gamma in (0.3, 0.9):
      name = f"srigl, γ_sal {gamma:g}"
      kwargs = {"gamma_sal": gamma}
      changes = fields("srigl", sparsity=sparsity, kwargs=kwargs)
      variants.append((f"srigl_{gamma:g}_{place}", changes, axes(name)))
  return ConfigDict(
    {
      "name": f"Language model ({argument})",
      "study": "sparsity",
      "base": gpt_gcide.get_config("quick" if argument == "quick" else "srigl"),
      "variants": tuple(variants),
      "seeds": (0, 1) if argument == "quick" else (0, 1, 2),
    }
  )
