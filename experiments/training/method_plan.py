"""From the `method` section of a config to a transformation, and what the loop must know of it."""

import inspect
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict, config_dict

import srigl_jax as sx
from experiments.common import old_configs
from experiments.common.registry import check_arguments, choose
from experiments.training.methods import METHODS, PRESETS, Method
from srigl_jax.layer_filters import find_layers, select
from srigl_jax.structures import Structure, as_structure

_HOW_SPARSE = ("sparse", "sparsity", "distribution")
_NOT_IN_CONFIGS = ("density", "axes", "initial")  # no plain values, or another field says it


class Plan(NamedTuple):
  """What the training loop must know of a run's method.

  Attributes:
    method: its row of `METHODS`.
    updates: optimizer steps after which masks may change.
    rounds: of a lottery ticket, or the tasks of continual learning; None for other methods.
    total_steps: optimizer steps of the run.
    stages: see `tasks.Task`.
  """

  method: Method
  updates: range
  rounds: sx.Rounds | None
  total_steps: int
  stages: int = 1

  def last_update(self, step: int) -> int:
    """The last step up to optimizer step `step` after which masks may have changed, or 0."""
    done = self.updates[: max(0, (step - self.updates.start) // self.updates.step + 1)]
    return done[-1] if done else 0

  @property
  def sparse_from(self) -> int:
    """The optimizer step from which the network is as sparse as asked for.

    Earlier accuracies are those of a denser network, and no candidates for the best one.
    """
    starts_dense = self.method.flops == "mean"
    return self.updates[-1] if starts_dense and self.updates else 0

  @property
  def schedule_steps(self) -> int:
    """Optimizer steps that the learning rate's schedule is made for."""
    return self.rounds.length if self.rounds else self.total_steps

  def schedule_step(self, step: int) -> int:
    """The inner optimizer's count, which its schedule follows, after `step` optimizer steps."""
    return self.rounds.inner_step(step) if self.rounds else step

  def training_flops(
    self, inference: float, *, update_every: int, history: Mapping[int, float]
  ) -> float:
    """Training FLOPs of the run as a fraction of dense training's.

    Args:
      inference: FLOPs of a forward pass in the end, as a fraction of dense ones.
      update_every: ΔT in optimizer steps.
      history: `{optimizer step: the same fraction from then on}`, for networks that start dense.
    """
    if self.method.flops == "mean":
      return sx.mean_flops(history, self.total_steps)
    convention = self.method.flops
    return sx.training_flops(inference, update_every=update_every, convention=convention)


def plan_method(config: ConfigDict, *, total_steps: int, stages: int = 1) -> Plan:
  """What the training loop must know of a method.

  Args:
    config: the `method` section.
    total_steps: optimizer steps of the run.
    stages: see `tasks.Task`.

  Raises:
    ValueError: if the method's name or an argument is unknown, or the steps are too few for it.
  """
  given = arguments_of(config, total_steps=total_steps, stages=stages)
  given |= {"total_steps": total_steps, "stages": stages}
  method = METHODS[config.name]
  rounds = method.rounds(given) if method.rounds else None
  return Plan(method, method.updates(given), rounds, total_steps, stages)


def preset_names() -> list[str]:
  """What may stand behind the colon: every method, and the presets."""
  return list(dict.fromkeys([*METHODS, *PRESETS]))


def preset(name: str) -> dict[str, Any]:
  """The fields of `config.method` that a method or preset decides, all of its `kwargs` among them.

  Raises:
    ValueError: if there is none of that name.
  """
  if name not in preset_names():
    raise ValueError(f"There is no method {name!r} here: give one of {', '.join(preset_names())}.")
  fields = PRESETS.get(name, {"name": name})
  own = own_arguments(fields["name"])
  kwargs = {k: config_dict.placeholder(int) if v is None else v for k, v in own.items()}
  return fields | {"kwargs": kwargs | fields.get("kwargs", {})}


def own_arguments(name: str) -> dict[str, Any]:
  """The arguments that `config.method.kwargs` may give, by name, with their defaults.

  Raises:
    ValueError: if there is no method of that name.
  """
  function = choose(METHODS, name, "config.method.name").function
  _, *own = inspect.signature(function).parameters.values()
  taken = {*common_arguments(ConfigDict({}), 0, 0), *_NOT_IN_CONFIGS}
  return {p.name: p.default for p in own if p.name not in taken and p.kind != p.VAR_KEYWORD}


def common_arguments(
  config: ConfigDict, total_steps: int, seed: int, stages: int = 1
) -> dict[str, Any]:
  """What the `method` section says to every method whose signature has an argument of the name."""
  kwargs = config.get("kwargs", {})
  structure = as_structure(kwargs.get("structure", "unstructured"))
  return {
    "total_steps": total_steps,
    "stages": stages,
    "seed": seed,  # of masks and random growth
    "sparsity": config.get("sparsity"),
    "distribution": config.get("distribution"),
    # Configs name methods for any model: layers that blocks do not fit are left out.
    "sparse": sx.all_but(
      *config.get("dense", ()),
      inputs_multiple_of=kwargs.get("m") or structure.block_size or 1,
    ),
    "ablate": sx.all_but(*config.get("never_ablate", ())),
    "update_every": config.get("update_every_steps"),
    "update_until": int(config.get("update_until_fraction", 0) * total_steps),
    "drop_fraction": config.get("drop_fraction"),
    "grad_accumulation_steps": config.get("grad_accumulation_steps"),
  }


def arguments_of(
  config: ConfigDict, *, total_steps: int, seed: int = 0, stages: int = 1
) -> dict[str, Any]:
  """All arguments of the config's method, fractions of the run turned into steps.

  Raises:
    ValueError: if the method's name or an argument is unknown.
  """
  method = choose(METHODS, config.name, "config.method.name")
  old_configs.refuse_old_fields(config)
  first, *parameters = inspect.signature(method.function).parameters.values()
  common = common_arguments(config, total_steps, seed, stages)
  kwargs = config.kwargs.to_dict()
  check_arguments(
    method.function,
    kwargs,
    reserved=[first.name, *common, *_NOT_IN_CONFIGS],
    what=f"config.method.kwargs of {config.name!r}",
    hint=f" --config=FILE:{config.name} brings those of the method.",
  )
  given = {k: v for k, v in (own_arguments(config.name) | kwargs).items() if v is not None}
  takes = {p.name for p in parameters}
  if any(p.kind == p.VAR_KEYWORD for p in parameters):
    takes |= set(_HOW_SPARSE)
  if "fan_in" in given:  # which is in their place
    takes -= {"sparsity", "distribution"}
  return {k: v for k, v in common.items() if k in takes} | given


def check_layer_names(config: ConfigDict, params: Any) -> None:
  """Checks the `method` section's names of layers where the messages can name its fields.

  Args:
    config: the section.
    params: parameter tree of the model.

  Raises:
    ValueError: if a name fits no layer.
  """
  given, layers = arguments_of(config, total_steps=1), find_layers(params)
  for argument, field in (("sparse", "dense"), ("ablate", "never_ablate")):
    if argument in given:
      select(sx.only(*config.get(field, ())), layers, name=f"config.method.{field}")


_CONFIG_TERMS = (
  (
    r"lower the sparsity, or use distribution=",
    "lower config.method.sparsity, or use config.method.distribution=",
  ),
  (r"sparse=all_but\(('[^']*')\)", r'--config.method.dense="(\1,)"'),
  (
    r"give fan-ins with fan_in=\.\.\., or densities with distribution=\{path: density\}",
    "give the connections of each neuron with config.method.kwargs.fan_in, if the method has it",
  ),
)


def in_config_terms(message: str) -> str:
  """A message of the library with the fields of a config in place of its arguments."""
  for pattern, said in _CONFIG_TERMS:
    message = re.sub(pattern, said, message)
  return message


def with_sparsity(
  config: ConfigDict, params: Any, macs: Mapping[str, int], *, structure: Structure | None = None
) -> ConfigDict:
  """The `method` section with the sparsity that `relative_flops` asks for, if it does.

  Args:
    config: the section.
    params: parameter tree of the model.
    macs: dense multiply-accumulates of an example, by path.
    structure: of the layers, if it is not the method's.

  Raises:
    ValueError: if these FLOPs cannot be reached.
  """
  if config.get("relative_flops") is None:
    return config
  given = arguments_of(config, total_steps=1)
  if not {"sparsity", "distribution"} <= given.keys():
    raise ValueError(
      f"config.method.relative_flops is {config.relative_flops}, but the sparsity of "
      f"{config.name} with config.method.kwargs {config.kwargs.to_dict()} is not its own to "
      "choose: leave it out, or use a method that config.method.sparsity and distribution decide."
    )
  changed = ConfigDict(config.to_dict())
  changed.sparsity = sx.sparsity_for_flops(
    params,
    macs,
    config.relative_flops,
    config.distribution,
    structure=structure or given.get("structure", "unstructured"),
    sparse=given["sparse"],
  )
  return changed


def make_method(
  config: ConfigDict,
  inner: optax.GradientTransformation,
  *,
  total_steps: int,
  seed: int,
  stages: int = 1,
) -> optax.GradientTransformationExtraArgs:
  """Wraps the inner optimizer in the config's method.

  Args:
    config: the `method` section.
    inner: the optimizer, its schedule made for `Plan.schedule_steps`.
    total_steps: optimizer steps of the run.
    seed: of masks and random growth.
    stages: see `tasks.Task`.

  Raises:
    ValueError: if the method's name or an argument is unknown, or a setting out of range.
  """
  given = arguments_of(config, total_steps=total_steps, seed=seed, stages=stages)
  function = METHODS[config.name].function
  return function(inner, **given)
