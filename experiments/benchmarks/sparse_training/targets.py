"""What is held against targets: ratios of engines on one case, round by round; memory."""

from collections.abc import Iterator, Sequence

from experiments.benchmarks.comparison import Comparison, compare
from experiments.benchmarks.sparse_training.cases import (
  HEAD_PEAK_BYTES,
  STATE_AT_MOST,
  TARGETS,
  UPDATE_AT_MOST,
  UPDATE_EVERY,
)
from experiments.benchmarks.sparse_training.engine import STEP, UPDATE_STEP
from experiments.benchmarks.sparse_training.measurement import Measurement

_RIVALS = ("masked", "torch")


def comparisons(measured: Sequence[Measurement]) -> Iterator[Comparison]:
  """The rows of the cases that have targets, then those of their rivals that have none."""
  targets = {target.case: target for target in TARGETS}
  for one in measured:
    if (target := targets.get(one.case)) is None:
      continue
    goals = {"dense": target.dense, "sparselab": target.sparselab} | dict.fromkeys(_RIVALS)
    steps = {engine: calls[STEP] for engine, calls in one.seconds.items()}
    for rival, goal in goals.items():
      if {rival, "condensed"} <= set(steps):
        name = f"{one.case.name}: {rival} / condensed"
        yield compare(name, steps, rival, "condensed", at_least=goal)
    if UPDATE_STEP in one.seconds.get("condensed", {}):
      yield _update_row(one)
    if {"dense", "condensed"} <= set(one.state_bytes):
      ratio = one.state_bytes["condensed"] / one.state_bytes["dense"]
      name = f"{one.case.name}: bytes of weights, pattern, moments and gradients, condensed / dense"
      # States of models that are sparse in part, by ERK, have no target.
      goal = STATE_AT_MOST if one.case.kind == "mlp" and one.case.sparsity == 0.9 else None
      yield Comparison(name, [ratio], {}, at_most=goal)


def _update_row(one: Measurement) -> Comparison:
  times = one.seconds["condensed"]
  pairs = zip(times[UPDATE_STEP], times[STEP], strict=True)
  shares = [(update - step) / (UPDATE_EVERY * step) for update, step in pairs]
  name = f"{one.case.name}: a topology update over {UPDATE_EVERY} steps, of a step"
  return Comparison(name, shares, times, at_most=UPDATE_AT_MOST)


def head_row(one: Measurement) -> Comparison:
  """The peak of the wide head's process, in GB."""
  name = f"{one.case.name}: peak memory of the process, GB"
  peak = one.peak_bytes["condensed"] / 1e9
  return Comparison(name, [peak], {}, at_most=HEAD_PEAK_BYTES / 1e9)
