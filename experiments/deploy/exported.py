"""A network that `experiments.export` wrote, ready to run."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import models
from experiments.common.json_pattern import misfit
from experiments.common.old_configs import converted
from experiments.data import Dataset, load
from experiments.workdir.patterns import CONFIG

_METADATA = {
  "config": CONFIG
  | {
    "data": {"name": str, "batch_size": int, "kwargs": dict},
    "model": {"name": str, "dtype": str, "kwargs": dict},
  },
  "num_classes": int,
  "image_shape": [int],
  "step": int,
}
_MAX_SIZE = 2**24  # classes, numbers in an image, images
# Arguments of models that say how many layers there are, as a number or as a list of their sizes.
_LAYERS = ("hidden", "widths", "convs_per_stage", "depth")
_OF_THE_MACHINE = ("cache_dir", "data_dir", "num_workers")  # arguments of data sets


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

  What the file says of the network is held to the arrays that it has: the model is built without
  any of its own.

  Args:
    path: the file.
    backend: what its condensed layers are prepared for; see `srigl_jax.prepare`.

  Raises:
    FileNotFoundError: if there is no such file.
    ValueError: if the file is damaged, or is not of `experiments.export`.
  """
  if not path.exists():
    raise FileNotFoundError(
      f"There is no file {path}: `python -m experiments.export --workdir=DIR --out={path}` writes "
      "one from a trained run."
    )
  layers, arrays, metadata = sx.load_condensed_file(path)
  try:
    _check(metadata, len(layers) + len(arrays))
    exported = Exported(path, nnx.Module(), metadata)
    model = _abstract_model(exported.config, metadata)
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} does not say which network it holds ({error}): it is not a file that "
      "`python -m experiments.export` wrote. srigl_jax.load_condensed reads the layers of any."
    ) from error
  model = sx.merge_condensed(model, layers, arrays, backend=backend)
  _check_logits(path, model, metadata)
  return exported._replace(model=model)


def _check_logits(path: Path, model: nnx.Module, metadata: dict[str, Any]) -> None:
  """Refuses a network whose layers do not go together, or that gives no logit for each class."""
  image = jax.ShapeDtypeStruct((1, *metadata["image_shape"]), jnp.float32)
  try:
    shape = nnx.eval_shape(lambda model, image: model(image), model, image).shape
  except (TypeError, ValueError) as error:
    raise ValueError(f"The layers in {path} do not go together: {error}") from error
  if shape != (1, metadata["num_classes"]):
    raise ValueError(
      f"The network in {path} gives {shape[-1]} logits, but the file says that it has "
      f"{metadata['num_classes']} classes."
    )


def _check(metadata: dict[str, Any], num_arrays: int) -> None:
  """Refuses metadata of other forms, and sizes that no file of so many arrays can mean.

  Raises:
    ValueError: saying what is wrong.
  """
  if reason := misfit(metadata, _METADATA, "its metadata"):
    raise ValueError(reason)
  config, shape = metadata["config"], metadata["image_shape"]
  for value in _leaves(config):
    if isinstance(value, str) and (not value.isprintable() or value.startswith("__")):
      raise ValueError(f"its config has {value[:80]!r}, which is no name")
  sizes = {"num_classes": metadata["num_classes"], "the size of images": math.prod(shape)}
  images = [x for x in _leaves(config["data"]["kwargs"]) if isinstance(x, int | float)]
  sizes |= {"the largest argument of its data set": 1 + max(map(abs, images), default=0)}
  for name, size in sizes.items():
    if not 0 < size <= _MAX_SIZE or min(shape) < 1:
      raise ValueError(f"{name} is {size}; it must lie in 1..{_MAX_SIZE}")
  kwargs = config["model"]["kwargs"]
  num_layers = math.prod(_count(kwargs[name]) for name in _LAYERS if name in kwargs)
  if num_layers > num_arrays:
    raise ValueError(f"it has {num_arrays} arrays, but its model {num_layers} layers or more")


def _leaves(value: Any) -> Iterator[Any]:
  """What is in a JSON value, keys as well."""
  if isinstance(value, dict):
    yield from value
    value = list(value.values())
  if isinstance(value, list):
    for part in value:
      yield from _leaves(part)
  else:
    yield value


def _count(value: Any) -> int:
  if isinstance(value, list):
    return len(value)
  return value if isinstance(value, int) else 1


def _abstract_model(config: ConfigDict, metadata: dict[str, Any]) -> nnx.Module:
  """The model that a file describes, with shapes in place of arrays."""
  build = functools.partial(
    models.build,
    config.model.name,
    num_classes=metadata["num_classes"],
    image_shape=tuple(metadata["image_shape"]),
    dtype=config.model.dtype,
    **config.model.kwargs.to_dict(),
  )
  return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def load_data(exported: Exported, *, data_dir: str = "") -> Dataset:
  """The data set that the network was trained on.

  Args:
    exported: the network.
    data_dir: folder of the TensorFlow Datasets; empty: `$TFDS_DATA_DIR`.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if the data set is not one of here, or its arguments are not.
  """
  data = exported.config.data
  kwargs = {k: v for k, v in data.kwargs.to_dict().items() if k not in _OF_THE_MACHINE}
  kwargs["validation_fraction"] = data.validation_fraction
  try:
    return load(data.name, data_dir=data_dir or None, **kwargs)
  except (AttributeError, TypeError) as error:
    raise ValueError(f"The data set that {exported.path} names cannot be had: {error}") from error
