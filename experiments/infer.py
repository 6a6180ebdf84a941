"""Evaluates and times an exported network: `python -m experiments.infer --model=FILE`.

Accuracy, size and latency by batch size, of the exported network, of the same with dense matrices
of the active neurons only ("structured"), and of its dense twin. The twin is the trained network
itself if `--workdir=DIR` names the run, and computes its batch norms, which are folded in the file;
else, or if the network has never been dense, it is what the file's layers expand to. With
`--dtypes=bfloat16 --dtypes=int8` also the accuracy of its products in fewer bits.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

import srigl_jax as sx
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json, write_text
from experiments.deploy.exported import Exported, load_data, load_exported
from experiments.deploy.formats import calibration
from experiments.deploy.inference import (
  accuracy,
  format_latencies,
  largest_difference,
  latencies,
  num_bytes,
  predict,
)
from experiments.reports import figures
from experiments.training.load_run import load_run
from srigl_kernels import DTYPES


def infer(
  exported: Exported,
  *,
  batch_sizes: list[int],
  rounds: int,
  dtypes: Sequence[str] = (),
  workdir: Path | None = None,
  data_dir: str = "",
) -> dict[str, Any]:
  """Evaluates and times an exported network beside its twins.

  Args:
    exported: the network.
    batch_sizes: to time.
    rounds: of timing.
    dtypes: of `srigl_jax.quantize_model`, in which it is evaluated, too, every layer of it; their
      ranges are calibrated on training images.
    workdir: of the run that trained it, for the dense twin.
    data_dir: folder of the TensorFlow Datasets; empty: `$TFDS_DATA_DIR`.

  Returns:
    What `results.json` holds.

  Raises:
    ValueError: if the run in `workdir` is not the one that was exported.
    FileNotFoundError: if the data set is not there.
  """
  if exported.config.task.name != "image_classification":
    raise ValueError(
      f"{exported.path} holds a network of {exported.config.task.name}; this command is for those "
      "of image_classification. experiments.export says the score of what it writes."
    )
  data = load_data(exported, data_dir=data_dir)
  dense = load_exported(exported.path, backend="dense").model
  if workdir is not None:
    trained = load_run(workdir, data_dir=data_dir)
    ours, theirs = (dict(x.to_dict()) for x in (exported.config, trained.run.config))
    ours["data"].pop("data_dir", None)
    theirs["data"].pop("data_dir", None)
    if ours != theirs or trained.step != exported.metadata["step"]:
      raise ValueError(
        f"{exported.path} was not exported from the last checkpoint of {workdir}: give the "
        "--workdir of its own run, or none."
      )
    if not trained.run.is_condensed:
      dense = trained.model
  structured = load_exported(exported.path, backend="structured").model
  candidates = {"dense": dense, "structured": structured, "condensed": exported.model}
  logits, labels = predict(candidates | _in_fewer_bits(exported, data, dtypes), data)
  times = {
    size: latencies(candidates, data, batch_size=size, rounds=rounds) for size in batch_sizes
  }
  return {
    "model": exported.config.name,
    "test_images": len(labels),
    "accuracy": {name: accuracy(x, labels) for name, x in logits.items()},
    "largest_difference": {
      name: largest_difference(x, logits["dense"]) for name, x in logits.items() if name != "dense"
    },
    "bytes_on_disk": {
      "dense": num_bytes(dense),
      "condensed": exported.path.stat().st_size,
    },
    "bytes_in_memory": {name: num_bytes(model) for name, model in candidates.items()},
    "seconds": times,
    "table": format_latencies(times, base="dense"),
    "command": command_line("experiments.infer"),
    "environment": environment(),
  }


def _in_fewer_bits(exported: Exported, data: Any, dtypes: Sequence[str]) -> dict[str, Any]:
  """The network in each of these precisions, whatever the error of a layer."""
  images = jnp.asarray(calibration(data)) if dtypes else None
  quantize = lambda dtype: sx.quantize_model(
    exported.model, images, dtype, max_error=math.inf, calibrate=dtype == "int8"
  )
  return {f"condensed {dtype}": quantize(dtype)[0] for dtype in dtypes}


def write_report(results: dict[str, Any], directory: Path) -> Path:
  """Writes results.json, report.md and latency.png; returns the report's path."""
  write_json(directory / "results.json", results)
  figures.latency(results["seconds"], directory / "latency.png")
  path = directory / "report.md"
  lines = [f"# {results['model']}, exported", "", summary(results), "", results["table"], ""]
  write_text(path, "\n".join([*lines, "![Latency by batch size](latency.png)", ""]))
  return path


def summary(results: dict[str, Any]) -> str:
  """Accuracy, differences and sizes as a list."""
  named = lambda values, form: ", ".join(f"{name} {form(x)}" for name, x in values.items())
  kilobytes = lambda x: f"{x / 1e3:,.1f} kB"
  return "\n".join(
    [
      f"- test accuracy on {results['test_images']} images: "
      + named(results["accuracy"], lambda x: f"{x:.2%}"),
      "- largest difference of a logit from the dense network's, relative to the image's largest "
      "logit: " + named(results["largest_difference"], lambda x: f"{x:.1e}"),
      "- size on disk: " + named(results["bytes_on_disk"], kilobytes),
      "- size in memory: " + named(results["bytes_in_memory"], kilobytes),
    ]
  )


def main() -> int:
  """The command."""
  options = flags.FLAGS
  path = Path(options.model)
  directory = Path(options.out) if options.out else path.with_name(f"{path.stem}-inference")
  if (directory / "results.json").exists() and not options.overwrite:
    raise ValueError(
      f"{directory} holds results already: give another --out, or --overwrite to replace them."
    )
  results = infer(
    load_exported(path),
    batch_sizes=[_positive(size) for size in options.batch],
    rounds=options.rounds,
    dtypes=options.dtypes,
    workdir=Path(options.workdir) if options.workdir else None,
    data_dir=options.data_dir,
  )
  report = write_report(results, directory)
  print(f"\n{summary(results)}\n\n{results['table']}\n")
  print(f"on {len(jax.devices())} × {jax.default_backend()}")
  print(f"figure: {directory / 'latency.png'}\nreport: {report}")
  return 0


def _positive(size: str) -> int:
  if not size.isdecimal() or int(size) < 1:
    raise ValueError(f"--batch has {size!r}; it must be sizes of 1 or more: --batch=1,16,256.")
  return int(size)


if __name__ == "__main__":
  flags.DEFINE_string("model", None, "File that experiments.export wrote.", required=True)
  flags.DEFINE_string("workdir", None, "Directory of the run that trained it, for the dense twin.")
  flags.DEFINE_list("batch", ["1", "16", "64", "256"], "Batch sizes to time.")
  flags.DEFINE_integer("rounds", 20, "Rounds of timing.", lower_bound=1)
  flags.DEFINE_multi_enum("dtypes", [], DTYPES[1:], "Fewer bits, in which it is evaluated, too.")
  flags.DEFINE_string("data_dir", "", "TFDS folder, if $TFDS_DATA_DIR is not it.")
  flags.DEFINE_string("out", None, "Directory for report and figure; default: beside the model.")
  flags.DEFINE_bool("overwrite", False, "Replace the results there.")
  cli.run(main)
