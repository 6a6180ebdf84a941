"""What is left of earlier tasks: the accuracy matrix of continual learning and its measures."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_ACCURACY = re.compile(r"accuracy_(\d+)")


class Measures(NamedTuple):
  """Of a run.

  Attributes:
    average: mean accuracy on all tasks after the last one.
    forgetting: mean over all tasks but the last of the best accuracy after an earlier task less
      that after the last one; nan if there is one task, or all were learnt at once.
    learnt: mean accuracy on each task right after it.
  """

  average: float
  forgetting: float
  learnt: float


def accuracy_matrix(tests: Sequence[dict[str, Any]], total_steps: int) -> np.ndarray:
  """The accuracy on each task (columns) after each task (rows), `[T, T]`.

  Args:
    tests: a run's records of tests.
    total_steps: of the run, as many for each task.

  Raises:
    ValueError: if a test is missing, or none is one of tasks.
  """
  by_step = {record["step"]: record for record in tests}
  found = [_ACCURACY.fullmatch(name) for record in tests for name in record]
  num_tasks = 1 + max((int(match[1]) for match in found if match), default=-1)
  if not num_tasks:
    raise ValueError("The run's tests are not those of tasks: it has no record of accuracy_0.")
  ends = [total_steps * (task + 1) // num_tasks for task in range(num_tasks)]
  if missing := [step for step in ends if step not in by_step]:
    raise ValueError(f"The run has no record of a test at step {missing[0]}, the end of a task.")
  return np.array([[by_step[s][f"accuracy_{task}"] for task in range(num_tasks)] for s in ends])


def measures(matrix: np.ndarray) -> Measures:
  """Average accuracy, forgetting and learning accuracy of an accuracy matrix `[T, T]`.

  Source: Chaudhry et al., Riemannian Walk for Incremental Learning (arXiv:1801.10112), section 3.
  """
  last, before = matrix[-1], matrix[:-1, :-1]
  lost = [before[task:, task].max() - last[task] for task in range(len(before))]
  forgetting = float(np.mean(lost)) if lost else float("nan")
  return Measures(float(last.mean()), forgetting, float(np.diagonal(matrix).mean()))
