"""A network that `experiments.export` wrote, ready to run."""

import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments.common.json_pattern import misfit
from experiments.common.old_configs import converted
from experiments.tasks import Task, make_task
from experiments.workdir.patterns import CONFIG

_METADATA = {
  "config": CONFIG
  | {
    "data": {"name": str, "batch_size": int, "kwargs": dict},
    "model": {"name": str, "dtype": str, "kwargs": dict},
  },
  "step": int,
}
_OF_IMAGES = _METADATA | {"num_classes": int, "image_shape": [int]}
_OF_OTHERS = _METADATA | {"shapes": {str: (int, [int])}}
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

  @property
  def task(self) -> Task:
    """The task that it was trained for."""
    return make_task(self.config)

  @property
  def shapes(self) -> dict[str, Any]:
    """What the network was told of its inputs and outputs, see `tasks.Task`."""
    if "shapes" in self.metadata:
      shapes = self.metadata["shapes"].items()
      return {name: tuple(x) if isinstance(x, list) else x for name, x in shapes}
    shape = tuple(self.metadata["image_shape"])
    return {"num_classes": self.metadata["num_classes"], "image_shape": shape}


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
    model = _abstract_model(exported)
  except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path} does not say which network it holds ({error}): it is not a file that "
      "`python -m experiments.export` wrote. srigl_jax.load_condensed reads the layers of any."
    ) from error
  model = sx.merge_condensed(model, layers, arrays, backend=backend)
  exported = exported._replace(model=model)
  _check_outputs(exported)
  return exported


def _check_outputs(exported: Exported) -> None:
  """Refuses a network whose layers do not go together, or that gives no logit for each class."""
  path, metadata = exported.path, exported.metadata
  inputs = exported.task.inputs(exported.shapes, 1)
  run: Any = lambda model, inputs: model(inputs)
  try:
    outputs = nnx.eval_shape(run, exported.model, inputs)
  except (TypeError, ValueError) as error:
    raise ValueError(f"The layers in {path} do not go together: {error}") from error
  if "image_shape" in metadata and outputs.shape != (1, metadata["num_classes"]):
    raise ValueError(
      f"The network in {path} gives {outputs.shape[-1]} logits, but the file says that it has "
      f"{metadata['num_classes']} classes."
    )


def _check(metadata: dict[str, Any], num_arrays: int) -> None:
  """Refuses metadata of other forms, and sizes that no file of so many arrays can mean.

  Raises:
    ValueError: saying what is wrong.
  """
  is_of_images = "shapes" not in metadata
  if reason := misfit(metadata, _OF_IMAGES if is_of_images else _OF_OTHERS, "its metadata"):
    raise ValueError(reason)
  config = metadata["config"]
  for value in _leaves(config):
    if isinstance(value, str) and (not value.isprintable() or value.startswith("__")):
      raise ValueError(f"its config has {value[:80]!r}, which is no name")
  if is_of_images:
    shape = metadata["image_shape"]
    sizes = {"num_classes": metadata["num_classes"], "the size of images": math.prod(shape)}
    sizes |= {"the smallest axis of images": min(shape, default=1)}
  else:
    as_list = lambda x: x if isinstance(x, list) else [x]
    shapes = {name: as_list(x) for name, x in metadata["shapes"].items()}
    sizes = {name: math.prod(x) for name, x in shapes.items()}
    sizes |= {f"the smallest axis of {name}": min(x, default=1) for name, x in shapes.items()}
  images = [x for x in _leaves(config["data"]["kwargs"]) if isinstance(x, int | float)]
  sizes |= {"the largest argument of its data set": 1 + max(map(abs, images), default=0)}
  for name, size in sizes.items():
    if not 0 < size <= _MAX_SIZE:
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


def _abstract_model(exported: Exported) -> nnx.Module:
  """The model that a file describes, with shapes in place of arrays."""
  config = exported.config
  build = functools.partial(
    exported.task.build,
    config.model.name,
    dtype=config.model.dtype,
    **exported.shapes,
    **config.model.kwargs.to_dict(),
  )
  return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def load_data(exported: Exported, *, data_dir: str = "") -> Any:
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
  if data.validation_fraction:
    kwargs["validation_fraction"] = data.validation_fraction
  try:
    return exported.task.load(data.name, data_dir=data_dir or None, **kwargs)
  except (AttributeError, TypeError) as error:
    raise ValueError(f"The data set that {exported.path} names cannot be had: {error}") from error
