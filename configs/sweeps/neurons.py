"""What becomes of the neurons: the share that RigL silently ablates, by layer and sparsity.

`python -m experiments.sweep --config=configs/sweeps/neurons.py:quick`

The observation that SRigL's ablation comes from: at high sparsity RigL leaves neurons without any
input, though nobody asked for it. Scales: `quick` (a tiny network, one seed), `resnet18`, `wrn22`
(the paper's settings).
"""

from configs.sweeps import fields, study


def get_config(scale: str = "quick"):
  """The sweep at a scale."""
  variants = [
    (
      f"{method}_{100 * sparsity:g}",
      fields(method, sparsity=sparsity),
      {"axes": {"method": method, "sparsity": sparsity}},
    )
    for method in ("rigl", "srigl")
    for sparsity in (0.8, 0.9, 0.95, 0.98, 0.99, 0.995)
  ]
  return study("Active neurons by layer", "neurons", scale, variants, quick_seeds=(0,))
