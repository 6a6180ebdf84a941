"""The network of a run, read back from its work directory: trained, with its masks."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

from experiments.common.files import read_json
from experiments.common.old_configs import converted
from experiments.training.setup import Run, prepare
from experiments.workdir.checkpoints import Checkpoints
from experiments.workdir.patterns import CONFIG


class LoadedRun(NamedTuple):
  """A run read back: its trained network.

  Attributes:
    run: what trained it.
    model: the module as it was trained, its masked weights 0.
    masks: bool arrays by path, or patterns if its layers are in condensed form; empty for a dense
      run.
    step: of its checkpoint.
  """

  run: Run
  model: nnx.Module
  masks: dict[str, Any]
  step: int


def load_run(workdir: Path, *, which: str = "last", data_dir: str = "") -> LoadedRun:
  """Reads a checkpoint of a run, finished or not; changes nothing in its directory.

  Args:
    workdir: the run's.
    which: "last", or "best" by test accuracy.
    data_dir: where its data set is now; empty: where its config says.

  Raises:
    ValueError: if the directory holds no run or no such checkpoint.
    FileNotFoundError: if the data set is not there.
  """
  if not (workdir / "config.json").exists():
    nested = sorted(str(path.parent) for path in workdir.glob("*/seed*/config.json"))
    hint = f" It is a sweep's: its runs are {', '.join(nested)}." if nested else ""
    raise ValueError(f"{workdir} holds no run: it has no config.json.{hint}")
  try:
    config = ConfigDict(converted(read_json(workdir / "config.json", CONFIG)))
    config.data.data_dir = data_dir or config.data.data_dir
    run, init_state = prepare(config, for_restoring=True)
  except (AttributeError, KeyError, TypeError) as error:
    raise ValueError(
      f"{workdir / 'config.json'} is not as a run writes it ({error}). Copy it from a backup; the "
      "run's checkpoints hold a copy each, in `config`."
    ) from error
  checkpoints = Checkpoints(workdir / "checkpoints", keep=1, read_only=True)
  try:
    step = checkpoints.best_step() if which == "best" else None
    state = checkpoints.restore(init_state, step=step)
  finally:
    checkpoints.close()
  if state is None:
    raise ValueError(f"{workdir} has no checkpoint yet: let its training come to the first one.")
  model = run.model.module(state.params, state.model_state)
  return LoadedRun(run, model, run.topology(state), int(state.step))
