"""Differences between two variants of a sweep, paired by seed, and how sure they are.

Runs of one seed draw the same weights where shapes agree, and see the same batches in the same
order, so that their difference varies less than either of them.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.sweeps.results import SweepResults, VariantResults, mean_and_interval
from experiments.sweeps.spec import STUDIES
from experiments.workdir.scores import last_score

_EXACT = 16  # pairs up to which all assignments of signs are looked at
_DRAWN = 100_000  # of them beyond
_LEVEL = 0.05


class Comparison(NamedTuple):
  """Two variants, the first less the second.

  Attributes:
    name: such as `srigl − rigl`.
    place: where both stand on the sweep's axes, such as `sparsity 0.9`; "all" if several places are
      taken together, "" if there is none.
    differences: of the test score, such as the accuracy, from -1 to 1, of each pair of runs.
    mean: of them.
    half_width: of the 95 % interval of the mean by Student's t; nan for a single pair.
    t_p: two-sided p value of the paired t-test; nan for a single pair.
    sign_flip_p: of the permutation test that flips the signs of the differences, which asks for
      nothing but that they are as likely to have either sign if the variants do not differ.
    holm_p: `t_p` corrected by Holm for all comparisons made together.
  """

  name: str
  place: str
  differences: tuple[float, ...]
  mean: float
  half_width: float
  t_p: float
  sign_flip_p: float
  holm_p: float


def compare(
  sweep: SweepResults,
  pairs: Sequence[tuple[str, str]],
  *,
  at: Sequence[float] = (),
  pool: bool = False,
) -> list[Comparison]:
  """Compares variants of a sweep; all that is compared in one call is one family for Holm.

  Args:
    sweep: its finished runs.
    pairs: of names, each a variant's or a method's; the second is subtracted. Methods are compared
      wherever both stand at the same place on all axes; what is at none (a dense network among
      sparsities), everywhere.
    at: places to look at on the axis of the study (sparsities, say); all by default.
    pool: whether all places of a pair make one comparison, of all their runs, instead of one each.

  Raises:
    ValueError: if there is no such variant or method, two have no pair of finished runs, or the
      study has no axis to look at places of.
  """
  if at and not STUDIES[sweep.kind]:
    raise ValueError(f"{sweep.name!r} is a study without an axis: leave --at out.")
  found: list[tuple[str, str, tuple[float, ...]]] = []
  for first, second in pairs:
    name = f"{first} − {second}"
    by_place = _differences(sweep, first, second, at)
    if not any(by_place.values()):
      raise ValueError(
        f"{first} and {second} have no two finished runs of one seed"
        + (f" at {', '.join(f'{x:g}' for x in at)}" if at else "")
        + f" in {sweep.name!r}: let the sweep go on, or compare others."
      )
    if pool and len(by_place) > 1:
      found.append((name, "all", tuple(itertools.chain(*by_place.values()))))
    else:
      found += [(name, place, values) for place, values in by_place.items() if values]
  tested = [(*it, *mean_and_interval(it[2]), paired_t_p(it[2]), sign_flip_p(it[2])) for it in found]
  corrected = holm([one[5] for one in tested])
  return [Comparison(*one, p) for one, p in zip(tested, corrected, strict=True)]


def planned(sweep: SweepResults) -> list[tuple[str, str]]:
  """The pairs that a sweep was made to compare, as far as they have finished runs of one seed."""
  return [pair for pair in sweep.comparisons if any(_differences(sweep, *pair, ()).values())]


def _differences(
  sweep: SweepResults, first: str, second: str, at: Sequence[float]
) -> dict[str, tuple[float, ...]]:
  """The differences of all pairs of runs, by place."""
  ones, others = _variants(sweep, first), _variants(sweep, second)
  named_alone = len(ones) == len(others) == 1
  axis, found = STUDIES[sweep.kind], {}
  for one, other in itertools.product(ones, others):
    mine, theirs = _place(one), _place(other)
    place = mine or theirs
    if mine and theirs and mine != theirs:
      if not named_alone:
        continue
      place = {}
    if at and not any(math.isclose(x, place.get(axis, math.nan)) for x in at):
      continue
    by_seed = {run.seed: last_score(run.results) for run in other.runs}
    found[", ".join(f"{k} {v:g}" for k, v in place.items())] = tuple(
      last_score(run.results) - by_seed[run.seed] for run in one.runs if run.seed in by_seed
    )
  return found


def _variants(sweep: SweepResults, name: str) -> list[VariantResults]:
  """The variant of this name, or all those of the method."""
  named = [v for v in sweep.variants if v.name == name]
  found = named or [v for v in sweep.variants if v.axes.get("method") == name]
  if not found:
    methods = dict.fromkeys(str(v.axes["method"]) for v in sweep.variants)
    names = dict.fromkeys([*methods, *(v.name for v in sweep.variants)])
    raise ValueError(
      f"There is no variant or method {name!r} in {sweep.name!r}: give one of {', '.join(names)}."
    )
  return found


def _place(variant: VariantResults) -> dict[str, float]:
  return {axis: float(value) for axis, value in variant.axes.items() if axis != "method"}


def paired_t_p(differences: Sequence[float]) -> float:
  """Two-sided p value of the mean of differences being 0, by Student's t; nan for a single one."""
  if len(differences) < 2:
    return math.nan
  spread = float(np.std(differences, ddof=1))
  if not spread:
    return 0.0 if any(differences) else 1.0
  t = float(np.mean(differences)) * math.sqrt(len(differences)) / spread
  return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def sign_flip_p(differences: Sequence[float]) -> float:
  """Share of the assignments of signs whose mean is as far from 0 as that of the differences.

  All of them are looked at up to 16 differences, beyond that 100,000 drawn ones and that which is.
  The smallest value that n differences can have is 2^(1 − n).
  """
  values = np.asarray(differences, float)
  num = len(values)
  if num <= _EXACT:
    signs = 1.0 - 2.0 * ((np.arange(2**num)[:, None] >> np.arange(num)) & 1)
  else:
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (_DRAWN + 1, num))
    signs[0] = 1.0
  sums = np.abs(signs @ values)
  return float(np.mean(sums >= sums[0] * (1 - 1e-12)))


def holm(p_values: Sequence[float]) -> list[float]:
  """Corrects the p values of a family so that in 95 % of families none is wrongly below 5 % (Holm).

  Those that are nan are no tests: they stay, and do not count.
  """
  tests = [i for i, p in enumerate(p_values) if not math.isnan(p)]
  corrected, largest = [math.nan] * len(p_values), 0.0
  for rank, i in enumerate(sorted(tests, key=lambda i: p_values[i])):
    largest = max(largest, min(1.0, (len(tests) - rank) * p_values[i]))
    corrected[i] = largest
  return corrected


def pairs_needed(
  spread: float, difference: float, *, tests: int = 1, power: float = 0.8, most: int = 1000
) -> int | None:
  """How many pairs find a difference with this probability, by the two-sided paired t-test.

  Args:
    spread: standard deviation of the differences.
    difference: that is to be found, in the same unit.
    tests: of the family: each is made at 5 % divided by this, the first and strictest of Holm's.
    power: probability of finding it.
    most: pairs to look at; None if they are not enough.
  """
  for num in range(2, most + 1):
    bound = stats.t.ppf(1 - _LEVEL / tests / 2, num - 1)
    shift = difference * math.sqrt(num) / spread if spread else math.inf
    if math.isinf(shift) or stats.nct.sf(bound, num - 1, shift) >= power:
      return num
  return None


def pooled_spread(comparisons: Sequence[Comparison]) -> tuple[float, float, int]:
  """Standard deviation of the differences within comparisons, taken to be the same in all.

  Returns:
    It, what it is at most with 95 % confidence, and its degrees of freedom. Without any, both
    numbers are nan.
  """
  squares, freedom = 0.0, 0
  for one in comparisons:
    squares += float(np.sum(np.square(np.subtract(one.differences, one.mean))))
    freedom += len(one.differences) - 1
  if not freedom:
    return math.nan, math.nan, 0
  upper = math.sqrt(squares / stats.chi2.ppf(_LEVEL, freedom))
  return math.sqrt(squares / freedom), upper, freedom
