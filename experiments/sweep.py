"""Trains a grid of runs.

`python -m experiments.sweep --config=configs/sweeps/NAME.py [--workdir=DIR]`

Each variant with each seed is a run in `DIR/variant/seedN`. The same command resumes where it was
stopped, skips what is finished, and leaves alone what has failed until `--retry` asks for it. It
ends with one table and the figures of all runs.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict

from experiments.common import cli
from experiments.common.files import locked, read_sound
from experiments.processes.signals import Interrupted
from experiments.sweeps import estimate, workers
from experiments.sweeps.failures import Failure, forget_failure, read_failure, write_failure
from experiments.sweeps.progress import SweepProgress
from experiments.sweeps.report import write_sweep_report
from experiments.sweeps.spec import expand, write_record
from experiments.workdir.owner import check_owner
from experiments.workdir.patterns import SWEPT_RESULTS


def run_sweep(
  sweep: ConfigDict,
  workdir: Path,
  *,
  command: str = "",
  jobs: int = 1,
  retry: bool = False,
) -> tuple[Path, str, dict[str, str]]:
  """Trains what is not finished, and reports.

  Args:
    sweep: see `sweeps.variants_of`.
    workdir: directory of this sweep and no other.
    command: that started it, for the record.
    jobs: processes that train at a time; 0: what suits the device.
    retry: also train the runs that have failed before. Those that were killed are always tried
      again.

  Returns:
    The report's path, its table, and why runs failed, by name (the others went on).

  Raises:
    ValueError: if the sweep is not usable, `workdir` holds runs of another one under the same
      names or is in use, or no run could be finished.
    Interrupted: if it was asked to stop; what was training is saved.
  """
  runs = expand(sweep)
  for name, config in runs.items():
    check_owner(workdir / name, config)
  with locked(workdir):
    write_record(sweep, workdir, command)
    failures = _train(runs, workdir, jobs, retry)
    path, table = write_sweep_report(workdir)
  return path, table, {name: failure.error for name, failure in failures.items()}


def _train(
  runs: dict[str, ConfigDict], workdir: Path, jobs: int, retry: bool
) -> dict[str, Failure]:
  """Trains what is not finished; returns why runs failed, by name."""
  finished = {name for name in runs if _is_finished(workdir / name)}
  failures = {
    name: failure
    for name in runs
    if name not in finished
    and (failure := read_failure(workdir / name, runs[name].to_dict()))
    and not (retry or failure.killed)
  }
  for i, name in enumerate(runs, start=1):
    if name in finished:
      print(f"[{i}/{len(runs)}] {name}: already finished", flush=True)
    elif name in failures:
      said = f"failed before ({failures[name].error}); --retry tries it again"
      print(f"[{i}/{len(runs)}] {name}: {said}", flush=True)
  # A finished run goes too if only its report is missing: that is all that will be made then.
  complete = {name for name in finished if (workdir / name / "report.md").exists()}
  todo = {name: c for name, c in runs.items() if name not in failures and name not in complete}
  for name in todo:
    forget_failure(workdir / name)
  jobs = workers.choose_jobs(jobs, len(todo))

  with SweepProgress(len(runs), len(complete), len(failures)) as shown:
    configs = {workdir / name: config for name, config in todo.items()}
    watcher = _Recording(shown, configs)
    if jobs == 1:
      workers.train_here(configs, watcher)
    else:
      workers.train_in_processes(configs, watcher, jobs=jobs, cache_dir=workdir / ".compiled")
  return failures | {str(path.relative_to(workdir)): f for path, f in watcher.failures.items()}


def _is_finished(workdir: Path) -> bool:
  return read_sound(workdir / "results.json", SWEPT_RESULTS) is not None


class _Recording:
  """Passes on what the workers do, and writes failures down."""

  def __init__(self, shown: SweepProgress, configs: Mapping[Path, ConfigDict]):
    self.started, self.at, self.warned = shown.started, shown.at, shown.warned
    self.failures: dict[Path, Failure] = {}
    self._shown, self._configs = shown, configs

  def ended(self, worker: int, workdir: Path, outcome: workers.Outcome) -> None:
    if isinstance(outcome, Failure):
      self.failures[workdir] = outcome
      write_failure(workdir, outcome, self._configs[workdir])
    self._shown.ended(worker, workdir, outcome)


def main() -> int:
  """The command."""
  values, sweep = flags.FLAGS, _CONFIG.value
  workdir = Path(values.workdir or Path("runs") / cli.config_name())
  cli.use_compile_cache(workdir / ".compiled")
  if values.jobs > 1:  # the devices' memory is the workers'
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  cost = estimate.sweep_cost(sweep, workdir, jobs=values.jobs, calibrate=values.dry_run)
  print(cost, flush=True)
  if values.dry_run:
    return 0
  try:
    path, table, failed = run_sweep(
      sweep,
      workdir,
      command=" ".join(["python -m experiments.sweep", *sys.argv[1:]]),
      jobs=values.jobs,
      retry=values.retry,
    )
  except Interrupted as stop:
    print("Stopped; what was training is saved. The same command resumes from there.")
    return 128 + stop.args[0]
  print(f"\n{table}\n\nreport: {path}, figures: {workdir / 'figures'}")
  if failed:
    print(f"{len(failed)} runs failed: {', '.join(failed)}. --retry tries them again.")
  return 1 if failed else 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_string("workdir", "", "Directory of the sweep; default: runs/NAME of the config.")
  flags.DEFINE_integer("jobs", 0, "Processes that train at a time; 0: what suits the device.")
  flags.DEFINE_bool("retry", False, "Train the runs that have failed before, too.")
  flags.DEFINE_bool("dry_run", False, "Say what it would cost, and do nothing.")
  cli.run(main)
