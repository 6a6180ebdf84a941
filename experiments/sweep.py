"""Trains a grid of runs.

`python -m experiments.sweep --config=configs/sweeps/NAME.py --workdir=DIR`

Each variant with each seed is a run in `DIR/variant/seedN`. The same command goes on where it was
stopped and skips what is finished; it ends with one table and one figure of all runs.
"""

import sys
import warnings
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from experiments.files import read_json, write_json
from experiments.interrupt import Interrupted
from experiments.report import write_sweep_report
from experiments.train import check_owner, train


def expand(sweep: ConfigDict) -> dict[str, ConfigDict]:
  """The runs of a sweep: `{"variant/seedN": config}`.

  Args:
    sweep: `base` (a run's config), `variants` (pairs of a name and the differences,
      `{section: {field: value}}`) and `seeds`.

  Raises:
    ValueError: if there is nothing to run, if two runs have one name, or if a variant sets a field
      that the base has not.
  """
  if "variants" not in sweep:
    raise ValueError("This config is a single run's: use python -m experiments.train.")
  if not sweep.variants or not sweep.seeds:
    raise ValueError(
      f"The sweep {sweep.name!r} has {len(sweep.variants)} variants and {len(sweep.seeds)} seeds; "
      "it needs one of each at least."
    )
  runs = {}
  for variant, differences in sweep.variants:
    for seed in sweep.seeds:
      config = ConfigDict(sweep.base.to_dict()).lock()
      try:
        config.update(differences)
      except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
          f"Variant {variant!r} of the sweep does not fit its base: {error}"
        ) from error
      config.seed = seed
      config.name = f"{variant}, seed {seed}"
      name = f"{variant}/seed{seed}"
      if name in runs:
        raise ValueError(f"The sweep {sweep.name!r} has two runs {name!r}: names must differ.")
      runs[name] = config
  return runs


def run_sweep(
  sweep: ConfigDict, workdir: Path, *, command: str = ""
) -> tuple[Path, str, list[str]]:
  """Trains what is not finished, and reports.

  Args:
    sweep: see `expand`.
    workdir: directory of this sweep and no other.
    command: that started it, for the record.

  Returns:
    The report's path, its table, and the names of runs that failed (the others go on).

  Raises:
    ValueError: if the sweep is not usable, `workdir` holds runs of another one under the same
      names, or no run could be finished.
    Interrupted: if a run was asked to stop.
  """
  runs = expand(sweep)
  for name, config in runs.items():
    check_owner(workdir / name, config)
  write_json(
    workdir / "sweep.json",
    {
      "name": sweep.name,
      "variants": [name for name, _ in sweep.variants],
      "seeds": list(sweep.seeds),
      "command": command,
    },
  )
  failed = []
  for i, (name, config) in enumerate(runs.items(), start=1):
    done = read_json(workdir / name / "results.json") is not None
    print(f"[{i}/{len(runs)}] {name}{': already finished' if done else ''}", flush=True)
    try:
      train(config, workdir / name)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
      failed.append(name)
      warnings.warn(f"Run {name} failed: {error}", stacklevel=1)
  path, table = write_sweep_report(workdir)
  return path, table, failed


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  cli.use_compile_cache(workdir / ".compiled")
  try:
    path, table, failed = run_sweep(
      _CONFIG.value,
      workdir,
      command=" ".join(["python -m experiments.sweep", *sys.argv[1:]]),
    )
  except Interrupted as stop:
    number, step = stop.args
    print(f"Stopped and saved at step {step} of this run. The same command goes on from there.")
    return 128 + number
  print(f"\n{table}\n\nfigure: {workdir / 'figures' / 'comparison.png'}\nreport: {path}")
  if failed:
    print(f"{len(failed)} runs failed: {', '.join(failed)}")
  return 1 if failed else 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_string("workdir", None, "Directory of the sweep.", required=True)
  cli.run(main)
