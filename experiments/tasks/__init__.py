"""The tasks of the experiments, by name: what each brings to the one training loop."""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from experiments.common.registry import check_arguments, choose
from experiments.tasks.continual_classification import continual_classification
from experiments.tasks.denoising_diffusion import denoising_diffusion
from experiments.tasks.dqn import dqn
from experiments.tasks.extreme_classification import extreme_classification
from experiments.tasks.image_classification import image_classification
from experiments.tasks.language_modelling import language_modelling
from experiments.tasks.node_classification import node_classification
from experiments.tasks.ppo import ppo
from experiments.tasks.recommendation import recommendation
from experiments.tasks.task import Sums, Task

__all__ = ["TASKS", "Sums", "Task", "make_task"]

TASKS: dict[str, Callable[..., Task]] = {
  "continual_classification": continual_classification,
  "denoising_diffusion": denoising_diffusion,
  "dqn": dqn,
  "extreme_classification": extreme_classification,
  "image_classification": image_classification,
  "language_modelling": language_modelling,
  "node_classification": node_classification,
  "ppo": ppo,
  "recommendation": recommendation,
}


def make_task(config: ConfigDict) -> Task:
  """The task of a run.

  Args:
    config: see `configs/base.py`; its `task` section and `train.label_smoothing` count.

  Raises:
    ValueError: if the name or an argument is unknown.
  """
  make = choose(TASKS, config.task.name, "config.task.name")
  kwargs: dict[str, Any] = config.task.kwargs.to_dict()
  what = f"config.task.kwargs of {config.task.name!r}"
  check_arguments(make, kwargs, reserved=["label_smoothing"], what=what)
  return make(label_smoothing=config.train.label_smoothing, **kwargs)
