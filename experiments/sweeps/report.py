"""The report of a sweep: `report.md` and figures in its directory."""

from pathlib import Path

from experiments.common.files import write_text
from experiments.reports import figures
from experiments.sweeps import returns, tables
from experiments.sweeps.figures import sweep_figure
from experiments.sweeps.paired import compare, planned
from experiments.sweeps.paired_report import paired_figure, paired_table
from experiments.sweeps.results import read_sweep_results


def write_sweep_report(workdir: Path) -> tuple[Path, str]:
  """Writes `report.md` and the figures of a sweep from its finished runs.

  Returns:
    The report's path, and its table as text.

  Raises:
    ValueError: if no run of the sweep is finished.
  """
  sweep = read_sweep_results(workdir)
  table, pivot = tables.comparison(sweep), tables.pivot(sweep)
  finished = {v.name: v for v in sweep.variants if v.runs}
  figures.comparison(
    {name: [run.tests for run in v.runs] for name, v in finished.items()},
    {name: v.score_interval() for name, v in finished.items()},
    workdir / "figures" / "comparison.png",
    sweep.score,
  )
  parts = [f"# {sweep.name}", "", table, ""]
  parts += [pivot, ""] if pivot else []
  parts += [returns.returns_table(sweep), ""] if sweep.kind == returns.KIND else []
  parts += [f"{sweep.missing} runs are not finished.", ""] if sweep.missing else []
  parts += [f"- {name} failed: {error}" for name, error in sweep.failed.items()]
  parts += [""] if sweep.failed else []
  if pairs := planned(sweep):
    found = compare(sweep, pairs)
    paired_figure(found, workdir / "figures" / "paired.png", title=sweep.name, score=sweep.score)
    parts += [paired_table(found, score=sweep.score), ""]
    parts += ["![Paired differences](figures/paired.png)", ""]
  if sweep_figure(sweep, workdir / "figures" / "study.png"):
    parts += [f"![{sweep.name}](figures/study.png)", ""]
  parts += [f"![Test {sweep.score.label} by variant](figures/comparison.png)", ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path, table if not pivot else f"{table}\n\n{pivot}"
