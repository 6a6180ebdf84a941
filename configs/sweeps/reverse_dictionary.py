"""A head of 236,148 words: dense against constant fan-in, static, SET and SRigL.

`python -m experiments.sweep --config=configs/sweeps/reverse_dictionary.py:quick --workdir=runs/rd`

The data set is that of `experiments.build_reverse_dictionary --out=runs/dictionary`; at the scale
`quick` (width 256, 3 epochs: 30 runs, of SRigL a minute each on two cores) that of
`--out=runs/words --num_words=5000 --num_test=2000`. `full` has width 512 and 2 epochs: hours for
each. `srigl_shared` has masks, and one set of inputs for each 16 words (HASTE's structure).
"""

from ml_collections import ConfigDict

from configs import reverse_dictionary
from configs.sweeps import fields


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full"):
    raise ValueError(f"There is no scale {argument!r} here: give quick or full.")
  base = reverse_dictionary.get_config("quick" if argument == "quick" else "srigl")
  base.data.data_dir = "runs/words" if argument == "quick" else "runs/dictionary"
  static = {"structure": "constant_fan_in"}
  variants = (
    ("dense", fields("dense", engine="masked")),
    ("static", fields("static", kwargs=static)),
    ("set", fields("set")),
    ("srigl", fields("srigl")),
    ("srigl_intermediate", fields("srigl") | {"model": {"kwargs": {"hidden": (256,)}}}),
    ("srigl_shared", fields("srigl_shared", engine="masked")),
  )
  return ConfigDict(
    {
      "name": f"Reverse dictionary ({argument})",
      "base": base,
      "variants": variants,
      "seeds": (0, 1, 2, 3, 4),
      "comparisons": (
        ("srigl", "dense"),
        ("srigl", "static"),
        ("srigl", "set"),
        ("srigl_intermediate", "srigl"),
        ("srigl_shared", "srigl"),
      ),
    }
  )
