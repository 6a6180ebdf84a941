"""The report of a sweep: `report.md` and figures in its directory."""

from pathlib import Path

from experiments.common.files import write_text
from experiments.reports import figures
from experiments.sweeps import figures as study_figures
from experiments.sweeps import results as study_module
from experiments.sweeps import tables as study_tables


def write_sweep_report(workdir: Path) -> tuple[Path, str]:
  """Writes `report.md` and the figures of a sweep from its finished runs.

  Returns:
    The report's path, and its table as text.

  Raises:
    ValueError: if no run of the sweep is finished.
  """
  study = study_module.collect(workdir)
  table = study_tables.comparison(study)
  finished = {v.name: v for v in study.variants if v.runs}
  figures.comparison(
    {name: [run.tests for run in v.runs] for name, v in finished.items()},
    {name: v.interval("test_accuracy") for name, v in finished.items()},
    workdir / "figures" / "comparison.png",
  )
  pivot = study_tables.pivot(study)
  parts = [f"# {study.name}", "", table, ""]
  parts += [pivot, ""] if pivot else []
  parts += [f"{study.missing} runs are not finished.", ""] if study.missing else []
  for name, error in study.failed.items():
    parts += [f"- {name} failed: {error}"]
  parts += [""] if study.failed else []
  if study_figures.study_figure(study, workdir / "figures" / "study.png"):
    parts += [f"![{study.name}](figures/study.png)", ""]
  parts += ["![Test accuracy by variant](figures/comparison.png)", ""]
  path = workdir / "report.md"
  write_text(path, "\n".join(parts))
  return path, table if not pivot else f"{table}\n\n{pivot}"
