"""Weights & Biases, for those who have it and ask for it with `config.train.wandb_project`."""

import importlib
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ml_collections import ConfigDict

from experiments.common.files import read_json, write_json


class Tracker(Protocol):
  """Where numbers go besides the files of a run."""

  def log(self, values: Mapping[str, float | None], step: int) -> None:
    """Records numbers by name."""

  def finish(self) -> Any:
    """Sends what is left."""


def open_tracker(config: ConfigDict, workdir: Path) -> Tracker | None:
  """Opens the run's page, the same one each time that the run is resumed; None if not asked for.

  Args:
    config: of the run.
    workdir: its directory, which remembers the page in `wandb.json`.

  Raises:
    ValueError: if wandb is asked for and not installed.
  """
  project = config.train.wandb_project
  if not project:
    return None
  try:
    wandb: Any = importlib.import_module("wandb")
  except ImportError as error:
    raise ValueError(
      f"config.train.wandb_project is {project!r}, but wandb is not installed: pip install wandb, "
      "or leave the field empty."
    ) from error
  path = workdir / "wandb.json"
  known = read_json(path, {"id": str, "project": str})
  if known is None:
    known = {"id": uuid.uuid4().hex[:8], "project": project}
    write_json(path, known)
  return wandb.init(
    project=known["project"],
    id=known["id"],
    resume="allow",
    name=f"{config.name}, seed {config.seed}",
    config=config.to_dict(),
    dir=str(workdir),
  )
