"""Feature diversity of trained networks: `python -m experiments.diversity --workdir=SWEEP`.

For the finished runs of a sweep, on the test set: the effective rank of every layer's features, and
how alike a layer's features are between runs (CKA), among the seeds of a variant and from variant
to variant. It prints tables and leaves a results file and a figure in the sweep's directory, or
where `--out` and `--figure` say.
"""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from experiments.analysis.layer_features import Measured, Run, measure
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from experiments.data import Dataset, ImageStream
from experiments.sweeps.plots import diversity as diversity_figure
from experiments.sweeps.results import mean_and_interval
from experiments.sweeps.spec import read_record
from experiments.training.load_run import load_run

Pair = tuple[str, str]  # of variants


def load_sweep(
  workdir: Path, *, variants: Sequence[str] = (), data_dir: str = ""
) -> tuple[dict[Run, nnx.Module], Dataset | ImageStream]:
  """Reads the finished runs of a sweep.

  Args:
    workdir: the sweep's.
    variants: to read; default: all.
    data_dir: where the data set is now; empty: where the configs say.

  Returns:
    The networks, and the data set that they share.

  Raises:
    ValueError: if it is no sweep's directory, a variant is not there, no run is finished, or runs
      have different test sets.
  """
  if not (workdir / "sweep.json").exists():
    raise ValueError(f"{workdir} holds no sweep: it has no sweep.json. Run experiments.sweep.")
  sweep = read_record(workdir)
  if unknown := [name for name in variants if name not in sweep["variants"]]:
    raise ValueError(
      f"The sweep has no variant {unknown[0]!r}. It has: {', '.join(sweep['variants'])}."
    )
  models: dict[Run, nnx.Module] = {}
  data, settings = None, None
  runs = [
    (name, seed)
    for name in variants or sweep["variants"]
    for seed in sweep["variants"][name]["seeds"]
  ]
  for variant, seed in runs:
    directory = workdir / variant / f"seed{seed}"
    if not (directory / "results.json").exists():
      continue
    trained = load_run(directory, data_dir=data_dir)
    data, settings = data or trained.run.data, settings or trained.run.config.data
    if trained.run.config.data != settings:
      raise ValueError(
        f"{directory} has another test set than the runs before it, and features can be compared "
        "on the same images only: choose --variants of one data set."
      )
    models[variant, seed] = trained.model
  if data is None:
    raise ValueError(f"No run in {workdir} is finished: run the sweep again, it goes on.")
  return models, data


def rank_by_variant(measured: Measured) -> dict[str, dict[str, tuple[float, float]]]:
  """Effective rank by variant and layer: mean over seeds, half width of the 95 % interval."""
  variants = dict.fromkeys(variant for variant, _ in measured.runs)
  return {
    variant: {
      layer: mean_and_interval(
        [
          ranks[i]
          for run, ranks in zip(measured.runs, measured.effective_ranks, strict=True)
          if run[0] == variant
        ]
      )
      for i, layer in enumerate(measured.layers)
    }
    for variant in variants
  }


def cka_by_pair(measured: Measured) -> dict[Pair, np.ndarray]:
  """CKA `[layers, layers]` by pair of variants, mean over the pairs of runs with different seeds.

  Runs of the same seed start from the same weights and are left out, unless two variants share
  their only seed. A variant with one seed has no pair with itself.
  """
  variants = list(dict.fromkeys(variant for variant, _ in measured.runs))
  result = {}
  for one, other in itertools.combinations_with_replacement(variants, 2):
    pairs = [
      (i, j)
      for (i, a), (j, b) in itertools.product(enumerate(measured.runs), repeat=2)
      if i != j and a[0] == one and b[0] == other
    ]
    of_different_seeds = [(i, j) for i, j in pairs if measured.runs[i][1] != measured.runs[j][1]]
    if chosen := of_different_seeds or pairs:
      # A layer without features in one run leaves that pair out, not the others.
      result[one, other] = _mean([measured.cka[i, :, j] for i, j in chosen])
  return result


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
  """Mean over the first axis of what is not nan; nan where all are."""
  stacked = np.asarray(values)
  known = ~np.isnan(stacked)
  count = known.sum(0)
  return np.where(count, np.where(known, stacked, 0).sum(0) / np.maximum(count, 1), np.nan)


def markdown_tables(measured: Measured) -> str:
  """Effective rank by layer and variant; below, mean CKA of like layers by pair of variants."""
  ranks, pairs = rank_by_variant(measured), cka_by_pair(measured)
  rank_rows = [
    [layer, count, *(_with_interval(*by_layer[layer]) for by_layer in ranks.values())]
    for layer, count in zip(measured.layers, measured.num_features, strict=True)
  ]

  def cka(one: str, other: str) -> str:
    matrix = pairs.get((one, other), pairs.get((other, one)))
    return "" if matrix is None else f"{np.nanmean(np.diagonal(matrix)):.3f}"

  return "\n\n".join(
    [
      markdown_table(["effective rank", "features", *ranks], rank_rows),
      markdown_table(["CKA", *ranks], [[one, *(cka(one, b) for b in ranks)] for one in ranks]),
    ]
  )


def _with_interval(mean: float, half_width: float) -> str:
  return f"{mean:.1f}" if math.isnan(half_width) else f"{mean:.1f} ± {half_width:.1f}"


def as_json(measured: Measured, command: str) -> dict[str, Any]:
  """Everything that was measured, in the form of a results file; nan is null."""
  values = measured.cka.astype(object)
  values[np.isnan(measured.cka)] = None
  return {
    "command": command,
    "environment": environment(),
    "table": markdown_tables(measured),
    "runs": [f"{variant}/seed{seed}" for variant, seed in measured.runs],
    "layers": measured.layers,
    "num_features": measured.num_features,
    "num_examples": measured.num_examples,
    "effective_ranks": measured.effective_ranks.tolist(),
    "cka": values.tolist(),
  }


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  models, data = load_sweep(workdir, variants=flags.FLAGS.variants, data_dir=flags.FLAGS.data_dir)
  measured = measure(
    models,
    data,
    layers=flags.FLAGS.layers,
    batch_size=flags.FLAGS.batch,
    num_examples=flags.FLAGS.examples or None,
    normalize=flags.FLAGS.normalize,
  )
  out = Path(flags.FLAGS.out or workdir / "diversity.json")
  figure = Path(flags.FLAGS.figure or workdir / "figures" / "diversity.png")
  results = as_json(measured, command_line("experiments.diversity"))
  write_json(out, results)
  diversity_figure(
    rank_by_variant(measured),
    cka_by_pair(measured),
    dict(zip(measured.layers, measured.num_features, strict=True)),
    figure,
  )
  print(results["table"])
  print(f"{measured.num_examples} test images; results in {out}, figure in {figure}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a sweep.", required=True)
  flags.DEFINE_list("variants", [], "Variants to compare; default: all.")
  flags.DEFINE_list("layers", [], "Modules to look at; default: all with a kernel but the head.")
  flags.DEFINE_integer("batch", 200, "Test images at a time.", lower_bound=4)
  flags.DEFINE_integer("examples", 0, "Test images to use; 0: all.", lower_bound=0)
  flags.DEFINE_bool("normalize", False, "Scale every neuron to variance 1 first, as a norm would.")
  flags.DEFINE_string("data_dir", "", "TFDS folder, if $TFDS_DATA_DIR is not it.")
  flags.DEFINE_string("out", "", "Results file; default: diversity.json of the sweep.")
  flags.DEFINE_string("figure", "", "Image; default: figures/diversity.png of the sweep.")
  cli.run(main)
