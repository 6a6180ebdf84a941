"""Exports a trained network: `python -m experiments.export --workdir=DIR --out=FILE`.

The file holds the condensed layers, whatever else the network needs, and where it comes from. What
was written is read back, and its test accuracy compared with the trained network's.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

import srigl_jax as sx
from experiments.common import cli
from experiments.common.environment import environment
from experiments.deploy.exported import Exported, load_exported
from experiments.deploy.inference import accuracy, num_bytes, predict
from experiments.training.load_run import LoadedRun, load_run


def export(trained: LoadedRun, path: Path, *, overwrite: bool = False) -> Exported:
  """Condenses a trained network, writes it to a file and reads it back.

  Args:
    trained: the network, of constant fan-in.
    path: of the file; folders are made.
    overwrite: whether an existing file may be replaced.

  Raises:
    ValueError: if the network is dense, or its masks have no constant fan-in.
    FileExistsError: if the file exists, unless `overwrite`.
  """
  config = trained.run.config
  if not trained.masks:
    raise ValueError(
      f"The run {config.name!r} is dense: there is nothing to condense. Export one of srigl, or of "
      "static with config.method.kwargs.structure=constant_fan_in."
    )
  if trained.run.is_condensed:
    model = sx.condense_trained(trained.model)
  else:
    image = jax.ShapeDtypeStruct((1, *trained.run.data.image_shape), jnp.float32)
    try:
      model = sx.condense_model(trained.model, trained.masks, image)
    except ValueError as error:
      raise ValueError(
        f"The run {config.name!r} was trained by {config.method.name!r} and cannot be exported. "
        f"{error} Export one of srigl, or of static with "
        "config.method.kwargs.structure=constant_fan_in."
      ) from error
  layers, arrays = sx.split_condensed(model)
  path.parent.mkdir(parents=True, exist_ok=True)
  sx.save_condensed(path, layers, _provenance(trained), arrays=arrays, overwrite=overwrite)
  return load_exported(path)


def _provenance(trained: LoadedRun) -> dict[str, Any]:
  """What the file says of the network: how to build and feed it, and what trained it."""
  data, settings = trained.run.data, trained.run.config.to_dict()
  settings["data"].pop("data_dir")  # of the machine, not of the network
  return {
    "image_shape": list(data.image_shape),
    "num_classes": data.num_classes,
    "step": trained.step,
    "config": settings,
    "environment": environment(),
  }


def main() -> int:
  """The command."""
  options = flags.FLAGS
  path = Path(options.out)
  if path.exists() and not options.overwrite:
    raise ValueError(f"{path} exists: give another --out, or --overwrite to replace it.")
  trained = load_run(Path(options.workdir), which=options.checkpoint, data_dir=options.data_dir)
  exported = export(trained, path, overwrite=options.overwrite)
  data = trained.run.data
  logits, labels = predict({"before": trained.model, "after": exported.model}, data)
  before, after = accuracy(logits["before"], labels), accuracy(logits["after"], labels)
  print(
    f"test accuracy {after:.2%} on {len(labels)} images; trained, at step "
    f"{trained.step}: {before:.2%}\n"
    f"{path.stat().st_size:,} bytes; the trained network's arrays: {num_bytes(trained.model):,}\n"
    f"model: {path}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of the run.", required=True)
  flags.DEFINE_string("out", None, "File to write, conventionally NAME.safetensors.", required=True)
  flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
  flags.DEFINE_string("data_dir", "", "TFDS folder, if it is not where the run's config says.")
  flags.DEFINE_bool("overwrite", False, "Replace FILE if it exists.")
  cli.run(main)
