"""Runs the example and writes what it reached: `python -m docs.examples.measure`.

`make tables` then puts the sentence into the example and its notebook. Times are left out: they
would be those of one machine.
"""

import os
import re
import subprocess
import sys
import tempfile

from docs.examples.build import RESULTS, SCRIPT
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json


def sentence(output: str) -> str:
  """What the example printed in its last epoch and at its end, in words.

  Raises:
    ValueError: if the example has not printed them.
  """
  epochs = re.findall(r"(?m)^epoch +(\d+) .*test accuracy ([\d.]+) %", output)
  file = re.search(r"(?m)^\S+: (\d+) kB, test accuracy ([\d.]+) %$", output)
  if not epochs or file is None:
    raise ValueError(f"The example has not printed epochs and a file. Its output:\n{output}")
  epoch, trained = epochs[-1]
  return (
    f"{trained} % of the test images after {epoch} epochs; the condensed file has {file[1]} kB and "
    f"classifies {file[2]} %"
  )


def main() -> None:
  """The command."""
  lines = []
  with tempfile.TemporaryDirectory() as folder:
    run = subprocess.Popen(
      [sys.executable, str(SCRIPT)],
      cwd=folder,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    for line in run.stdout or ():
      print(line, end="", flush=True)
      lines.append(line)
  if run.wait():
    raise SystemExit(run.returncode)
  result = {
    "command": command_line("docs.examples.measure"),
    "environment": environment(),
    "sentence": sentence("".join(lines)),
    "output": "".join(lines),
  }
  write_json(RESULTS, result)


if __name__ == "__main__":
  main()
