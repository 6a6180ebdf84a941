"""Runs that failed: what is kept of them, and which are tried again."""

import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.common.files import InUseError, as_json, read_json, write_json
from experiments.workdir.patterns import FAILURE

_FILE = "failed.json"


class Failure(NamedTuple):
  """Why a run has no results.

  Attributes:
    error: in a sentence.
    traceback: where it came from, if that is known.
    killed: whether the run is not to blame, and should simply be tried again.
  """

  error: str
  traceback: str = ""
  killed: bool = False


def failure_of(error: Exception) -> Failure:
  """The failure that an exception is."""
  trace = "".join(traceback.format_exception(error))
  killed = isinstance(error, InUseError)
  return Failure(f"{type(error).__name__}: {error}", trace, killed=killed)


def write_failure(workdir: Path, failure: Failure, config: ConfigDict) -> None:
  """Writes `failed.json` in the run's directory."""
  now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
  write_json(workdir / _FILE, {**failure._asdict(), "time": now, "config": config.to_dict()})


def read_failure(workdir: Path, config: Mapping[str, Any] | None = None) -> Failure | None:
  """Why the run failed; None if it did not.

  Args:
    workdir: the run's.
    config: if given, what failed with another one does not count: it may have been corrected.
  """
  try:
    values = read_json(workdir / _FILE, FAILURE)
  except ValueError as error:
    return Failure(str(error), killed=True)  # whatever it was, it is tried again
  if values and config is not None and values["config"] != as_json(config):
    return None
  return values and Failure(values["error"], values["traceback"], values["killed"])


def forget_failure(workdir: Path) -> None:
  """Removes `failed.json`, before the run is tried again."""
  (workdir / _FILE).unlink(missing_ok=True)
