"""Writes `requirements.lock`: what CI installs, with the hashes of its files.

`make lock` resolves the open ranges of pyproject.toml anew, on each Python that CI has, for the
platform that it runs on. The file names no place to get packages from: that is pip's own setting.
"""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_EXTRAS = ("experiments", "test")
_HEAD = """\
# What CI installs, for Linux on x86-64: `make lock` writes this file from pyproject.toml, and
# `make test LOCKED=1` installs from it.
"""


def main() -> int:
  """The command: Pythons as arguments."""
  found = {}
  for python in sys.argv[1:]:
    version, packages = resolve(python)
    found[version] = packages
  (ROOT / "requirements.lock").write_text(_HEAD + "\n".join(lines(found)) + "\n", encoding="utf-8")
  return 0


def resolve(python: str) -> tuple[str, dict[str, tuple[str, str]]]:
  """The Python's version, and of each package that it would install, version and SHA-256."""
  project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
  extras = project["optional-dependencies"]
  needed = project["dependencies"] + [need for extra in _EXTRAS for need in extras[extra]]
  pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run"]
  pip += ["--ignore-installed", "--report=-", *needed]
  report = json.loads(subprocess.run(pip, check=True, capture_output=True, text=True).stdout)
  packages = {}
  for item in report["install"]:
    name = item["metadata"]["name"].lower().replace("_", "-").replace(".", "-")
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    packages[name] = item["metadata"]["version"], digest
  version = report["environment"]["python_version"]
  return version, packages


def lines(found: dict[str, dict[str, tuple[str, str]]]) -> list[str]:
  """A requirement for each package and version, the Pythons that it is for as its marker."""
  entries: dict[tuple[str, str], dict[str, str]] = {}
  for python, packages in found.items():
    for name, (version, digest) in packages.items():
      entries.setdefault((name, version), {})[python] = digest
  result = []
  for (name, version), digests in sorted(entries.items()):
    marker = ""
    if digests.keys() != found.keys():
      marker = " ; " + " or ".join(f'python_version == "{python}"' for python in digests)
    hashes = (f"--hash=sha256:{digest}" for digest in sorted(set(digests.values())))
    result.append(" \\\n    ".join([f"{name}=={version}{marker}", *hashes]))
  return result


if __name__ == "__main__":
  sys.exit(main())
