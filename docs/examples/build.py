"""Makes the notebook from the script: `python -m docs.examples.build`; `make tables` calls it.

Cells are what `# %%` separates. `experiments/results/example_cifar10.json`, if there is one, gives
the sentence of what was measured.
"""

import json
import re
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
SCRIPT, NOTEBOOK = HERE / "cifar10.py", HERE / "cifar10.ipynb"
RESULTS = HERE.parents[1] / "experiments" / "results" / "example_cifar10.json"


def with_figures(script: str) -> str:
  """The script with what was measured in the line that is marked."""
  said = "nothing yet"
  if RESULTS.exists():
    said = json.loads(RESULTS.read_text(encoding="utf-8"))["sentence"]
  line = r"(?m)^# Measured: .* <!-- measured -->$"
  return re.sub(line, f"# Measured: {said}. <!-- measured -->", script)


def notebook(script: str) -> dict[str, Any]:
  """The notebook of a script, without outputs."""
  cells = []
  for text in re.split(r"(?m)^# %%", script)[1:]:
    kind, _, source = text.partition("\n")
    source = source.strip("\n")
    cell: dict[str, Any] = {"cell_type": "code", "execution_count": None, "outputs": []}
    if "[markdown]" in kind:
      source = re.sub(r"(?m)^# ?", "", source)
      cell = {"cell_type": "markdown"}
    cell |= {"id": f"cell{len(cells)}", "metadata": {}, "source": source.splitlines(True)}
    cells.append(cell)
  kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
  metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
  return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
  """Writes both."""
  script = with_figures(SCRIPT.read_text(encoding="utf-8"))
  SCRIPT.write_text(script, encoding="utf-8")
  text = json.dumps(notebook(script), indent=1, ensure_ascii=False)
  NOTEBOOK.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
  main()
