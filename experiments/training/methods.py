"""The sparse training methods by name: a row of `METHODS` makes one known to every command.

A method is a function in the style of srigl_jax, `(inner, *, ...) -> optax transformation`. Its
signature says the rest: arguments of the names in `method_plan.common_arguments` come from the
fields that all methods share (`config.method`); the others are the method's own,
`config.method.kwargs`, with the signature's defaults. `**how_sparse` stands for `sparse`,
`sparsity` and `distribution`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import optax

import srigl_jax as sx
from experiments.workdir.checkpoints import read_masks

Arguments = Mapping[str, Any]


def regularly(given: Arguments) -> range:
  """After every `update_every` steps before `update_until`; never without these arguments."""
  every = max(1, given.get("update_every", 1))
  return range(every, given.get("update_until", 0), every)


class Method(NamedTuple):
  """A row of `METHODS`.

  Attributes:
    function: `(inner, **arguments) -> transformation`.
    updates: `arguments -> range` of the optimizer steps after which masks may change; `total_steps`
      is among the arguments in any case.
    flops: how to count training FLOPs: a convention of `sx.training_flops`, or `"mean"`, the mean
      over the run (`sx.mean_flops`), for networks that start dense.
    rounds: `arguments -> rounds` of a lottery ticket, or the tasks of continual learning: parts of
      the run in each of which the learning rate's schedule starts again.
    for_test: `(params, opt_state, targets) -> params`, those that a test with these targets is to
      see; None for all as they are.
    has_masks: whether there are masks at all.
    condensed: what stands for `function` where layers are in condensed form; None if nothing does.
    draws_weights: whether the weights may be drawn anew for the masks of step 0
      (`sx.init_sparse_weights`); not if the method starts dense or keeps the weights it is given.
  """

  function: Callable[..., optax.GradientTransformationExtraArgs]
  updates: Callable[[Arguments], range] = regularly
  flops: str = "static"
  rounds: Callable[[Arguments], sx.Rounds] | None = None
  has_masks: bool = True
  draws_weights: bool = True
  condensed: Callable[..., sx.CondensedTraining] | None = None
  for_test: Callable[[Any, Any, Any], Any] | None = None


# ---------------------------------------------------------------- methods by fractions of the run


def gradual_pruning(
  inner: optax.GradientTransformation,
  *,
  total_steps: int,
  update_every: int,
  update_until: int,
  prune_from_fraction: float = 0.1,
  **how_sparse: Any,
) -> optax.GradientTransformationExtraArgs:
  """`sx.gradual_magnitude_pruning` from a fraction of the run until T_end."""
  return sx.gradual_magnitude_pruning(
    inner,
    begin_step=int(prune_from_fraction * total_steps),
    end_step=update_until,
    update_every=update_every,
    **how_sparse,
  )


def _while_pruning(given: Arguments) -> range:
  every = max(1, given["update_every"])
  begin = int(given["prune_from_fraction"] * given["total_steps"])
  return range((begin // every + 1) * every, given["update_until"] + 1, every)


def one_shot(
  inner: optax.GradientTransformation,
  *,
  total_steps: int,
  prune_at_fraction: float = 0.5,
  ranking: str = "layer",
  **how_sparse: Any,
) -> optax.GradientTransformationExtraArgs:
  """`sx.one_shot_pruning` after a fraction of the run."""
  step = max(1, int(prune_at_fraction * total_steps))
  return sx.one_shot_pruning(inner, prune_step=step, ranking=ranking, **how_sparse)


def _once(given: Arguments) -> range:
  step = max(1, int(given["prune_at_fraction"] * given["total_steps"]))
  return range(step, step + 1)


def lottery(
  inner: optax.GradientTransformation,
  *,
  total_steps: int,
  sparsity: float,
  sparse: Any,
  rounds: int = 5,
  rewind_fraction: float = 0.05,
) -> optax.GradientTransformationExtraArgs:
  """`sx.lottery_ticket` in the longest rounds for which the run has room, see `rounds_of`."""
  plan = rounds_of(total_steps, rounds, rewind_fraction)
  return sx.lottery_ticket(
    inner,
    steps_per_round=plan.length,
    rounds=plan.num_prunings,
    rewind_step=plan.rewind_step,
    sparsity=sparsity,
    sparse=sparse,
  )


def rounds_of(total_steps: int, rounds: int, rewind_fraction: float) -> sx.Rounds:
  """The longest rounds that so many steps have room for, rewound to a fraction of a round.

  Raises:
    ValueError: if they have room for none, or an argument is out of range.
  """
  if rounds < 1 or not 0 <= rewind_fraction < 1:
    raise ValueError(
      f"config.method.kwargs.rounds is {rounds} and rewind_fraction {rewind_fraction}; they must "
      "be 1 or more, and in [0, 1)."
    )
  of_length = lambda length: sx.Rounds(length, rounds, int(rewind_fraction * length))
  length = int(total_steps / (1 + rounds * (1 - rewind_fraction)))
  while length and of_length(length).total_steps > total_steps:
    length -= 1
  if not length:
    raise ValueError(
      f"{total_steps} optimizer steps are too few for the {rounds} rounds of a lottery ticket and "
      "the training behind them: raise config.train.total_epochs or lower "
      "config.method.kwargs.rounds."
    )
  return of_length(length)


def _rounds(given: Arguments) -> sx.Rounds:
  return rounds_of(given["total_steps"], given["rounds"], given["rewind_fraction"])


def fixed_masks(
  inner: optax.GradientTransformation, *, masks_from: str = ""
) -> optax.GradientTransformationExtraArgs:
  """`sx.fixed_masks` with the masks of a finished run, given by its work directory."""
  if not masks_from:
    raise ValueError(
      "config.method.kwargs.masks_from is empty: give the work directory of the run whose masks "
      "fixed_masks is to train anew."
    )
  if not (Path(masks_from) / "results.json").exists():
    raise ValueError(
      f"config.method.kwargs.masks_from is {masks_from}, which holds no finished run: let it come "
      "to its end first."
    )
  masks = read_masks(Path(masks_from))
  if not masks:
    raise ValueError(
      f"config.method.kwargs.masks_from is {masks_from}, a dense run or one in condensed form: it "
      "has no masks."
    )
  return sx.fixed_masks(inner, masks)


def continual(
  inner: optax.GradientTransformation,
  *,
  total_steps: int,
  stages: int,
  update_every: int,
  update_until: int,
  drop_fraction: float,
  seed: int,
  growth: str = "gradient",
  structure: str = "constant_fan_in",
  outputs: tuple[str, ...] = ("head",),
  **how_sparse: Any,
) -> optax.GradientTransformationExtraArgs:
  """`sx.continual_sparse` with a task for each stage; T_end is a fraction of each."""
  return sx.continual_sparse(
    inner,
    num_tasks=stages,
    steps_per_task=total_steps // stages,
    update_every=update_every,
    update_until=update_until // stages,
    drop_fraction=drop_fraction,
    growth=growth,
    structure=structure,
    outputs=sx.only(*outputs) if outputs else False,
    seed=seed,
    **how_sparse,
  )


def _within_tasks(given: Arguments) -> range:
  stages, every = given["stages"], max(1, given["update_every"])
  last = (stages - 1) * (given["total_steps"] // stages) + given["update_until"] // stages
  return range(every, last, every)


def _tasks(given: Arguments) -> sx.Rounds:
  return sx.Rounds(given["total_steps"] // given["stages"], given["stages"] - 1)


def _of_task(params: Any, opt_state: Any, targets: Any) -> Any:
  """The network of the task that a test is of, if the targets say `up_to` which one it is."""
  if not isinstance(targets, Mapping) or "up_to" not in targets:
    return params
  return sx.apply_masks(params, sx.task_masks(opt_state, targets["up_to"][0]))


# ---------------------------------------------------------------- the table

_DENSE = Method(optax.with_extra_args_support, has_masks=False, draws_weights=False)
_STARTS_DENSE: dict[str, Any] = {"flops": "mean", "draws_weights": False}

METHODS: dict[str, Method] = {
  "dense": _DENSE,
  "small_dense": _DENSE,  # of a model that experiments.models.small_dense has narrowed
  "static": Method(sx.static_sparse, condensed=sx.condensed_static),
  "fixed_masks": Method(fixed_masks),
  "prune_pretrained": Method(sx.prune_pretrained, draws_weights=False),
  "set": Method(sx.set_, condensed=sx.condensed_set),
  "rigl": Method(sx.rigl, flops="srigl"),
  "snfs": Method(sx.snfs, flops="every_step"),
  "srigl": Method(sx.srigl, flops="srigl", condensed=sx.condensed_srigl),
  "nm_srigl": Method(sx.nm_srigl, flops="srigl"),
  "sr_ste": Method(
    sx.sr_ste,
    lambda given: range(1, given["total_steps"] + 1),
    flops="straight_through",
    draws_weights=False,
  ),
  "continual": Method(continual, _within_tasks, flops="srigl", rounds=_tasks, for_test=_of_task),
  "gradual_pruning": Method(gradual_pruning, _while_pruning, **_STARTS_DENSE),
  "one_shot": Method(one_shot, _once, **_STARTS_DENSE),
  "lottery": Method(
    lottery, lambda given: _rounds(given).pruning_steps, rounds=_rounds, **_STARTS_DENSE
  ),
}
"""Every method by `config.method.name`; docs/methods.md says what each does."""

PRESETS: dict[str, dict[str, Any]] = {
  "static_fan_in": {"name": "static", "kwargs": {"structure": "constant_fan_in"}},
  "continual_rigl": {"name": "continual", "kwargs": {"structure": "unstructured"}},
  "continual_set": {
    "name": "continual",
    "kwargs": {"structure": "unstructured", "growth": "random"},
  },
  "snfs": {"name": "snfs", "distribution": "uniform"},
  "srigl_no_ablation": {"name": "srigl", "kwargs": {"gamma_sal": 0.0}},
  "srigl_shared": {"name": "srigl", "kwargs": {"structure": "constant_fan_in:group_size=16"}},
  "one_shot_global": {
    "name": "one_shot",
    "distribution": "uniform",
    "kwargs": {"ranking": "global"},
  },
}
"""Variants with a name of their own, `--config=configs/NAME.py:PRESET`: fields of `method`."""
