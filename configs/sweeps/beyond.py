"""Beyond the paper: 99.5 % and (ResNet-18) 99.9 %, and Erdős–Rényi-Kernel against uniform.

`python -m experiments.sweep --config=configs/sweeps/beyond.py:quick`

Scales: `quick` (a tiny network), `resnet18`, `wrn22`. After a scale, `-distribution` compares the
distributions: at equal parameters, and at equal FLOPs, where uniform keeps more weights than
Erdős–Rényi-Kernel (`method.relative_flops`). At 99.9 % only ResNet-18 has a connection for every
neuron.
"""

from configs.sweeps import fields, study


def get_config(argument: str = "quick"):
  """The sweep at a scale."""
  scale, _, what = argument.partition("-")
  if what not in ("", "distribution"):
    raise ValueError(f"The argument is {argument!r}; give SCALE or SCALE-distribution.")
  if what:
    variants = [
      (f"{method}_{name}", fields(method, **changes))
      for method in ("rigl", "srigl")
      for name, changes in {
        "erk": {"sparsity": 0.9},
        "uniform": {"sparsity": 0.9, "distribution": "uniform"},
        "erk_flops": {"relative_flops": 0.1},
        "uniform_flops": {"relative_flops": 0.1, "distribution": "uniform"},
      }.items()
    ]
    return study("Erdős–Rényi-Kernel against uniform", "methods", scale, variants)
  variants = [
    (
      f"{method}_{100 * sparsity:g}",
      fields(method, sparsity=sparsity),
      {"axes": {"method": method, "sparsity": sparsity}},
    )
    for method in ("static", "rigl", "srigl_no_ablation", "srigl")
    for sparsity in (0.99, 0.995, *((0.999,) if scale == "resnet18" else ()))
  ]
  return study("Beyond 99 %", "sparsity", scale, variants, quick_seeds=(0, 1))
