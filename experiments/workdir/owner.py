"""Which config a work directory belongs to: one and no other.

It stands in `config.json`, and again in every checkpoint, which is what a run goes on from: the
former may be lost, or another run's.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.common.files import as_json, read_json
from experiments.common.old_configs import converted
from experiments.workdir.patterns import CONFIG

# Settings that do not change what is learnt, up to rounding: another machine may need others.
MAY_CHANGE = (
  "data.data_dir",
  "data.kwargs.num_workers",
  "model.kwargs.remat",
  "train.checkpoint_every_epochs",
  "train.eval_batch_size",
  "train.keep_checkpoints",
  "train.log_every_steps",
  "train.steps_per_dispatch",
  "train.wandb_project",
)


CHECKPOINT_FILE = "config.json"
"""Of the config, in a checkpoint's part `config`."""


def check_owner(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that belongs to another config.

  Raises:
    ValueError: naming the directory, and the settings in which the configs differ; or if it holds
      checkpoints and nothing says whose they are.
  """
  for where, theirs in _owners(workdir):
    differing = differences(converted(theirs), as_json(config.to_dict()))
    for name in MAY_CHANGE:
      differing.pop(name, None)
    if differing:
      listed = "; ".join(f"{k}: {a} there, {b} here" for k, (a, b) in differing.items())
      raise ValueError(
        f"{workdir} holds a run of another config ({listed}){where}. Give this run a --workdir of "
        "its own, or repeat the other one's config to resume it."
      )


def _owners(workdir: Path) -> Iterator[tuple[str, dict[str, Any]]]:
  """The configs that a directory is said to belong to, each with where that is said."""
  checkpoints = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
  in_checkpoint = None
  for path in sorted(checkpoints, key=lambda path: int(path.name), reverse=True):
    try:
      in_checkpoint = read_json(path / "config" / CHECKPOINT_FILE, CONFIG)
    except ValueError as error:
      warnings.warn(str(error), stacklevel=4)
    if in_checkpoint:
      yield f", says its checkpoint of step {path.name}", in_checkpoint
      break
  try:
    in_file = read_json(workdir / "config.json", CONFIG)
  except ValueError as error:
    if not in_checkpoint:
      raise
    warnings.warn(f"{error} The config in the checkpoint is gone by.", stacklevel=4)
    return
  if in_file:
    yield "", in_file
  elif checkpoints and not in_checkpoint:
    raise ValueError(
      f"{workdir} holds checkpoints but no config.json, and they are of a version that did not "
      "write whose they are. Copy the run's config.json there, or give another --workdir."
    )


def differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[str, str]]:
  """Where two nested dicts differ: the two values for a message, by dotted path.

  A value that is absent is the same as None.
  """
  if not isinstance(a, dict) or not isinstance(b, dict):
    return {} if a == b else {prefix: (_shown(a), _shown(b))}
  found: dict[str, tuple[str, str]] = {}
  for key in sorted(a.keys() | b.keys()):
    path = f"{prefix}.{key}" if prefix else key
    found |= differences(a.get(key), b.get(key), path)
  return found


def _shown(value: Any) -> str:
  return "absent" if value is None else repr(value)
