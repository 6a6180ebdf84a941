"""Reports: `python -m experiments.report --workdir=DIR`, of a run or of a sweep.

They are made from what the runs recorded and nothing else, so they can be made again any time.
"""

import shutil
from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.common.files import write_json
from experiments.reports.run_report import write_run_report
from experiments.sweeps.report import write_sweep_report
from experiments.sweeps.results import read_sweep_results, results_file


def main() -> int:
  """The command."""
  workdir = Path(flags.FLAGS.workdir)
  if (workdir / "sweep.json").exists():
    path, table = write_sweep_report(workdir)
    print(table)
    if flags.FLAGS.out:
      write_json(Path(flags.FLAGS.out), results_file(read_sweep_results(workdir), table))
    if flags.FLAGS.figure:
      drawn = workdir / "figures" / "study.png"
      drawn = drawn if drawn.exists() else workdir / "figures" / "comparison.png"
      Path(flags.FLAGS.figure).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(drawn, flags.FLAGS.figure)
  else:
    path = write_run_report(workdir)
  print(f"report in {path}, figures in {workdir / 'figures'}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a run or of a sweep.", required=True)
  flags.DEFINE_string(
    "out", "", "For a sweep: results file to write, with its table and its runs' figures."
  )
  flags.DEFINE_string("figure", "", "For a sweep: where to put a copy of its figure.")
  cli.run(main)
