"""The API pages: a table of public names by topic in the source, the whole docstrings on the site.

A page names what it is about, `<!-- api: srigl_jax srigl rigl -->`. `python -m docs.api_pages` puts
a table between that and `<!-- /api -->`, which is what readers of the source see; `make tables`
calls it. `python docs/api_pages.py DIR` copies all pages to where the site is built from, with
mkdocstrings' directives in place of the tables.
"""

import importlib
import inspect
import os
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
PAGES = DOCS / "api"
_BLOCK = re.compile(r"<!-- api: (?P<module>\w+) (?P<names>[\w ]+) -->\n.*?<!-- /api -->", re.DOTALL)


def fill(text: str) -> str:
  """The page with every table as the docstrings have it now."""

  def table(match: re.Match[str]) -> str:
    module = importlib.import_module(match["module"])
    rows = [_row(name, getattr(module, name)) for name in match["names"].split()]
    head = match[0].partition("\n")[0]
    return "\n".join([head, "| name | |", "|---|---|", *rows, "<!-- /api -->"])

  return _BLOCK.sub(table, text)


def names(text: str) -> list[str]:
  """The names that a page is about."""
  return [name for match in _BLOCK.finditer(text) for name in match["names"].split()]


def _row(name: str, value: object) -> str:
  source = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
  documented = source and not source.startswith(("typing", "builtins", "types"))
  first = (inspect.getdoc(value) or "").partition("\n\n")[0] if documented else ""
  link = f"`{name}`"
  if documented:
    module = importlib.import_module(str(source))
    link = f"[`{name}`]({os.path.relpath(inspect.getfile(module), PAGES)})"
  return f"| {link} | {' '.join(first.split()).replace('|', chr(92) + '|')} |"


def copy_for_site(folder: Path) -> None:
  """Copies the pages, the API's with directives instead of tables."""
  shutil.rmtree(folder, ignore_errors=True)
  ours = shutil.ignore_patterns("__pycache__", "api_pages.py", "build.py")
  shutil.copytree(DOCS, folder, ignore=ours)
  directives = lambda match: "\n\n".join(
    f"::: {match['module']}.{name}" for name in match["names"].split()
  )
  for page in (folder / "api").glob("*.md"):
    page.write_text(_BLOCK.sub(directives, page.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
  """The command."""
  if len(sys.argv) > 1:
    copy_for_site(Path(sys.argv[1]))
    return
  for page in sorted(PAGES.glob("*.md")):
    page.write_text(fill(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
  main()
