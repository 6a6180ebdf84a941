"""A denoising network at 90 %: methods side by side, paired by seed.

`python -m experiments.sweep --config=configs/sweeps/diffusion.py:quick --workdir=runs/diffusion`

Scales: `quick` (2 blocks of 128: 20 runs of half a minute) and `full` (3 blocks of 256). After a
scale, `-choose` has the runs by which the settings were chosen, on a validation part.
"""

from ml_collections import ConfigDict

from configs import diffusion_digits
from configs.sweeps import fields, on_validation_part

RATES = (1e-3, 3e-3, 1e-2)
METHODS = ("dense", "static", "rigl", "srigl")


def get_config(argument: str = "quick") -> ConfigDict:
  """The sweep at a scale."""
  scale, _, what = argument.partition("-")
  if scale not in ("quick", "full") or what not in ("", "choose"):
    raise ValueError(f"The argument is {argument!r}; give quick or full, and -choose if wanted.")
  sweep = ConfigDict(
    {
      "name": f"Denoising diffusion on digits ({scale})",
      "study": "methods",
      "base": diffusion_digits.get_config("quick" if scale == "quick" else "srigl"),
      "variants": tuple((method, fields(method)) for method in METHODS),
      "seeds": (0, 1, 2, 3, 4),
      "comparisons": (
        ("srigl", "dense"),
        ("srigl", "rigl"),
        ("srigl", "static"),
        ("rigl", "static"),
      ),
    }
  )
  if not what:
    return sweep
  sweep.comparisons = ()
  at = lambda rate: {"optimizer": {"learning_rate": rate}}
  sweep.variants = (
    *((f"{m}_{rate:g}", fields(m) | at(rate)) for m in ("dense", "srigl") for rate in RATES),
    *((f"srigl_gamma_{g:g}", fields("srigl", kwargs={"gamma_sal": g})) for g in (0.7, 0.9)),
  )
  return on_validation_part(sweep)
