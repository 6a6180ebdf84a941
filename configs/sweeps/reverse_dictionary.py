"""A head of 236,148 words: dense against constant fan-in, static, SET and SRigL.

`python -m experiments.sweep --config=configs/sweeps/reverse_dictionary.py:quick --workdir=runs/rd`

Arguments: `wide` (the config's `:quick`: an embedding of 1024, of which words have 32 connections,
`srigl_16` 16; 30 runs, dense six minutes each on a core, others two to three), `quick` (an
embedding of 256, and more methods; 30 runs, of SRigL a minute each on two cores), and `full`, hours
for each. The data set of the first two is that of `experiments.build_reverse_dictionary
--out=runs/words --num_words=5000 --num_test=2000`, of `full` that of `--out=runs/dictionary`.

`_256` has an embedding of 256, `srigl_intermediate` a layer between embedding and head, and
`srigl_shared` masks and one set of inputs for each 16 words (HASTE's structure).
"""

from ml_collections import ConfigDict

from configs import reverse_dictionary
from configs.sweeps import fields

_NARROW = {"model": {"kwargs": {"width": 256}}}
_QUICK = _NARROW | {"method": {"sparsity": 0.875, "update_every_steps": 25}}
_DENSE = fields("dense", engine="masked")
# This rate was chosen for an embedding of 1024, docs/extreme_classification.md says how.
_WIDE_DENSE = _DENSE | {"optimizer": {"learning_rate": 2e-3}}
_STATIC = fields("static", kwargs={"structure": "constant_fan_in"})


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep of an argument."""
  if argument not in ("wide", "quick", "full"):
    raise ValueError(f"The argument is {argument!r}; give wide, quick or full.")
  base = reverse_dictionary.get_config("srigl" if argument == "full" else "quick")
  base.data.data_dir = "runs/dictionary" if argument == "full" else "runs/words"
  if argument == "quick":
    base.update(ConfigDict(_QUICK))
  dense = _DENSE if argument == "quick" else _WIDE_DENSE
  variants, comparisons = _of_widths() if argument == "wide" else _of_methods(dense)
  return ConfigDict(
    {
      "name": f"Reverse dictionary ({argument})",
      "base": base,
      "variants": variants,
      "seeds": (0, 1, 2, 3, 4),
      "comparisons": comparisons,
    }
  )


def _of_widths() -> tuple:
  """Variants and comparisons: few connections of a wide embedding or of a narrow one."""
  variants = (
    ("dense", _WIDE_DENSE),
    ("dense_256", _DENSE | _NARROW),
    ("static", _STATIC),
    ("srigl", fields("srigl")),
    ("srigl_16", fields("srigl", sparsity=1 - 16 / 1024)),
    ("srigl_256", fields("srigl", sparsity=1 - 32 / 256) | _NARROW),
  )
  return variants, (
    ("srigl", "dense"),
    ("srigl", "dense_256"),
    ("srigl_16", "dense_256"),
    ("srigl", "static"),
    ("srigl", "srigl_256"),
  )


def _of_methods(dense: dict) -> tuple:
  """Variants and comparisons of methods, and of what is between the embedding and the head."""
  variants = (
    ("dense", dense),
    ("static", _STATIC),
    ("set", fields("set")),
    ("srigl", fields("srigl")),
    ("srigl_intermediate", fields("srigl") | {"model": {"kwargs": {"hidden": (256,)}}}),
    ("srigl_shared", fields("srigl_shared", engine="masked")),
  )
  return variants, (
    ("srigl", "dense"),
    ("srigl", "static"),
    ("srigl", "set"),
    ("srigl_intermediate", "srigl"),
    ("srigl_shared", "srigl"),
  )
