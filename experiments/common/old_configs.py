"""Configs that earlier versions wrote: how to read them, and where their fields are now."""

from collections.abc import Iterable
from typing import Any

# Field of `config.method` as it was -> method by its present name -> argument in its `kwargs`.
_MOVED: dict[str, dict[str, str]] = {
  "fan_in": {"static": "fan_in", "srigl": "fan_in"},
  "structure": {"static": "structure"},
  "group_size": {"static": "structure", "srigl": "structure"},
  "gamma_sal": {"srigl": "gamma_sal", "nm_srigl": "gamma_sal"},
  "salient_base": {"srigl": "salient_base"},
  "block_fan_in": {"nm_srigl": "n", "sr_ste": "n"},
  "block_size": {"nm_srigl": "m", "sr_ste": "m"},
  "grad_decay": {"snfs": "grad_decay"},
  "ste_decay": {"sr_ste": "decay"},
  "prune_from_fraction": {"gradual_pruning": "prune_from_fraction"},
  "prune_at_fraction": {"one_shot": "prune_at_fraction"},
  "ranking": {"one_shot": "ranking"},
  "rounds": {"lottery": "rounds"},
  "rewind_fraction": {"lottery": "rewind_fraction"},
  "masks_from": {"fixed_masks": "masks_from"},
}
_ABLATION = "ablation"
# Fields added to `configs/base.py` since 0.2.0, by dotted path, and what runs without them had.
_ADDED: dict[str, Any] = {
  "data.validation_fraction": 0.0,
  "method.engine": "masked",
  "method.track_explored": False,
  "model.init_from": "",
  "task.name": "image_classification",
  "task.kwargs": {},
}


def new_field(name: str) -> str | None:
  """Where a field of `config.method` is now; None if it has not moved."""
  if name == _ABLATION:
    return "config.method.kwargs.gamma_sal, 0 for none"
  if name not in _MOVED:
    return None
  return " or ".join(f"config.method.kwargs.{now}" for now in dict.fromkeys(_MOVED[name].values()))


def refuse_old_fields(names: Iterable[str]) -> None:
  """Refuses fields of `config.method` that have moved.

  Raises:
    ValueError: naming the new field.
  """
  for name in names:
    if now := new_field(name):
      raise ValueError(f"config.method.{name} is now {now}: change the config.")


def converted(config: dict[str, Any]) -> dict[str, Any]:
  """A config as its `config.json` has it, in today's form; one that is, is returned as it is."""
  return _with_added_fields(_with_method_kwargs(config))


def _with_added_fields(config: dict[str, Any]) -> dict[str, Any]:
  for path, value in _ADDED.items():
    section, name = path.split(".")
    if section in config or section == "task":  # the section is new itself
      config = {**config, section: {name: value} | config.get(section, {})}
  return config


def _with_method_kwargs(config: dict[str, Any]) -> dict[str, Any]:
  method = config.get("method", {})
  if "name" not in method or "kwargs" in method:
    return config
  name = {"narrow": "small_dense"}.get(method["name"], method["name"])
  kept = {k: v for k, v in method.items() if k not in _MOVED and k != _ABLATION}
  kwargs = {now[name]: method[old] for old, now in _MOVED.items() if name in now and old in method}
  if "gamma_sal" in kwargs and not method.get(_ABLATION, True):
    kwargs["gamma_sal"] = 0.0
  if "structure" in kwargs:
    structure = "constant_fan_in" if name == "srigl" else method.get("structure", "unstructured")
    size = method.get("group_size", 1)
    kwargs["structure"] = structure if size == 1 else f"{structure}:group_size={size}"
  return {**config, "method": {**kept, "name": name, "kwargs": kwargs}}
