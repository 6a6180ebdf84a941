"""Interquartile means and their bootstrap intervals."""

import numpy as np
import pytest

from experiments.analysis.returns import estimate, interquartile_mean


def test_the_interquartile_mean_by_hand():
  assert interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0])) == 2.5
  assert interquartile_mean(np.array([100.0, 1.0, 2.0, 3.0, -50.0])) == 2.0  # a run at each end
  assert interquartile_mean(np.array([5.0, 7.0])) == 6.0
  with pytest.raises(ValueError, match="no values"):
    interquartile_mean(np.zeros(0))


def test_an_interval_covers_its_value_and_narrows():
  rng = np.random.default_rng(0)
  few, many = (estimate([rng.normal(size=(n, 3))], repeats=500) for n in (5, 80))
  for found in (few, many):
    assert (found.low <= found.value).all() and (found.value <= found.high).all()
  assert ((many.high - many.low) < (few.high - few.low)).all()


def test_environments_are_strata():
  """Draws within each environment: with no spread inside one there is no interval."""
  found = estimate([np.full((4, 1), 0.0), np.full((4, 1), 1.0)])
  assert found.value == found.low == found.high == 0.5


def test_intervals_cover_as_often_as_they_say():
  """Of the interquartile mean of ten runs; the percentile bootstrap of so few is a bit narrow."""
  rng = np.random.default_rng(1)
  samples = rng.normal(size=(200, 10, 1))
  hits = [found.low <= 0 <= found.high for found in (estimate([x], repeats=300) for x in samples)]
  assert 0.85 < np.mean(hits) < 0.99


@pytest.mark.parametrize("scores", [[], [np.zeros((0, 2))], [np.zeros((2, 2)), np.zeros((2, 3))]])
def test_scores_that_do_not_fit_are_refused(scores):
  with pytest.raises(ValueError, match="The scores have the shapes"):
    estimate(scores)
