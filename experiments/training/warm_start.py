"""Starting from the weights of another run instead of random ones."""

from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
from jax import Array

from experiments.workdir.checkpoints import Checkpoints


def warm_start(
  workdir: str, params: Mapping[str, Array], model_state: Mapping[str, Array]
) -> tuple[dict[str, Array], dict[str, Array]]:
  """The weights and statistics of a run's last checkpoint.

  Args:
    workdir: the run's; finished or not, dense or masked.
    params: the weights that they take the place of, by path.
    model_state: the same of statistics, such as a batch norm's.

  Raises:
    ValueError: if there is no checkpoint, or it is of another network.
  """
  what = f"config.model.init_from is {workdir}"
  if not (Path(workdir) / "checkpoints").is_dir():
    raise ValueError(f"{what}, which holds no run with a checkpoint: train it first.")
  checkpoints = Checkpoints(Path(workdir) / "checkpoints", keep=1, read_only=True)
  try:
    found = checkpoints.restore_as_saved()
  finally:
    checkpoints.close()
  new = []
  for name, ours in {"params": params, "model_state": model_state}.items():
    theirs = found.get(name) or {}
    for path in sorted(ours.keys() | theirs.keys()):
      shapes = [getattr(x.get(path), "shape", None) for x in (theirs, ours)]
      if shapes[0] != shapes[1]:
        there, here = ("no such array" if shape is None else f"shape {shape}" for shape in shapes)
        raise ValueError(
          f"{what}, a run of another network: {path!r} has {there} there and {here} here. Give its "
          "config.model, and a data set of as many classes."
        )
    new.append({path: jnp.asarray(theirs[path], ours[path].dtype) for path in ours})
  return new[0], new[1]
