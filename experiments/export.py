"""Exports a trained network: `python -m experiments.export --workdir=DIR --out=FILE`.

The file holds the condensed layers, whatever else the network needs, and where it comes from. What
was written is read back, and its test accuracy compared with the trained network's.

`--format` is for other runtimes: `c` writes `NAME.c` and `NAME.h` of plain C99
(`--out=DIR/NAME.c`), `onnx` an ONNX file, `torch` a PyTorch `state_dict`, dense, in safetensors
format. For `c` and `onnx`, `--model=FILE` takes what this command wrote before in place of
`--workdir`.
"""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from absl import flags
from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments.common import cli
from experiments.common.environment import environment
from experiments.common.files import as_json
from experiments.deploy import formats
from experiments.deploy.evaluation import evaluate
from experiments.deploy.exported import Exported, load_data, load_exported
from experiments.deploy.formats import calibration
from experiments.deploy.inference import num_bytes
from experiments.models.gpt import GPT, unstacked
from experiments.training.load_run import LoadedRun, load_run
from srigl_kernels import DTYPES

# Flags that only some formats take, which others would pass over in silence.
_BELONGS_TO = {
  "dtype": ("condensed",),
  "max_error": ("condensed",),
  "arithmetic": ("c",),
  "style": ("c",),
  "form": ("onnx",),
  "output": ("c", "onnx"),
}


def export(
  trained: LoadedRun,
  path: Path,
  *,
  overwrite: bool = False,
  dtype: str = "float32",
  max_error: float = 0.05,
) -> Exported:
  """Condenses a trained network, writes it to a file and reads it back.

  Args:
    trained: the network, of constant fan-in.
    path: of the file; folders are made.
    overwrite: whether an existing file may be replaced.
    dtype: what products are of: `"float32"` for what the network computes in, or as for
      `srigl_jax.quantize_model`, with training images as inputs; its report is printed.
    max_error: of a layer, likewise.

  Raises:
    ValueError: if the network is dense, or its masks have no constant fan-in.
    FileExistsError: if the file exists, unless `overwrite`.
  """
  model = condensed(trained)
  if dtype != "float32":
    _check_images(trained.run.config, f"--dtype={dtype}", "--dtype=float32")
    images = jnp.asarray(calibration(trained.run.data))
    model, report = sx.quantize_model(model, images, dtype, max_error=max_error)
    print(report)
  layers, arrays = sx.split_condensed(model)
  path.parent.mkdir(parents=True, exist_ok=True)
  sx.save_condensed(path, layers, _provenance(trained), arrays=arrays, overwrite=overwrite)
  return load_exported(path)


def condensed(trained: LoadedRun) -> nnx.Module:
  """The condensed form of a trained network.

  Raises:
    ValueError: if the network is dense, or its masks have no constant fan-in.
  """
  config = trained.run.config
  if not trained.masks:
    raise ValueError(
      f"The run {config.name!r} is dense: there is nothing to condense. Export one of srigl, or of "
      "static with config.method.kwargs.structure=constant_fan_in."
    )
  if trained.run.is_condensed:
    return sx.condense_trained(trained.model)
  inputs = trained.run.task.inputs(trained.run.shapes, 1)
  model, masks = trained.model, trained.masks
  if isinstance(model, GPT):
    model, masks = unstacked(model, masks)  # a file holds no stacks
  try:
    return sx.condense_model(model, masks, inputs)
  except ValueError as error:
    raise ValueError(
      f"The run {config.name!r} was trained by {config.method.name!r} and cannot be exported. "
      f"{error} Export one of srigl, or of static with "
      "config.method.kwargs.structure=constant_fan_in."
    ) from error


def _provenance(trained: LoadedRun) -> dict[str, Any]:
  """What the file says of the network: how to build and feed it, and what trained it."""
  shapes, settings = as_json(trained.run.shapes), trained.run.config.to_dict()
  settings["data"].pop("data_dir")  # of the machine, not of the network
  if isinstance(trained.model, GPT):
    settings["model"]["kwargs"]["scan"] = False
  return {
    **(shapes if "image_shape" in shapes else {"shapes": shapes}),
    "step": trained.step,
    "config": settings,
    "environment": environment(),
  }


def main() -> int:
  """The command."""
  options = flags.FLAGS
  path = Path(options.out)
  if bool(options.workdir) == bool(options.model):
    raise ValueError("Give either --workdir, of a run, or --model, a file that was exported.")
  for name, takers in _BELONGS_TO.items():
    if options.format not in takers and options[name].value != options[name].default:
      raise ValueError(
        f"--{name} is of --format={' and '.join(takers)}; --format={options.format} does not take "
        "it."
      )
  if options.model and options["checkpoint"].value != options["checkpoint"].default:
    raise ValueError(
      "--checkpoint chooses one of a run's; --model is a file that holds one network."
    )
  if options.format != "condensed":
    return _export_elsewhere(path)
  if options.model:
    raise ValueError(f"{options.model} is condensed already: --format takes c or onnx for it.")
  if path.exists() and not options.overwrite:
    raise ValueError(f"{path} exists: give another --out, or --overwrite to replace it.")
  trained = load_run(Path(options.workdir), which=options.checkpoint, data_dir=options.data_dir)
  exported = export(
    trained,
    path,
    overwrite=options.overwrite,
    dtype=options.dtype,
    max_error=options.max_error,
  )
  run, score = trained.run, trained.run.task.score
  before, after = (
    score.text(evaluate(model, run.task, run.pipeline)[score.name])
    for model in (trained.model, exported.model)
  )
  print(
    f"test {score.label} {after} on {run.data.num_test} {run.task.unit}; trained, at step "
    f"{trained.step}: {before}\n"
    f"{path.stat().st_size:,} bytes; the trained network's arrays: {num_bytes(trained.model):,}\n"
    f"model: {path}"
  )
  return 0


def _check_images(config: ConfigDict, what: str, instead: str) -> None:
  """Refuses what is there for networks of images only.

  Raises:
    ValueError: naming the task.
  """
  if config.task.name != "image_classification":
    raise ValueError(
      f"{what} is for networks of image_classification, and {config.name!r} is one of "
      f"{config.task.name}: give {instead}."
    )


def _export_elsewhere(path: Path) -> int:
  """The command for other runtimes."""
  options = flags.FLAGS
  data: Any
  if options.model:
    exported = load_exported(Path(options.model))
    _check_images(exported.config, f"--format={options.format}", "--format=condensed")
    model, data = exported.model, load_data(exported, data_dir=options.data_dir)
    if options.format == "torch":
      raise ValueError(
        "--format=torch needs the trained network with its batch norms, which an exported file has "
        "no more: give --workdir."
      )
  else:
    which, data_dir = options.checkpoint, options.data_dir
    trained = load_run(Path(options.workdir), which=which, data_dir=data_dir)
    _check_images(trained.run.config, f"--format={options.format}", "--format=condensed")
    if options.format != "torch":
      model, data = condensed(trained), trained.run.data
  common: dict[str, Any] = {"overwrite": options.overwrite}
  if options.format == "torch":
    written = formats.write_torch(trained, path, **common)
  elif options.format == "onnx":
    written = formats.write_onnx(
      model, data, path, form=options.form, output=options.output, **common
    )
  else:
    chosen = {"arithmetic": options.arithmetic, "style": options.style, "output": options.output}
    written = formats.write_c(model, data, path, **chosen, **common)
  print(written.note)
  print(f"{options.format}: {', '.join(map(str, written.paths))}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of the run.")
  flags.DEFINE_string("model", None, "Instead: a file that this command wrote, for c and onnx.")
  flags.DEFINE_string("out", None, "File to write, conventionally NAME.safetensors.", required=True)
  names = ["condensed", "c", "onnx", "torch"]
  flags.DEFINE_enum("format", "condensed", names, "What to write.")
  flags.DEFINE_enum("dtype", "float32", DTYPES, "Of condensed: what its products are of.")
  flags.DEFINE_float("max_error", 0.05, "With --dtype: of a layer; one beyond it keeps more bits.")
  flags.DEFINE_string("arithmetic", "float32", "Of c: float32, int8, or fixed point such as q3.12.")
  flags.DEFINE_enum("style", "auto", ["auto", "loops", "unrolled"], "Of c: how it is written.")
  flags.DEFINE_enum("form", "gather", ["gather", "dense"], "Of onnx: how sparse layers are stored.")
  flags.DEFINE_enum("output", "logits", ["logits", "softmax"], "Of c and onnx.")
  flags.DEFINE_enum("checkpoint", "last", ["last", "best"], "Which checkpoint.")
  flags.DEFINE_string("data_dir", "", "TFDS folder, if it is not where the run's config says.")
  flags.DEFINE_bool("overwrite", False, "Replace FILE if it exists.")
  cli.run(main)
