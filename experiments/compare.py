"""Compares two finished runs: `python -m experiments.compare --workdirs=DIR,DIR [--out=FILE]`.

Meant for a run with masks beside the same one in condensed form: accuracy, time, memory, whether
both have the same connections; if not, when they are first seen to part. FILE.json is a results
file, as `experiments.tables` puts into pages; any other is Markdown.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import flags

import srigl_jax as sx
from experiments.common import cli
from experiments.common.environment import command_line
from experiments.common.files import read_json, write_json, write_text
from experiments.common.markdown import markdown_table
from experiments.training.load_run import load_run
from experiments.workdir.metrics import read_metrics
from experiments.workdir.scores import scored

_CLOSE = 1e-3  # relative difference of losses that is put down to rounding


class Finished(NamedTuple):
  """A finished run.

  Attributes:
    workdir: its directory.
    results: as `results.json` holds them.
    metrics: its records by kind.
    masks: by path, bool.
  """

  workdir: Path
  results: dict[str, Any]
  metrics: dict[str, list[dict[str, Any]]]
  masks: dict[str, np.ndarray]


def read_finished(workdir: Path, *, data_dir: str = "") -> Finished:
  """Reads a finished run.

  Raises:
    ValueError: if it is not finished.
  """
  results = read_json(workdir / "results.json")
  if results is None:
    raise ValueError(f"{workdir} holds no finished run: let it come to its end first.")
  found = load_run(workdir, data_dir=data_dir).masks
  dense = lambda mask: sx.pattern_mask(mask) if isinstance(mask, sx.Pattern) else mask
  masks = {path: np.asarray(dense(mask)) for path, mask in found.items()}
  return Finished(workdir, results, read_metrics(workdir), masks)


def compare(one: Finished, other: Finished) -> str:
  """The comparison as Markdown."""
  score = scored(one.results).score
  number = lambda value: f"{score.factor * value:.{2 if score.percent else 4}f}"
  judged: dict[str, Callable[[Finished], str]] = {
    score.axis: lambda run: number(scored(run.results).last),
    f"best{' (%)' * score.percent}": lambda run: number(scored(run.results).best),
  }
  rows = [[name, *map(show, (one, other))] for name, show in (_RUN | judged | _ROWS).items()]
  header = ["", one.workdir.name, other.workdir.name]
  return "\n\n".join([markdown_table(header, rows, align="lrr"), _parting(one, other)])


def as_results(one: Finished, other: Finished, text: str) -> dict[str, Any]:
  """A results file of the comparison `text`; its environment is what that of both runs shares."""
  environments = [run.results.get("environment", {}) for run in (one, other)]
  same = {k: v for k, v in environments[0].items() if environments[1].get(k) == v}
  return {"command": command_line("experiments.compare"), "environment": same, "table": text}


def _seconds(run: Finished, *, first: int) -> str:
  return f"{sum(record['seconds'] for record in run.metrics['train'][first:]):.1f}"


def _memory(run: Finished) -> str:
  parts = (read_json(run.workdir / "memory.json") or {}).get("arrays", {})
  known = sum(size for name, size in parts.items() if name != "data")
  return f"{known / 1e6:.2f}" if parts else "–"


_RUN: dict[str, Callable[[Finished], str]] = {
  "engine": lambda run: run.results.get("engine", "masked"),
  "steps": lambda run: f"{run.results['steps']:,}",
}
_ROWS: dict[str, Callable[[Finished], str]] = {
  "sparsity (%)": lambda run: f"{100 * run.results['sparsity']:.2f}",
  "active neurons (%)": lambda run: f"{100 * run.results['active_neurons']:.1f}",
  "training (s)": lambda run: _seconds(run, first=0),
  "of it after the first record, which compiles (s)": lambda run: _seconds(run, first=1),
  "parameters, topology and optimizer (MB)": _memory,
}


def _parting(one: Finished, other: Finished) -> str:
  """Whether both have the same connections; if not, when they are first seen to part."""
  if one.masks.keys() != other.masks.keys() or any(
    mask.shape != other.masks[path].shape for path, mask in one.masks.items()
  ):
    return "The runs have other sparse layers."
  common = {path: mask & other.masks[path] for path, mask in one.masks.items()}
  lines = []
  if all(np.array_equal(mask, other.masks[path]) for path, mask in one.masks.items()):
    lines.append(f"Same connections in the end, in all {len(common)} sparse layers.")
  else:
    shared = sum(m.sum() for m in common.values()) / sum(m.sum() for m in one.masks.values())
    lines.append(f"{shared:.2%} of the connections are the same in the end.")
  topologies = _first_difference(one, other, "topology", lambda a, b: a["layers"] != b["layers"])
  differ = lambda a, b: abs(a["loss"] - b["loss"]) > _CLOSE * abs(a["loss"])
  losses = _first_difference(one, other, "train", differ)
  lines.append(f"Fan-ins, active neurons and densities first differ {topologies}; losses {losses}.")
  return "\n".join(lines)


def _first_difference(one: Finished, other: Finished, kind: str, differ: Any) -> str:
  records = {record["step"]: record for record in other.metrics[kind]}
  pairs = [(a, records[a["step"]]) for a in one.metrics[kind] if a["step"] in records]
  if kind == "topology":  # one engine counts explored weights only if asked
    strip = lambda r: {
      "layers": {
        p: {k: v for k, v in x.items() if k != "itop_rate"} for p, x in r["layers"].items()
      }
    }
    steps = [a["step"] for a, b in pairs if differ(strip(a), strip(b))]
  else:
    steps = [a["step"] for a, b in pairs if differ(a, b)]
  return f"in the record of step {steps[0]}" if steps else "nowhere"


def main() -> int:
  """The command."""
  workdirs = [Path(directory) for directory in flags.FLAGS.workdirs]
  if len(workdirs) != 2:
    raise ValueError(f"--workdirs has {len(workdirs)} directories; it must have two: A,B.")
  one, other = (read_finished(path, data_dir=flags.FLAGS.data_dir) for path in workdirs)
  text = compare(one, other)
  print(text)
  out = Path(flags.FLAGS.out)
  if out.suffix == ".json":
    write_json(out, as_results(one, other, text))
  elif flags.FLAGS.out:
    write_text(out, f"{text}\n")
  return 0


if __name__ == "__main__":
  flags.DEFINE_list("workdirs", None, "Directories of two finished runs: A,B.", required=True)
  flags.DEFINE_string("data_dir", "", "TFDS folder, if it is not where the runs' configs say.")
  flags.DEFINE_string("out", "", "File to write the comparison to as well: .md, or .json.")
  cli.run(main)
