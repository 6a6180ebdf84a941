"""Which config a work directory belongs to: one and no other."""

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from experiments.common.files import as_json, read_json
from experiments.common.old_configs import converted

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


def check_owner(workdir: Path, config: ConfigDict) -> None:
  """Refuses a directory that belongs to another config.

  Raises:
    ValueError: naming the directory, and the settings in which the configs differ.
  """
  theirs = read_json(workdir / "config.json")
  differing = differences(converted(theirs), as_json(config.to_dict())) if theirs else {}
  for name in MAY_CHANGE:
    differing.pop(name, None)
  if differing:
    listed = "; ".join(f"{k}: {a} there, {b} here" for k, (a, b) in differing.items())
    raise ValueError(
      f"{workdir} holds a run of another config ({listed}). Give this run a --workdir of its own, "
      "or repeat the other one's config to resume it."
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
