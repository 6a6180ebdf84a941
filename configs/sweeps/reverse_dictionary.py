"""A head of 236,148 words: dense against constant fan-in, static, SET and SRigL.

`python -m experiments.sweep --config=configs/sweeps/reverse_dictionary.py:quick --workdir=runs/rd`

The data set is that of `experiments.build_reverse_dictionary --out=runs/dictionary`; at the scale
`quick` (3 epochs: 45 runs, of SRigL two minutes each) that of
`--out=runs/words --num_words=5000 --num_test=2000`. `full` has 2 epochs: hours for each.

The embedding is 1024 wide, and words have 32 connections. Others: `_256` has an embedding of 256,
`srigl_16` 16 connections, `srigl_intermediate` an embedding of 256 and a dense layer to 1024
(Schultheis & Babbar 2023), `srigl_shared` masks and one set of inputs for each 16 words (HASTE's
structure). The learning rate of the wide dense head was chosen as the others', see
docs/extreme_classification.md.
"""

from ml_collections import ConfigDict

from configs import reverse_dictionary
from configs.sweeps import fields

_NARROW = {"model": {"kwargs": {"width": 256}}}


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full"):
    raise ValueError(f"There is no scale {argument!r} here: give quick or full.")
  base = reverse_dictionary.get_config("quick" if argument == "quick" else "srigl")
  base.data.data_dir = "runs/words" if argument == "quick" else "runs/dictionary"
  dense = fields("dense", engine="masked")
  intermediate = {"model": {"kwargs": {"width": 256, "hidden": (1024,)}}}
  variants = (
    ("dense", dense | {"optimizer": {"learning_rate": 2e-3}}),
    ("dense_256", dense | _NARROW),
    ("static", fields("static", kwargs={"structure": "constant_fan_in"})),
    ("set", fields("set")),
    ("srigl", fields("srigl")),
    ("srigl_16", fields("srigl", sparsity=1 - 16 / 1024)),
    ("srigl_256", fields("srigl", sparsity=1 - 32 / 256) | _NARROW),
    ("srigl_intermediate", fields("srigl", dense=("^hidden/",)) | intermediate),
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
        ("srigl", "dense_256"),
        ("srigl_16", "dense_256"),
        ("srigl", "static"),
        ("srigl", "set"),
        ("srigl", "srigl_256"),
        ("srigl_intermediate", "srigl"),
        ("srigl_shared", "srigl"),
      ),
    }
  )
