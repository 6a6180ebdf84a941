"""Reports: `python -m experiments.report --workdir=DIR`, of a run or of a sweep.

They are made from what the runs recorded and nothing else, so they can be made again any time.

`--compare=A,B`, once or several times, compares variants or methods of a sweep by the differences
of runs of one seed, all of them together one family of tests:

    python -m experiments.report --workdir=SWEEP --compare=srigl,rigl --compare=srigl,static
    python -m experiments.report --results=experiments/results/NAME.json --compare=srigl,rigl

`--results` several times compares variants of one sweep with those of another.
"""

import itertools
import shutil
from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.common.environment import command_line
from experiments.common.files import write_json
from experiments.reports.run_report import write_run_report
from experiments.sweeps.paired import compare
from experiments.sweeps.paired_report import paired_figure, paired_file, paired_table
from experiments.sweeps.report import write_sweep_report
from experiments.sweeps.results import (
  put_together,
  read_results_file,
  read_sweep_results,
  results_file,
)
from experiments.sweeps.returns import KIND as RETURNS
from experiments.sweeps.returns import returns_table


def main() -> int:
  """The command."""
  options = flags.FLAGS
  if bool(options.workdir) == bool(options.results):
    raise ValueError("Give --workdir of a run or of a sweep, or --results of a sweep, one of them.")
  if options.results and not options.compare:
    raise ValueError("--results is given without --compare=A,B: say what is to be compared.")
  workdir = Path(options.workdir or "")
  if options.compare:
    return _compare()
  if (workdir / "sweep.json").exists():
    path, table = write_sweep_report(workdir)
    print(table)
    if options.out:
      sweep = read_sweep_results(workdir)
      returns = {"returns": returns_table(sweep)} if sweep.kind == RETURNS else {}
      write_json(Path(options.out), results_file(sweep, table) | returns)
    if options.figure:
      drawn = workdir / "figures" / "study.png"
      drawn = drawn if drawn.exists() else workdir / "figures" / "comparison.png"
      Path(options.figure).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(drawn, options.figure)
  else:
    path = write_run_report(workdir)
  print(f"report in {path}, figures in {workdir / 'figures'}")
  return 0


def _compare() -> int:
  """Prints the paired differences that are asked for."""
  options = flags.FLAGS
  pairs = [tuple(pair.split(",")) for pair in options.compare]
  if wrong := [",".join(pair) for pair in pairs if len(pair) != 2]:
    raise ValueError(f"--compare={wrong[0]} does not name two variants or methods: give A,B.")
  if options.smallest < 0:
    raise ValueError(f"--smallest is {options.smallest}; it must be a number of points above 0.")
  files = [read_results_file(Path(name)) for name in options.results]
  names = dict.fromkeys(itertools.chain(*pairs))
  sweep = put_together(files, names) if files else read_sweep_results(Path(options.workdir))
  at = [float(place) for place in options.at]
  found = compare(sweep, [(a, b) for a, b in pairs], at=at, pool=options.pool)
  table = paired_table(found, smallest=options.smallest, score=sweep.score)
  print(table)
  if options.figure:
    path, smallest = Path(options.figure), options.smallest
    paired_figure(found, path, smallest=smallest, title=sweep.name, score=sweep.score)
  if options.out:
    environment = next(v for v in sweep.variants if v.runs).runs[0].results["environment"]
    said = command_line("experiments.report")
    write_json(Path(options.out), paired_file(found, table, command=said, environment=environment))
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Directory of a run or of a sweep.")
  flags.DEFINE_multi_string(
    "results", [], "Results file of a sweep, in place of its directory; of several, all together."
  )
  flags.DEFINE_string(
    "out",
    "",
    "Results file to write: a sweep's, with its table and its runs' figures, or what is compared.",
  )
  flags.DEFINE_string("figure", "", "Where to put a copy of a sweep's figure, or the comparison's.")
  flags.DEFINE_multi_string("compare", [], "Two variants or methods of a sweep, A,B: A less B.")
  flags.DEFINE_list("at", [], "Places on the axis of the study to compare at, such as 0.9,0.95.")
  flags.DEFINE_bool("pool", False, "Compare once over all places instead of at each.")
  flags.DEFINE_float(
    "smallest", 0.0, "Smallest difference that matters, in points: how many pairs."
  )
  cli.run(main)
