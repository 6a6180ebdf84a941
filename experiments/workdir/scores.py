"""What a run is judged by: the number of its tests that says which of two networks is better."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Score(NamedTuple):
  """A metric of tests.

  Attributes:
    name: of the metric, a key of the records of tests in `metrics.jsonl`.
    label: for people.
    percent: whether it is a share, shown in per cent.
    lower_is_better: as of a loss.
  """

  name: str
  label: str
  percent: bool = False
  lower_is_better: bool = False

  def text(self, value: float) -> str:
    """A value for people."""
    return f"{value:.2%}" if self.percent else f"{value:.{self.digits}f}"

  @property
  def digits(self) -> int:
    """Decimals of a number of tables and figures that say something."""
    return 2 if self.percent else 4

  @property
  def factor(self) -> float:
    """From a value to a number of tables and figures."""
    return 100.0 if self.percent else 1.0

  @property
  def axis(self) -> str:
    """Its label on tables and figures, with the unit."""
    return f"test {self.label}" + (" (%)" if self.percent else "")

  def best(self, values: list[float]) -> float:
    """The best of some values."""
    return min(values) if self.lower_is_better else max(values)

  def rising(self, value: float) -> float:
    """The value, or its negative, so that more is better."""
    return -value if self.lower_is_better else value


ACCURACY = Score("accuracy", "accuracy", percent=True)


class Scored(NamedTuple):
  """The score of a finished run: of its last test and of its best."""

  score: Score
  last: float
  best: float


def as_results(score: Score, values: list[float]) -> dict[str, Any]:
  """The part of `results.json` that says how good a run is.

  Args:
    score: what it is judged by.
    values: of its tests, in order.

  Returns:
    `test_accuracy` and `best_test_accuracy`, as every version has written them; of another score
    `score`, which also says what it is.
  """
  last, best = values[-1], score.best(values)
  if score == ACCURACY:
    return {"test_accuracy": last, "best_test_accuracy": best}
  return {"score": {**score._asdict(), "last": last, "best": best}}


def score_of(results: Mapping[str, Any]) -> Score:
  """What a `results.json`, or a run of a sweep's results file, is judged by."""
  if "score" not in results:
    return ACCURACY
  return Score(**{name: results["score"][name] for name in Score._fields})


def last_score(results: Mapping[str, Any]) -> float:
  """The score of its last test."""
  return results["score"]["last"] if "score" in results else results["test_accuracy"]


def scored(results: Mapping[str, Any]) -> Scored:
  """The score in a `results.json`; see `as_results`."""
  best = results["score"]["best"] if "score" in results else results["best_test_accuracy"]
  return Scored(score_of(results), last_score(results), best)
