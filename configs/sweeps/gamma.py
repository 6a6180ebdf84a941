"""Accuracy and active neurons against γ_sal at three sparsities, for both saliency conventions.

`python -m experiments.sweep --config=configs/sweeps/gamma.py:quick`

Scales: `quick` (a tiny network), `mlp` (in condensed form, on a validation part of the training
images, with the learning rate that docs/studies/protocol.md chose for SRigL), `resnet18`, `wrn22`.
`dense` after a scale, as in `quick-dense`, takes γ_sal as a share of the dense fan-in instead of
the constant one. `mlp-chosen` is the value that `mlp` recommends, on the test images: to be
compared with 0.3, which is SRigL's in `order.py:epochs`.
"""

from configs.sweeps import condensed_fields, fields, on_validation_part, study
from configs.sweeps.order import LEARNING_RATES

_GAMMAS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95)
_DENSE_GAMMAS = (0.0, 0.005, 0.01, 0.02, 0.05, 0.1)
_MLP_SPARSITIES = (0.95, 0.98, 0.99, 0.995)
_RECOMMENDED = 0.5  # of the MLP: the highest mean in experiments/results/gamma_mlp.json


def get_config(argument: str = "quick"):
  """The sweep at a scale."""
  if argument == "mlp-chosen":
    return _chosen()
  scale, _, dense = argument.partition("-")
  if dense not in ("", "dense"):
    raise ValueError(f"The argument is {argument!r}; give SCALE, SCALE-dense or mlp-chosen.")
  choose = condensed_fields if scale == "mlp" else fields
  base = "dense_fan_in" if dense else "constant_fan_in"
  variants = [
    (
      f"srigl_{100 * sparsity:g}_gamma_{100 * gamma:g}",
      choose("srigl", sparsity=sparsity, kwargs={"gamma_sal": gamma, "salient_base": base}),
      {"axes": {"method": "srigl", "sparsity": sparsity, "gamma_sal": gamma}},
    )
    for sparsity in (_MLP_SPARSITIES if scale == "mlp" else (0.9, 0.95, 0.99))
    for gamma in (_DENSE_GAMMAS if dense else _GAMMAS)
  ]
  name = f"γ_sal as a share of the {'dense' if dense else 'constant'} fan-in"
  sweep = study(name, "gamma", scale, variants, quick_seeds=(0, 1))
  if scale != "mlp":
    return sweep
  sweep.base.optimizer.learning_rate = LEARNING_RATES["srigl"]
  return on_validation_part(sweep)


def _chosen():
  """The value that the validation part recommends, at the study's seeds."""
  name = f"gamma_{100 * _RECOMMENDED:g}"
  variants = [
    (
      f"{name}_{100 * sparsity:g}",
      condensed_fields("srigl", sparsity=sparsity, kwargs={"gamma_sal": _RECOMMENDED}),
      {"axes": {"method": name, "sparsity": sparsity}},
    )
    for sparsity in _MLP_SPARSITIES
  ]
  sweep = study("γ_sal that was chosen", "sparsity", "mlp", variants)
  sweep.base.optimizer.learning_rate = LEARNING_RATES["srigl"]
  return sweep
