"""The scales that studies come in: minutes on a few CPU cores, or the paper's networks on a GPU."""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import cifar10_mlp, cifar10_resnet18, cifar10_tiny, cifar10_wrn22
from experiments.training.methods import METHODS, PRESETS

RUNS = {
  "quick": cifar10_tiny,
  "mlp": cifar10_mlp,
  "resnet18": cifar10_resnet18,
  "wrn22": cifar10_wrn22,
}
"""`--config=configs/sweeps/NAME.py:SCALE`."""

PAPER_SEEDS = (8746, 6037, 7303, 2078, 42)
STUDY_SEEDS = tuple(range(8))  # of the `mlp` scale, see docs/studies/protocol.md
CHOOSING_SEEDS = (100, 101)  # of runs on the validation part, by which settings are chosen

# 3 × 2 FLOPs for each multiply-accumulate of an image, at an eighth of an H100's bfloat16 rate.
_IMAGES_PER_S = {"resnet18": 37_000.0, "wrn22": 130_000.0}
_SOURCE = "assumed for one H100: an eighth of its bfloat16 matrix rate; not measured"


def study(name: str, kind: str, scale: str, variants, *, quick_seeds=(0, 1, 2)) -> ConfigDict:
  """A sweep's config.

  Args:
    name: title of the report.
    kind: of study, a key of `experiments.sweeps.spec.STUDIES`.
    scale: a key of `RUNS`.
    variants: see `experiments.sweeps.spec.variants_of`.
    quick_seeds: at the quick scale; `mlp` takes eight, the others the paper's five.
  """
  if scale not in RUNS:
    raise ValueError(f"There is no scale {scale!r} here: give one of {', '.join(RUNS)}.")
  run = RUNS[scale].get_config("srigl")
  sweep = {
    "name": f"{name} ({scale})",
    "study": kind,
    "base": run,
    "variants": tuple(variants),
    "seeds": {"quick": quick_seeds, "mlp": STUDY_SEEDS}.get(scale, PAPER_SEEDS),
  }
  if scale in _IMAGES_PER_S:
    run.model.dtype = "bfloat16"
    sweep |= {"images_per_s": _IMAGES_PER_S[scale], "images_per_s_source": _SOURCE}
  return ConfigDict(sweep)


def fields(method: str, *, kwargs: Mapping[str, Any] | None = None, **changes) -> dict:
  """A method or preset as differences from a run's config.

  Args:
    method: a key of `experiments.training.methods.METHODS` or of its `PRESETS`.
    kwargs: arguments of the method that differ.
    **changes: other fields of the method section that differ.
  """
  chosen = PRESETS.get(method, {"name": method})
  return {"method": chosen | changes | {"kwargs": chosen.get("kwargs", {}) | dict(kwargs or {})}}


def condensed_fields(method: str, **changes: Any) -> dict:
  """As `fields`, in condensed form if the method has one, in a fraction of the time.

  `set` keeps a constant fan-in then; of `static`, name the preset that does, `static_fan_in`.
  """
  name = PRESETS.get(method, {"name": method})["name"]
  engine = "condensed" if METHODS[name].condensed else "masked"
  return fields(method, engine=engine, **changes)


def methods_at(sparsities: Iterable[float], *, srigl_below: float = 1.0) -> tuple:
  """Variants: dense, and static, RigL and SRigL at each sparsity.

  Args:
    sparsities: of them.
    srigl_below: the sparsity from which SRigL is left out.
  """
  variants: list = [("dense", fields("dense"))]
  for sparsity in sparsities:
    for method in ("static", "rigl", *(("srigl",) if sparsity < srigl_below else ())):
      axes = {"axes": {"method": method, "sparsity": sparsity}}
      name = f"{method}_{100 * sparsity:g}"
      variants.append((name, fields(method, sparsity=sparsity), axes))
  return tuple(variants)


def update_schedules(intervals: Iterable[int], sparsity: float = 0.95) -> tuple:
  """Variants: SRigL with each ΔT, in steps, and T_end at a quarter, three quarters and the end."""
  variants = []
  for every in intervals:
    for until in (0.25, 0.75, 1.0):
      changes = {"update_every_steps": every, "update_until_fraction": until}
      axes = {"axes": {"method": f"ΔT {every}, T_end {until:g}", "sparsity": sparsity}}
      variants.append((f"{every}_{until:g}", fields("srigl", sparsity=sparsity, **changes), axes))
  return tuple(variants)


def on_validation_part(sweep: ConfigDict) -> ConfigDict:
  """The sweep with a tenth of the training images held out to be tested on, and other seeds."""
  sweep.base.data.validation_fraction = 0.1
  sweep.seeds = CHOOSING_SEEDS
  return sweep
