"""A message-passing network at 90 % sparsity: dense, static, RigL and SRigL.

`python -m experiments.sweep --config=configs/sweeps/graph_wordnet.py:quick --workdir=runs/graphs`

Scales: `quick` (layers of 64, one epoch: less than a minute for each of 20 runs on two cores) and
`full` (layers of 128, five epochs). `rate` is what learning rates were chosen by, on the validation
nodes and another seed; static has that of the other sparse ones. WordNet elsewhere than in
/usr/share/wordnet: `--config.base.data.data_dir=FOLDER`.
"""

from ml_collections import ConfigDict

from configs import graph_wordnet
from configs.sweeps import CHOOSING_SEEDS, fields

_RATES = (0.003, 0.01, 0.03, 0.1)
_CHOSEN = {"dense": 0.01, "static": 0.03, "rigl": 0.03, "srigl": 0.03}


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  if argument not in ("quick", "full", "rate"):
    raise ValueError(f"There is no scale {argument!r} here: give quick, full or rate.")
  base = graph_wordnet.get_config("srigl" if argument == "full" else "quick")
  methods = ("dense", "static", "rigl", "srigl")
  rates = lambda rate: {"optimizer": {"learning_rate": rate}}
  sweep = {"name": f"WordNet's graph ({argument})", "base": base}
  if argument == "rate":
    base.data.kwargs.held_out = "validation"
    variants = tuple(
      (f"{method}_{rate:g}", fields(method) | rates(rate))
      for rate in _RATES
      for method in methods
      if method != "static"
    )
    return ConfigDict(sweep | {"variants": variants, "seeds": CHOOSING_SEEDS[:1]})
  return ConfigDict(
    sweep
    | {
      "variants": tuple((method, fields(method) | rates(_CHOSEN[method])) for method in methods),
      "seeds": tuple(range(5)),
      "comparisons": (("srigl", "rigl"), ("dense", "srigl"), ("srigl", "static")),
    }
  )
