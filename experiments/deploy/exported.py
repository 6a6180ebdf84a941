"""A network that `experiments.export` wrote, ready to run."""

from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.common.old_configs import converted
from experiments.data import Dataset, load


class Exported(NamedTuple):
  """An exported network.

  Attributes:
    path: of its file.
    model: the module; it is called with images `[B, H, W, C]` as the trained one was.
    metadata: how to build and feed it, and what trained it.
  """

  path: Path
  model: nnx.Module
  metadata: dict[str, Any]

  @property
  def config(self) -> ConfigDict:
    """The config of the run that trained it, in today's form."""
    return ConfigDict(converted(self.metadata["config"]))


def load_exported(path: Path, *, backend: str = "auto") -> Exported:
  """Reads an exported network; nothing in the file is executed.

  Args:
    path: the file.
    backend: what its condensed layers are prepared for; see `srigl_jax.prepare`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is damaged, or is not of `experiments.export`.
  """
  if not path.is_file():
    raise FileNotFoundError(
      f"There is no file {path}: `python -m experiments.export --workdir=DIR --out={path}` writes "
      "one from a trained run."
    )
  layers, arrays, metadata = sx.load_condensed_file(path)
  try:
    settings = metadata["config"]["model"]
    model = models.build(
      settings["name"],
      num_classes=metadata["num_classes"],
      image_shape=tuple(metadata["image_shape"]),
      dtype=settings["dtype"],
      rngs=nnx.Rngs(0),
      **settings["kwargs"],
    )
  except (KeyError, TypeError) as error:
    raise ValueError(
      f"{path} does not say which network it holds ({error!r}): it is not a file that "
      "`python -m experiments.export` wrote. srigl_jax.load_condensed reads the layers of any."
    ) from error
  return Exported(path, sx.merge_condensed(model, layers, arrays, backend=backend), metadata)


def load_data(exported: Exported, *, data_dir: str = "") -> Dataset:
  """The data set that the network was trained on.

  Args:
    exported: the network.
    data_dir: folder of the TensorFlow Datasets; empty: `$TFDS_DATA_DIR`.

  Raises:
    FileNotFoundError: if it is not there.
  """
  data = exported.config.data
  return load(data.name, data_dir=data_dir or None, **data.kwargs.to_dict())
