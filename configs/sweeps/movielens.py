"""Sparse tables of users and items: whether connections move, and whether between rows too.

`python -m experiments.sweep --config=configs/sweeps/movielens.py:quick --workdir=runs/ratings`

The data set is that of `experiments.build_movielens --out=runs/movielens`. Dense tables of full
size and of equal budget (as many weights), SET and RigL, whose rows may have any number of
connections, a static constant fan-in and SRigL, whose rows have 8 each. Scales: `quick` (150
epochs, seconds for each run) and `full` (400). `rate` is what learning rates and weight decays were
chosen by, on the validation items and another seed: the best of each kind of table.
"""

from ml_collections import ConfigDict

from configs import movielens
from configs.sweeps import CHOOSING_SEEDS, fields

_NARROW = {"model": {"kwargs": {"width": 8}}}  # as many weights as 12.5 % of 64
_KINDS = {
  "dense": fields("dense"),
  "narrow": fields("dense") | _NARROW,
  "rigl": fields("rigl"),
  "srigl": fields("srigl"),
}
_CHOSEN = {
  "dense": (0.01, 1e-4),
  "narrow": (0.03, 1e-4),
  "rigl": (0.03, 1e-4),
  "srigl": (0.03, 3e-4),
}
_TRIED = ((0.01, 1e-5), (0.03, 1e-5), (0.01, 1e-4), (0.03, 1e-4), (0.03, 3e-4))


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full", "rate"):
    raise ValueError(f"There is no scale {argument!r} here: give quick, full or rate.")
  base = movielens.get_config("srigl" if argument == "full" else "quick")
  base.data.data_dir = "runs/movielens"
  if argument == "rate":
    base.data.kwargs.held_out = "validation"
    variants = [
      (f"{kind}_{rate:g}_{decay:g}", changes | _optimizer(rate, decay))
      for rate, decay in _TRIED
      for kind, changes in _KINDS.items()
    ]
    name, comparisons = "MovieLens, learning rates and weight decays", ()
  else:
    # A method without settings of its own has those of its kind of rows.
    kinds = {"set": "rigl", "static_fan_in": "srigl"}
    changes = _KINDS | {method: fields(method) for method in kinds}
    order = ("dense", "narrow", "static_fan_in", "set", "rigl", "srigl")
    variants = [
      (method, changes[method] | _optimizer(*_CHOSEN[kinds.get(method, method)]))
      for method in order
    ]
    name = f"MovieLens ({argument})"
    comparisons = (
      ("rigl", "srigl"),
      ("rigl", "narrow"),
      ("srigl", "narrow"),
      ("rigl", "set"),
      ("srigl", "static_fan_in"),
      ("dense", "rigl"),
    )
  return ConfigDict(
    {
      "name": name,
      "base": base,
      "variants": tuple(variants),
      "seeds": CHOOSING_SEEDS[:1] if argument == "rate" else tuple(range(5)),
      "comparisons": comparisons,
    }
  )


def _optimizer(rate: float, decay: float) -> dict:
  return {"optimizer": {"learning_rate": rate, "weight_decay": decay}}
