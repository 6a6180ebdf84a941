"""Sparse training against dense: `python -m experiments.benchmark_sparse_training [--quick]`.

Every engine trains the same networks with Adam in float32, on the same cores, in one run: dense
JAX, masks (`sx.srigl`), condensed training (`sx.condensed_srigl`), and PyTorch and sparselab where
they can be imported. Each has a process of its own, and all take turns. The losses of masked and
condensed training are compared before anything is timed.

    python -m experiments.benchmark_sparse_training --quick --check    the rows with targets
    python -m experiments.benchmark_sparse_training                    and the grids, and the file
    python -m experiments.benchmark_sparse_training --only=batch       one grid
    python -m experiments.benchmark_sparse_training --figure=F.png     the figure of the file

Parts of a step are timed by themselves: they need not add up to it. Dense gradients in the inputs
are computed from the second layer on; sparselab computes them for the first one too. A topology
update is timed as a step that has one, on a copy of the state.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.comparison import Comparison, comparison_table, results
from experiments.benchmarks.sparse_training import cases, report, targets
from experiments.benchmarks.sparse_training.engine import STEP, UPDATE_STEP
from experiments.benchmarks.sparse_training.measurement import Measurement, measure
from experiments.benchmarks.sparse_training.worker import ENGINES
from experiments.common import cli
from experiments.common.environment import available_cores, command_line, package_versions
from experiments.common.files import RESULTS, read_json, write_json

_OUT = RESULTS / "sparse_training.json"
_SECTIONS = ("targets", "width", "sparsity", "batch", "threads", "labels")


def main() -> int:
  """The command."""
  options = flags.FLAGS
  out = Path(options.out or _OUT)
  if options.figure:
    from experiments.benchmarks.sparse_training import figure

    figure.draw(_published(out), Path(options.figure))
    print(f"figure: {options.figure}")
    return 0
  sections = options.only or (["targets"] if options.quick else _SECTIONS)
  measured: dict[str, list[Measurement]] = {"targets": []}
  rows: list[Comparison] = []
  if "targets" in sections:
    measured["targets"] = _measure([target.case for target in cases.TARGETS], 9)
    rows = list(targets.comparisons(measured["targets"]))
    head = _measure([cases.HEAD], 1, (STEP,), ("condensed",))
    rows += [targets.head_row(one) for one in head if one.peak_bytes]
    measured["targets"] += head
  for name, grid in cases.grids(len(available_cores())).items():
    if name in sections:
      measured[name] = _measure(list(grid.values()), 5, (STEP,))
  result = _result(rows, measured)
  if options.out or (not options.quick and not options.only):
    write_json(out, result)
    print(f"results: {out}")
  missed = [row for row in rows if row.is_met is False]
  if options.check and missed:
    print(f"\nMissed targets:\n\n{comparison_table(missed)}")
    return 1
  return 0


def _measure(
  todo: list[cases.Case],
  rounds: int,
  only: Sequence[str] = (),
  among: Sequence[str] = tuple(ENGINES),
) -> list[Measurement]:
  options = flags.FLAGS
  engines = [name for name in options.engine or ENGINES if name in among]
  cores = available_cores()
  if options.quick:
    # Masks and ResNet-18 are compared with in full runs only: they take most of the time.
    todo = [case for case in todo if case.kind != "resnet18"]
    engines, rounds, only = [name for name in engines if name != "masked"], 3, (STEP, UPDATE_STEP)
  rounds = options.rounds or rounds
  return [measure(case, engines, cores, rounds=rounds, only=only) for case in todo]


def _result(rows: list[Comparison], measured: dict[str, list[Measurement]]) -> dict[str, Any]:
  """The results file; prints its tables on the way."""
  result = results(rows, command_line("experiments.benchmark_sparse_training"), every_round=False)
  everything = [one for group in measured.values() for one in group]
  grids = {name: group for name, group in measured.items() if name != "targets"}
  rivals = [name for engine in ENGINES.values() for name in engine.needs]
  result["environment"] |= package_versions(dict.fromkeys(rivals))
  result |= {
    "headline": report.steps_table(measured["targets"]),
    "parts": report.parts_table(measured["targets"]),
    "memory": report.memory_table(measured["targets"]),
    **{name: report.steps_table(group) for name, group in grids.items()},
    "memory_by_sparsity": report.memory_table(grids.get("sparsity", [])),
    "memory_by_labels": report.memory_table(grids.get("labels", [])),
    "dense_is_better": report.dense_is_better(everything),
    "skipped": report.skipped(everything),
    "targets": [report.as_json(one) for one in measured["targets"]],
    "grids": {name: [report.as_json(one) for one in group] for name, group in grids.items()},
  }
  shown = ("table", "headline", "parts", "memory", *grids, "memory_by_sparsity", "memory_by_labels")
  tables = [result[name] for name in (*shown, "dense_is_better", "skipped")]
  print("\n\n".join(table for table in tables if table.count("\n") != 1 and table))
  return result


def _published(path: Path) -> Any:
  found = read_json(path)
  if found is None:
    raise ValueError(f"{path} does not exist: run the command without --figure first.")
  return found


if __name__ == "__main__":
  flags.DEFINE_string("out", None, f"JSON file of the results; {_OUT} for a whole run.")
  flags.DEFINE_bool("quick", False, "Only the rows with targets, but ResNet-18's, in fewer rounds.")
  flags.DEFINE_bool("check", False, "Exit with status 1 and the rows if a target is missed.")
  flags.DEFINE_integer("rounds", None, "Rounds; 9 by default, 5 in grids.", lower_bound=1)
  flags.DEFINE_multi_enum("only", None, _SECTIONS, "Sections; all by default.")
  flags.DEFINE_multi_enum("engine", None, list(ENGINES), "Engines; all that can be imported.")
  flags.DEFINE_string("figure", None, "Draw this image from the results file, measure nothing.")
  cli.run(main)
