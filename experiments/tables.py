"""Puts the tables of results files into README.md and docs: `python -m experiments.tables`.

A page asks for a table with a pair of comments, between which the table of
`experiments/results/NAME.json` is put: `<!-- results: NAME -->` and `<!-- /results -->`. A file
may have other tables beside its `table`: `<!-- results: NAME.KEY -->`. With `--check` nothing is
written, and a stale page is an error.
"""

import re
from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.common.files import RESULTS, read_json, write_text

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(
  r"<!-- results: (?P<name>[\w-]+)(?:\.(?P<key>\w+))? -->\n.*?<!-- /results -->", re.DOTALL
)


def fill(text: str, results: Path = RESULTS) -> str:
  """The page with every table as its results file has it now.

  Raises:
    ValueError: if a page asks for a results file, or a table in it, that does not exist.
  """

  def table(match: re.Match[str]) -> str:
    name, key = match["name"], match["key"] or "table"
    result = read_json(results / f"{name}.json")
    if result is None:
      raise ValueError(
        f"A page asks for the results {name!r}, but {results / name}.json does not exist: run the "
        "command that writes it, or remove the block."
      )
    if key not in result:
      raise ValueError(
        f"A page asks for {key!r} of the results {name!r}, which has none: run its command again."
      )
    machine = ", ".join(f"{k} {v}" for k, v in result["environment"].items())
    lines = [result[key], "", f"Printed by `{result['command']}` on {machine}."]
    return "\n".join([match[0].partition("\n")[0], *lines, "<!-- /results -->"])

  return _BLOCK.sub(table, text)


def pages() -> list[Path]:
  """The pages that may hold tables."""
  return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def main() -> int:
  """The command."""
  stale = []
  for page in pages():
    text = page.read_text(encoding="utf-8")
    filled = fill(text)
    if filled != text:
      stale.append(page.name)
      if not flags.FLAGS.check:
        write_text(page, filled)
  if flags.FLAGS.check and stale:
    raise ValueError(f"Tables are stale in {', '.join(stale)}: run `make tables` and commit.")
  print(f"updated {', '.join(stale)}" if stale else "all tables are up to date")
  return 0


if __name__ == "__main__":
  flags.DEFINE_bool("check", False, "Fail if a page is stale instead of writing it.")
  cli.run(main)
