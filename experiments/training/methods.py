"""From a config to a sparse training method, and what the training loop must know of it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments.common.registry import choose


class Method(NamedTuple):
  """A row of `METHODS`; `config` is the `method` section, `steps` the optimizer steps of the run.

  Attributes:
    function: `(inner, **arguments) -> transformation`.
    arguments: `(config, steps) -> arguments`, a function for each group of them.
    updates: `(config, steps) -> range` of the optimizer steps after which masks may change.
    flops: how to count training FLOPs: a convention of `sx.training_flops`, or `"mean"`, the mean
      over the run (`sx.mean_flops`).
    takes_seed: whether anything is random: the first masks, or growth.
    has_masks: whether there are masks at all.
    draws_weights: whether the weights may be drawn anew for the masks of step 0
      (`sx.init_sparse_weights`); not if the method starts dense or keeps the weights it is given.
  """

  function: Callable[..., optax.GradientTransformationExtraArgs]
  arguments: tuple[Callable[[ConfigDict, int], dict[str, Any]], ...]
  updates: Callable[[ConfigDict, int], range]
  flops: str = "static"
  takes_seed: bool = True
  has_masks: bool = True
  draws_weights: bool = True


class Plan(NamedTuple):
  """What the training loop must know of a run's method.

  Attributes:
    method: its row of `METHODS`.
    updates: optimizer steps after which masks may change.
    rounds: of a lottery ticket; None for other methods.
    total_steps: optimizer steps of the run.
  """

  method: Method
  updates: range
  rounds: sx.Rounds | None
  total_steps: int

  def last_update(self, step: int) -> int:
    """The last step up to optimizer step `step` after which masks may have changed, or 0."""
    done = self.updates[: max(0, (step - self.updates.start) // self.updates.step + 1)]
    return done[-1] if done else 0

  @property
  def sparse_from(self) -> int:
    """The optimizer step from which the network is as sparse as asked for.

    Accuracies of before are those of a denser network, and no candidates for the best one.
    """
    starts_dense = self.method.flops == "mean"
    return self.updates[-1] if starts_dense and self.updates else 0

  @property
  def schedule_steps(self) -> int:
    """Optimizer steps that the learning rate's schedule is made for."""
    return self.rounds.length if self.rounds else self.total_steps

  def schedule_step(self, step: int) -> int:
    """The inner optimizer's count, which its schedule goes by, after `step` optimizer steps."""
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


def plan_method(config: ConfigDict, *, total_steps: int) -> Plan:
  """What the training loop must know of a method.

  Args:
    config: the `method` section.
    total_steps: optimizer steps of the run.

  Raises:
    ValueError: if the method's name is unknown, or the steps are too few for it.
  """
  method = choose(METHODS, config.name, "config.method.name")
  rounds = _rounds(config, total_steps) if config.name == "lottery" else None
  return Plan(method, method.updates(config, total_steps), rounds, total_steps)


def with_sparsity(config: ConfigDict, params: Any, macs: Mapping[str, int]) -> ConfigDict:
  """The `method` section with the sparsity that `relative_flops` asks for, if it does.

  Args:
    config: the section.
    params: parameter tree of the model.
    macs: dense multiply-accumulates of an example, by path.

  Raises:
    ValueError: if these FLOPs cannot be reached.
  """
  if config.get("relative_flops") is None:
    return config
  if config.name not in _STRUCTURES or config.fan_in is not None:
    raise ValueError(
      f"config.method.relative_flops is {config.relative_flops}, but the sparsity of "
      f"{config.name} with fan_in {config.fan_in} is not its own to choose: leave it out, or use "
      f"one of {', '.join(_STRUCTURES)} without fan_in."
    )
  given = ConfigDict(config.to_dict())
  given.sparsity = sx.sparsity_for_flops(
    params,
    macs,
    config.relative_flops,
    config.distribution,
    structure=_STRUCTURES[config.name] or config.structure,
    **_which(config, 0),
  )
  return given


def make_method(
  config: ConfigDict, inner: optax.GradientTransformation, *, total_steps: int, seed: int
) -> optax.GradientTransformationExtraArgs:
  """Wraps the inner optimizer in the config's method.

  Args:
    config: the `method` section.
    inner: the optimizer, its schedule made for `Plan.schedule_steps`.
    total_steps: optimizer steps of the run.
    seed: of masks and random growth.

  Raises:
    ValueError: if the method's name is unknown or a setting is out of range.
  """
  method = choose(METHODS, config.name, "config.method.name")
  if config.fan_in is not None and config.name in _NO_FAN_IN:
    raise ValueError(
      f"config.method.fan_in is {config.fan_in}, but {config.name} is {_NO_FAN_IN[config.name]}, "
      "or method srigl or static."
    )
  arguments: dict[str, Any] = {"seed": seed} if method.takes_seed else {}
  for group in method.arguments:
    arguments |= group(config, total_steps)
  return method.function(inner, **arguments)


_STRUCTURES = {
  "srigl": "constant_fan_in",
  "static": "",  # as the config says
  **dict.fromkeys(("set", "rigl", "snfs", "gradual_pruning", "one_shot"), "unstructured"),
}
_UNSTRUCTURED = "unstructured: its neurons have no fan-in of their own. Use config.method.sparsity"
_IN_BLOCKS = "sparse in blocks of inputs. Use config.method.block_fan_in and block_size"
_NO_FAN_IN = {
  **dict.fromkeys(("set", "rigl", "snfs", "gradual_pruning", "one_shot", "lottery"), _UNSTRUCTURED),
  **dict.fromkeys(("nm_srigl", "sr_ste"), _IN_BLOCKS),
}


# ---------------------------------------------------------------- arguments from the config


def _fields(*names: str) -> Callable[[ConfigDict, int], dict[str, Any]]:
  """Arguments named as the config's fields are."""
  return lambda config, steps: {name: config[name] for name in names}


def _which(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {"sparse": sx.all_but(*config.dense) if config.dense else True}


def _how_sparse(config: ConfigDict, steps: int) -> dict[str, Any]:
  if config.fan_in is not None:
    return _which(config, steps) | {"fan_in": config.fan_in}
  return _which(config, steps) | {
    "sparsity": config.sparsity,
    "distribution": config.distribution,
  }


def _n_of_m(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {
    "n": config.block_fan_in,
    "m": config.block_size,
    # Configs name methods for any model: layers that blocks do not fit are left out.
    "sparse": sx.all_but(*config.dense, inputs_multiple_of=config.block_size),
  }


def _when(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {
    "update_every": config.update_every_steps,
    "update_until": int(config.update_until_fraction * steps),
    "drop_fraction": config.drop_fraction,
  }


def _by_gradient(config: ConfigDict, steps: int) -> dict[str, Any]:
  return _when(config, steps) | {"grad_accumulation_steps": config.grad_accumulation_steps}


def _ablation(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {
    "gamma_sal": config.gamma_sal if config.ablation else 0,
    "ablate": sx.all_but(*config.never_ablate),
  }


def _prune_step(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {"prune_step": max(1, int(config.prune_at_fraction * steps))}


def _gradually(config: ConfigDict, steps: int) -> dict[str, Any]:
  return {
    "begin_step": int(config.prune_from_fraction * steps),
    "end_step": int(config.update_until_fraction * steps),
    "update_every": config.update_every_steps,
  }


def _in_rounds(config: ConfigDict, steps: int) -> dict[str, Any]:
  rounds = _rounds(config, steps)
  return {
    "steps_per_round": rounds.length,
    "rounds": rounds.num_prunings,
    "rewind_step": rounds.rewind_step,
    "sparsity": config.sparsity,
  }


def _rounds(config: ConfigDict, steps: int) -> sx.Rounds:
  """The longest rounds that so many steps have room for.

  Raises:
    ValueError: if they have room for none.
  """
  if config.rounds < 1 or not 0 <= config.rewind_fraction < 1:
    raise ValueError(
      f"config.method.rounds is {config.rounds} and config.method.rewind_fraction "
      f"{config.rewind_fraction}; they must be 1 or more, and in [0, 1)."
    )
  rounds = lambda length: sx.Rounds(length, config.rounds, int(config.rewind_fraction * length))
  length = int(steps / (1 + config.rounds * (1 - config.rewind_fraction)))
  while length and rounds(length).total_steps > steps:
    length -= 1
  if not length:
    raise ValueError(
      f"{steps} optimizer steps are too few for the {config.rounds} rounds of a lottery ticket and "
      "the training behind them: raise config.train.total_epochs or lower config.method.rounds."
    )
  return rounds(length)


def _masks(config: ConfigDict, steps: int) -> dict[str, Any]:
  """The masks of another run."""
  from experiments.training.load_run import load_trained  # which trains by way of this module

  workdir = config.masks_from
  if not workdir:
    raise ValueError(
      "config.method.masks_from is empty: give the work directory of the run whose masks "
      "fixed_masks is to train anew."
    )
  if not (Path(workdir) / "results.json").exists():
    raise ValueError(
      f"config.method.masks_from names {workdir}, which holds no finished run: let it come to its "
      "end first."
    )
  masks = load_trained(Path(workdir)).masks
  if not masks:
    raise ValueError(f"config.method.masks_from names {workdir}, a dense run: it has no masks.")
  return {"masks": masks}


# ---------------------------------------------------------------- what happens when


def _never(config: ConfigDict, steps: int) -> range:
  return range(0)


def _regularly(config: ConfigDict, steps: int) -> range:
  every = max(1, config.update_every_steps)
  return range(every, int(config.update_until_fraction * steps), every)


def _always(config: ConfigDict, steps: int) -> range:
  return range(1, steps + 1)


def _while_pruning(config: ConfigDict, steps: int) -> range:
  when = _gradually(config, steps)
  every = max(1, when["update_every"])
  return range((when["begin_step"] // every + 1) * every, when["end_step"] + 1, every)


def _once(config: ConfigDict, steps: int) -> range:
  step = _prune_step(config, steps)["prune_step"]
  return range(step, step + 1)


def _after_rounds(config: ConfigDict, steps: int) -> range:
  return _rounds(config, steps).pruning_steps


# ---------------------------------------------------------------- the table

_DENSE = Method(
  optax.with_extra_args_support, (), _never, takes_seed=False, has_masks=False, draws_weights=False
)
_STARTS_DENSE: dict[str, Any] = {"flops": "mean", "takes_seed": False, "draws_weights": False}
_GROUPS = _fields("group_size")

METHODS: dict[str, Method] = {
  "dense": _DENSE,
  "narrow": _DENSE,  # of a model that experiments.models.small_dense has narrowed
  "static": Method(sx.static_sparse, (_fields("structure"), _GROUPS, _how_sparse), _never),
  "fixed_masks": Method(sx.fixed_masks, (_masks,), _never, takes_seed=False),
  "set": Method(sx.set_, (_when, _how_sparse), _regularly),
  "rigl": Method(sx.rigl, (_by_gradient, _how_sparse), _regularly, "srigl"),
  "snfs": Method(sx.snfs, (_fields("grad_decay"), _when, _how_sparse), _regularly, "every_step"),
  "srigl": Method(
    sx.srigl,
    (_fields("salient_base"), _GROUPS, _ablation, _by_gradient, _how_sparse),
    _regularly,
    "srigl",
  ),
  "nm_srigl": Method(sx.nm_srigl, (_ablation, _by_gradient, _n_of_m), _regularly, "srigl"),
  "sr_ste": Method(
    sx.sr_ste,
    (lambda config, steps: {"decay": config.ste_decay}, _n_of_m),
    _always,
    "straight_through",
    takes_seed=False,
    draws_weights=False,
  ),
  "gradual_pruning": Method(
    sx.gradual_magnitude_pruning, (_gradually, _how_sparse), _while_pruning, **_STARTS_DENSE
  ),
  "one_shot": Method(
    sx.one_shot_pruning, (_fields("ranking"), _prune_step, _how_sparse), _once, **_STARTS_DENSE
  ),
  "lottery": Method(sx.lottery_ticket, (_in_rounds, _which), _after_rounds, **_STARTS_DENSE),
}
"""Every method of the configs by name; docs/methods.md says what each does."""
