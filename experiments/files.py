"""Writing files so that none is ever half written or lost."""

import json
import os
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
  """Writes a text file beside its place and renames it there."""
  path.parent.mkdir(parents=True, exist_ok=True)
  beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  beside.write_text(text, encoding="utf-8")
  os.replace(beside, path)


def write_json(path: Path, value: Any) -> None:
  """Writes a JSON file, see `write_text`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
  """Reads a JSON file; None if there is none."""
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def as_json(value: Any) -> Any:
  """The value as it comes back from a JSON file."""
  if isinstance(value, dict):
    return {k: as_json(v) for k, v in value.items()}
  return [as_json(v) for v in value] if isinstance(value, list | tuple) else value
