"""The lock file that CI installs from: all that pyproject.toml asks for, within its ranges."""

import re
import tomllib
from pathlib import Path

import pytest

packaging = pytest.importorskip("packaging.requirements")

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def locked(python):
  """Versions by package, of those for a Python."""
  found = {}
  for line in LOCK.splitlines():
    match = re.match(r"([\w.-]+)==([\w.+!-]+)(?: ; (.*?))?(?: \\)?$", line)
    if match and (match[3] is None or f'"{python}"' in match[3]):
      found[match[1]] = match[2]
  return found


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_the_lock_has_what_the_ranges_ask_for(python):
  found, extras = locked(python), PROJECT["optional-dependencies"]
  for text in [*PROJECT["dependencies"], *extras["experiments"], *extras["test"]]:
    needed = packaging.Requirement(text)
    name = re.sub(r"[-_.]+", "-", needed.name).lower()
    assert name in found, f"{text} is not in requirements.lock: run `make lock`"
    assert needed.specifier.contains(found[name]), f"{text}: {found[name]} is locked; `make lock`"


def test_every_package_has_hashes_and_none_a_place():
  entries = re.split(r"\n(?=\S)", re.sub(r"(?m)^#.*\n", "", LOCK).strip())
  assert all("--hash=sha256:" in entry for entry in entries)
  assert "://" not in LOCK and "index-url" not in LOCK
