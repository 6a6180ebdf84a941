"""Draws images: `python -m experiments.sample --workdir=DIR`, of a run of denoising diffusion.

It says how far they are from the test images (the Fréchet distance of pixels), and how near to
single training images; `--figure` is a picture of some. With the directory of a sweep it does so
for all its finished runs, and `--out` is a results file. `--model=FILE`, which experiments.export
wrote, takes a condensed network instead.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

from experiments.analysis.sample_quality import frechet_distance, nearest_distances
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from experiments.data.dataset import Dataset
from experiments.deploy.exported import load_data, load_exported
from experiments.deploy.sampling import draw_samples
from experiments.reports.plot_style import plt, save
from experiments.sweeps.results import mean_and_interval
from experiments.sweeps.spec import read_record
from experiments.training.load_run import load_run

_SHOWN = 10  # images in a row of the picture
TASK = "denoising_diffusion"


class Source(NamedTuple):
  """A network to draw from: its variant and seed in a sweep, itself, and its data set."""

  name: str
  seed: int
  model: nnx.Module
  data: Dataset


def sources(workdir: str, path: str, data_dir: str) -> Iterator[Source]:
  """The networks of a run, of a sweep's finished runs, or of a file.

  Raises:
    ValueError: unless one of the two is given, and is of denoising diffusion.
  """
  if bool(workdir) == bool(path):
    raise ValueError("Give either --workdir, of a run or a sweep, or --model, an exported file.")
  if path:
    exported = load_exported(Path(path))
    _check_task(exported.config)
    data = load_data(exported, data_dir=data_dir)
    yield Source(exported.config.name, exported.config.seed, exported.model, data)
    return
  root, found = Path(workdir), False
  runs = [("", root)]
  if (root / "sweep.json").exists():
    variants = read_record(root)["variants"].items()
    places = [(name, root / name / f"seed{s}") for name, v in variants for s in v["seeds"]]
    runs = [(name, place) for name, place in places if (place / "results.json").exists()]
  for name, place in runs:
    trained = load_run(place, data_dir=data_dir)
    config, found = trained.run.config, True
    _check_task(config)
    yield Source(name or config.name, config.seed, trained.model, trained.run.data)
  if not found:
    raise ValueError(f"{root} is a sweep of which no run is finished.")


def _check_task(config: Any) -> None:
  if config.task.name != TASK:
    raise ValueError(f"{config.name!r} is a network of {config.task.name}, not of {TASK}.")


def _pixels(data: Dataset, images: np.ndarray) -> np.ndarray:
  return np.asarray(data.preprocess_fn(jnp.asarray(images)))


def main() -> int:
  """The command."""
  options: Any = flags.FLAGS
  distances: dict[str, list[tuple[float, float]]] = {}
  rows: dict[str, np.ndarray] = {}
  for source in sources(options.workdir, options.model, options.data_dir):
    data = source.data
    train, test = (_pixels(data, x) for x in (data.train_images, data.test_images))
    images = draw_samples(
      source.model,
      options.num_samples,
      data.image_shape,
      num_steps=options.num_steps,
      noise=options.noise,
      seed=options.seed,
    )
    found = frechet_distance(images, test), float(np.median(nearest_distances(images, train)))
    distances.setdefault(source.name, []).append(found)
    rows.setdefault(source.name, images)
  reference = frechet_distance(train, test), float(np.median(nearest_distances(test, train)))
  table = _table(distances, reference)
  print(table)
  if options.figure:
    drawn = rows if len(rows) > 1 else {"drawn": images}
    _picture(drawn | {"test images": test}, Path(options.figure))
    print(f"picture: {options.figure}")
  if options.out:
    results = {
      "command": command_line("experiments.sample"),
      "environment": environment(),
      "table": table,
      "num_samples": options.num_samples,
      "distances": distances,
      "reference": reference,
    }
    write_json(Path(options.out), results)
  return 0


def _table(distances: dict[str, list[tuple[float, float]]], reference: tuple[float, float]) -> str:
  """A row for each variant; below, what the images themselves have."""
  rows = []
  for name, found in distances.items():
    (far, width), (near, _) = (mean_and_interval(x) for x in zip(*found, strict=True))
    interval = "" if np.isnan(width) else f" ± {width:.3f}"
    rows.append([name, str(len(found)), f"{far:.3f}{interval}", f"{near:.2f}"])
  rows.append(["the images themselves", "", f"{reference[0]:.3f}", f"{reference[1]:.2f}"])
  header = ["drawn by", "seeds", "Fréchet distance to test", "median distance to nearest in train"]
  return markdown_table(header, rows)


def _picture(rows: dict[str, np.ndarray], path: Path) -> None:
  """A row of images for each network; several of one network alone."""
  lines = []
  for name, images in rows.items():
    count = 1 if len(rows) > 2 else 5
    shown = images[: count * _SHOWN]
    lines += [(name if i == 0 else "", shown[i : i + _SHOWN]) for i in range(0, len(shown), _SHOWN)]
  figure, axes = plt.subplots(len(lines), _SHOWN, figsize=(_SHOWN * 0.7 + 2, len(lines) * 0.75))
  for (name, images), line in zip(lines, np.reshape(axes, (-1, _SHOWN)), strict=True):
    for axis in line:
      axis.set_axis_off()
    for axis, image in zip(line, images, strict=False):
      axis.imshow(np.clip(image.squeeze(), 0, 1), cmap="gray_r")
    line[0].text(-0.3, 0.5, name, transform=line[0].transAxes, ha="right", va="center", fontsize=8)
  save(figure, path)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", "", "Directory of a run or of a sweep.")
  flags.DEFINE_string("model", "", "Instead: a file that experiments.export wrote.")
  flags.DEFINE_integer("num_samples", 1000, "Images to draw from each network.", lower_bound=2)
  flags.DEFINE_integer("num_steps", 100, "Of the chain from noise to an image.", lower_bound=1)
  flags.DEFINE_float("noise", 1.0, "New noise of a step: 1 is DDPM's sampling, 0 DDIM's.")
  flags.DEFINE_integer("seed", 0, "Of the noise.")
  flags.DEFINE_string("figure", "", "Picture to write: some of the images, in rows.")
  flags.DEFINE_string("out", "", "Results file to write.")
  flags.DEFINE_string("data_dir", "", "Folder of the data set, if it is not where configs say.")
  cli.run(main)
