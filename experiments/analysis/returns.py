"""How well agents do, over few runs: interquartile means with stratified bootstrap intervals.

Source: Agarwal et al. 2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv:2108.13264), whose definitions these are.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
  """A measure with its interval.

  Attributes:
    value: `[points]` float.
    low: of the 95 % interval, likewise.
    high: likewise.
  """

  value: np.ndarray
  low: np.ndarray
  high: np.ndarray


def interquartile_mean(values: np.ndarray, axis: int = 0) -> np.ndarray:
  """The mean of the middle half: of `n` values without the `n // 4` lowest and highest.

  Args:
    values: any shape.
    axis: of the values that are one sample; the result has no such axis.

  Raises:
    ValueError: if there are none.
  """
  count = values.shape[axis]
  if not count:
    raise ValueError("An interquartile mean of no values was asked for; give one at least.")
  ordered = np.moveaxis(np.sort(values, axis=axis), axis, 0)
  return ordered[count // 4 : count - count // 4].mean(0)


def estimate(
  scores: Sequence[np.ndarray], *, repeats: int = 2000, level: float = 0.95, seed: int = 0
) -> Estimate:
  """The interquartile mean over runs of all environments, with its bootstrap interval.

  Runs are drawn again within each environment (the strata), with all their points at once; the
  interval is that of the percentiles. Scores of several environments must be on one scale.

  Args:
    scores: of each environment `[runs, points]`, such as returns at steps of training.
    repeats: of the bootstrap.
    level: that the interval is to cover.
    seed: of the draws.

  Raises:
    ValueError: if there is no environment, one has no runs, or the points are not as many.
  """
  points = {values.shape[1:] for values in scores}
  if not scores or len(points) != 1 or not all(len(values) for values in scores):
    shapes = ", ".join(str(values.shape) for values in scores)
    raise ValueError(
      f"The scores have the shapes {shapes or 'of nothing'}; give [runs, points] of one "
      "environment or more, with a run each and as many points in all."
    )
  rng = np.random.default_rng(seed)
  drawn = [values[rng.integers(len(values), size=(repeats, len(values)))] for values in scores]
  found = interquartile_mean(np.concatenate(drawn, axis=1), axis=1)
  low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2], axis=0)
  return Estimate(interquartile_mean(np.concatenate(scores)), low, high)
