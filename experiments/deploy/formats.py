"""Trained networks in the formats of other runtimes: C, ONNX, PyTorch's `state_dict`."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx
from experiments.data import Dataset, ImageStream, test_examples
from experiments.deploy.inference import accuracy, predict
from experiments.models.export_torch import to_state_dict, write_state_dict
from experiments.training.load_run import LoadedRun

_NUM_CALIBRATION = 512  # training images that the ranges of integers are taken from


class Written(NamedTuple):
  """What was written.

  Attributes:
    paths: of the files.
    note: what to know of them, a line.
  """

  paths: tuple[Path, ...]
  note: str


def write_c(
  model: nnx.Module, data: Dataset | ImageStream, path: Path, *, overwrite: bool, **options: Any
) -> Written:
  """Writes `NAME.c` and `NAME.h`, and says the accuracy of their arithmetic.

  Args:
    model: condensed.
    data: its data set; training images give the ranges of integers.
    path: `DIR/NAME.c`.
    overwrite: whether existing files may be replaced.
    options: of `srigl_jax.export_c`: arithmetic, style, output.

  Raises:
    ValueError: if the path does not end in `.c`, or the network cannot be exported.
    FileExistsError: if a file exists, unless `overwrite`.
  """
  if path.suffix != ".c":
    raise ValueError(f"--out is {path}; for C it must be DIR/NAME.c, beside which NAME.h is put.")
  exported = sx.export_c(
    model, example(data), name=path.stem, calibration=calibration(data), **options
  )
  paths = exported.write(path.parent, overwrite=overwrite)
  logits, labels = predict({"model": model}, data)
  preprocess, found = jax.jit(data.preprocess_fn), []
  for images, _ in test_examples(data, batch_size=500):
    found.append(exported.run(np.asarray(preprocess(jnp.asarray(images)))))
  return Written(
    paths,
    f"test accuracy of the C arithmetic ({exported.plan.name}) "
    f"{accuracy(np.concatenate(found), labels):.2%}; of the network "
    f"{accuracy(logits['model'], labels):.2%}, on {len(labels)} images\n"
    f"{exported.num_weights:,} weights in {exported.style}; stack {exported.stack_bytes:,} bytes",
  )


def calibration(data: Dataset | ImageStream) -> np.ndarray:
  """Inputs of the network, from training images where they are in memory, else from test images."""
  if isinstance(data, Dataset):
    images = data.train_images[:_NUM_CALIBRATION]
  else:
    images, _ = next(iter(test_examples(data, batch_size=_NUM_CALIBRATION)))
  return np.asarray(data.preprocess_fn(jnp.asarray(images)))


def write_onnx(
  model: nnx.Module, data: Dataset | ImageStream, path: Path, *, overwrite: bool, **options: Any
) -> Written:
  """Writes an ONNX file.

  Args:
    model: condensed.
    data: its data set, for the shape of its images.
    path: of the file.
    overwrite: whether an existing file may be replaced.
    options: of `srigl_jax.export_onnx`: form, output.
  """
  sx.export_onnx(model, path, example(data), overwrite=overwrite, **options)
  return Written((path,), f"{path.stat().st_size:,} bytes")


def write_torch(trained: LoadedRun, path: Path, *, overwrite: bool) -> Written:
  """Writes a PyTorch `state_dict`, dense, in safetensors format.

  Args:
    trained: the network; batch norms are kept, as PyTorch's networks have them.
    path: of the file.
    overwrite: whether an existing file may be replaced.

  Raises:
    ValueError: if PyTorch has no such network.
    FileExistsError: if the file exists, unless `overwrite`.
  """
  if path.exists() and not overwrite:
    raise FileExistsError(f"{path} exists: give another --out, or --overwrite to replace it.")
  state = to_state_dict(dense_arrays(trained), name=trained.run.config.model.name)
  write_state_dict(path, state)
  return Written((path,), f"{len(state)} arrays, {path.stat().st_size:,} bytes")


def dense_arrays(trained: LoadedRun) -> dict[str, np.ndarray]:
  """Parameters and batch statistics of a trained network by path, zeros for missing weights."""
  model = trained.model
  if not trained.run.is_condensed:
    state = nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat)))
    return {"/".join(map(str, path)): np.asarray(x.get_value()) for path, x in state}
  layers, arrays = sx.split_condensed(sx.condense_trained(model))
  found = {path: np.asarray(x) for path, x in arrays.items()}
  for path, layer in layers.items():
    kernel, _, bias = sx.expand(layer)
    found[path] = np.asarray(kernel)
    if bias is not None:
      found[path.removesuffix("kernel") + "bias"] = np.asarray(bias)
  return found


def example(data: Dataset | ImageStream) -> jax.ShapeDtypeStruct:
  """The shape of one image as the network takes it."""
  return jax.ShapeDtypeStruct((1, *data.image_shape), jnp.float32)
