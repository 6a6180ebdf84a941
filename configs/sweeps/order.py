"""Which method is best, and whether ablation matters, on an MLP wide enough for 99.9 % sparsity.

`python -m experiments.sweep --config=configs/sweeps/order.py`

Questions (a), (b) and (d) of docs/studies/protocol.md, which was written before any of these runs.
Arguments: `all`, `condensed` (without what needs masks: RigL, pruning, dense), `epochs` (of these,
those that train for equally many epochs; the same directory takes the others later, without
repeating a run), `rate` (learning rates, on the validation part) and
`rate-condensed` (of those in condensed form).

Static, SET and SRigL all have a constant fan-in here, so that neighbours in the order differ in one
thing: static and SET in whether connections move, SET and SRigL without ablation in what they grow
by, SRigL without and with it in ablation, RigL and SRigL without it in the constant fan-in. All
train for as many epochs. Those with `_flops` in their name train for as many as make their training
FLOPs those of SRigL at the same sparsity; RigL's are SRigL's anyway.
"""

from configs.sweeps import condensed_fields, on_validation_part, study

_SPARSITIES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_CONDENSED = (
  "static_fan_in", "set", "srigl_no_ablation", "srigl", "small_dense",
  "static_fan_in_flops", "set_flops", "small_dense_flops",
)  # fmt: skip
_MASKED = ("rigl", "gradual_pruning", "gradual_pruning_flops")
_RATED = ("static_fan_in", "set", "srigl", "small_dense")
_RATES = (0.01, 0.02, 0.05, 0.1, 0.2)


def get_config(argument: str = "all"):
  """The sweep of an argument."""
  if argument == "rate":
    return _rates((*_RATED, "rigl", "dense"))
  if argument == "rate-condensed":
    return _rates(_RATED)
  if argument not in ("all", "condensed", "epochs"):
    raise ValueError(
      f"The argument is {argument!r}; give all, condensed, epochs, rate or rate-condensed."
    )
  whole = argument == "all"
  condensed = _CONDENSED[:5] if argument == "epochs" else _CONDENSED
  variants = [("dense", condensed_fields("dense"))] if whole else []
  variants += [
    (
      f"{name}_{100 * sparsity:g}",
      _differences(name, sparsity),
      {"axes": {"method": name, "sparsity": sparsity}},
    )
    for name in (*condensed, *(_MASKED if whole else ()))
    for sparsity in _SPARSITIES
  ]
  sweep = study("Order of the methods", "sparsity", "mlp", variants)
  sweep.comparisons = (("srigl", "srigl_no_ablation"), *([("srigl", "rigl")] if whole else []))
  return sweep


# Of `rate-condensed`, experiments/results/order_rate_condensed.json. SET has 0.1 and 0.2 equal
# there, and 0.2 is SRigL's. Those of what trains with masks are yet to be chosen by `rate`.
LEARNING_RATES = {
  "static_fan_in": 0.1,
  "set": 0.2,
  "srigl_no_ablation": 0.2,
  "srigl": 0.2,
  "small_dense": 0.02,
  "rigl": 0.05,
  "gradual_pruning": 0.05,
}
_EPOCHS = 20.0
_EVERY = 100


def _differences(name: str, sparsity: float) -> dict:
  """A method from the base, and how long it trains.

  All layers of an MLP cost a multiply-accumulate for each weight, so that the relative FLOPs of a
  forward pass are the density.
  """
  method = name.removesuffix("_flops")
  rate = {"optimizer": {"learning_rate": LEARNING_RATES[method]}}
  if name == method:
    return condensed_fields(method, sparsity=sparsity) | rate
  density = 1 - sparsity
  relative, every = density, _EVERY
  if method == "gradual_pruning":
    # Dense for a tenth of the run, then falling by a cubic until T_end, three quarters of it.
    relative = 0.1 + 0.65 * (density + (1 - density) / 4) + 0.25 * density
    every = 10  # of few steps, or it would not prune
  # As `srigl_jax.training_flops`: one step in ΔT + 1 forms the dense gradient for an update.
  of_srigl = (3 * density * _EVERY + 4 * density + 1) / (3 * (_EVERY + 1))
  return (
    condensed_fields(method, sparsity=sparsity, update_every_steps=every)
    | rate
    | {"train": {"total_epochs": _EPOCHS * of_srigl / relative}}
  )


def _rates(methods: tuple[str, ...]):
  """Learning rates of methods, at the middle of the sparsities."""
  variants = [
    (
      f"{method}_{rate:g}",
      condensed_fields(method, sparsity=0.98) | {"optimizer": {"learning_rate": rate}},
      {"axes": {"method": method, "learning_rate": rate}},
    )
    for method in methods
    for rate in _RATES
  ]
  return on_validation_part(study("Learning rates", "rate", "mlp", variants))
