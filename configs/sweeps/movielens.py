"""Sparse tables of users and items: whether connections move, and whether between rows too.

`python -m experiments.sweep --config=configs/sweeps/movielens.py:quick --workdir=runs/ratings`

The data set is that of `experiments.build_movielens --out=runs/movielens`. Dense tables of full
size and of equal budget (as many weights), static ones, SET and RigL, whose rows may have any
number of connections, and SRigL, whose rows have 8 each. Scales: `quick` (150 epochs, seconds for
each run) and `full` (400). `rate` trains with other learning rates and weight decays to be tested
on the validation items, by which those of `configs/movielens.py` were chosen.
"""

from ml_collections import ConfigDict

from configs import movielens
from configs.sweeps import CHOOSING_SEEDS, fields

_NARROW = {"model": {"kwargs": {"width": 8}}}  # as many weights as 12.5 % of 64


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full", "rate"):
    raise ValueError(f"There is no scale {argument!r} here: give quick, full or rate.")
  base = movielens.get_config("srigl" if argument == "full" else "quick")
  base.data.data_dir = "runs/movielens"
  if argument == "rate":
    return _rates(base)
  variants = (
    ("dense", fields("dense")),
    ("narrow", fields("dense") | _NARROW),
    ("static", fields("static")),
    ("static_fan_in", fields("static_fan_in")),
    ("set", fields("set")),
    ("rigl", fields("rigl")),
    ("srigl", fields("srigl")),
  )
  return ConfigDict(
    {
      "name": f"MovieLens ({argument})",
      "base": base,
      "variants": variants,
      "seeds": tuple(range(5)),
      "comparisons": (
        ("rigl", "narrow"),
        ("srigl", "narrow"),
        ("rigl", "static"),
        ("srigl", "static_fan_in"),
        ("rigl", "srigl"),
        ("rigl", "set"),
        ("dense", "rigl"),
      ),
    }
  )


def _rates(base: ConfigDict) -> ConfigDict:
  """Learning rates and weight decays of each kind of table."""
  base.data.kwargs.held_out = "validation"
  kinds = {
    "dense": fields("dense"),
    "narrow": fields("dense") | _NARROW,
    "rigl": fields("rigl"),
    "srigl": fields("srigl"),
  }
  variants = tuple(
    (
      f"{kind}_{rate:g}_{decay:g}",
      changes | {"optimizer": {"learning_rate": rate, "weight_decay": decay}},
    )
    for kind, changes in kinds.items()
    for rate in (0.003, 0.01, 0.03)
    for decay in (1e-6, 1e-5, 1e-4)
  )
  return ConfigDict(
    {
      "name": "MovieLens, learning rates and weight decays",
      "base": base,
      "variants": variants,
      "seeds": CHOOSING_SEEDS[:1],
    }
  )
