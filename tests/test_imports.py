"""Imports run downwards only, without a circle; what may import what is the design's."""

import ast
import functools
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import srigl_jax

ROOT = Path(__file__).resolve().parent.parent
# Packages and where they lie, from the ground up: each may import those before it.
PACKAGES = {"srigl_kernels": "kernels", "srigl_jax": "", "experiments": "", "configs": ""}
DOORS = "kernels/benchmark"  # above all of them: published commands that lead into `experiments`
# The folders of `experiments` from the ground up; its files, the commands, stand on top.
FOLDERS = (
  "common", "processes", "workdir", "data", "models", "tasks", "reports", "analysis",
  "training", "benchmarks", "deploy", "sweeps",
)  # fmt: skip
# folder -> top-level modules that its files may import besides the standard library; the longest
# folder that fits a file counts
ONLY_CONDENSED = {"srigl_jax", "srigl_kernels", "jax", "numpy", "flax", "safetensors"}
MAY_IMPORT = {
  "kernels/srigl_kernels": {"srigl_kernels", "jax", "numpy"},
  "srigl_jax": {"srigl_jax", "srigl_kernels", "jax", "numpy", "optax"},
  "srigl_jax/methods": {"srigl_jax", "jax", "numpy", "optax"},
  "srigl_jax/analysis": {"srigl_jax", "jax", "numpy"},
  "srigl_jax/condensed": ONLY_CONDENSED,
  "srigl_jax/export": ONLY_CONDENSED - {"safetensors"} | {"onnx"},
  "srigl_jax/condensed_training": ONLY_CONDENSED | {"optax"},
  "configs": {"configs", "ml_collections", "experiments"},  # for the registry of methods
}
NOWHERE = {"tensorflow", "torch"}
MOST_MODULES, MOST_LINES = 25, 300


def imports(path: Path) -> set[str]:
  """Dotted names of all that a file imports, in functions too, and by `importlib` by name."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide what is imported"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
    elif isinstance(node, ast.Constant) and str(node.value).startswith(
      ("srigl_jax.", "srigl_kernels.")
    ):
      names |= {node.value} & modules().keys()  # for `importlib`
  return names


def files(folder: str) -> list[Path]:
  return sorted((ROOT / folder).rglob("*.py"))


def modules() -> dict[str, Path]:
  """Every module of ours by dotted name."""
  if not _MODULES:
    for package, parent in PACKAGES.items():
      for path in files(f"{parent}/{package}" if parent else package):
        parts = path.relative_to(ROOT / parent).with_suffix("").parts
        _MODULES[".".join(parts).removesuffix(".__init__")] = path
  return _MODULES


_MODULES: dict[str, Path] = {}


@functools.cache
def graph() -> dict[str, set[str]]:
  """module -> modules of ours that it imports; a folder's `__init__` counts as itself."""

  def ours(names: set[str]) -> Iterator[str]:
    for name in names:
      while name and name not in modules():
        name = name.rpartition(".")[0]
      if name:
        yield name

  return {name: set(ours(imports(path))) - {name} for name, path in modules().items()}


def floor(name: str) -> tuple[int, int]:
  """How high a module stands: its package, then its folder in `experiments`."""
  package, *rest = name.split(".")
  height = len(FOLDERS)
  if package == "experiments" and rest and rest[0] in FOLDERS:
    height = FOLDERS.index(rest[0])
  elif package == "experiments" and not rest:
    height = -1
  return list(PACKAGES).index(package), height


def test_files_are_found():
  assert {"srigl_jax.transform", "srigl_kernels.backends.registry"} <= modules().keys()
  assert {"ast", "sys", "pytest"} <= imports(Path(__file__))
  assert "srigl_jax.layers" in graph()["srigl_jax.transform"]
  folders = {path.name for path in (ROOT / "experiments").iterdir() if list(path.glob("*.py"))}
  assert folders == set(FOLDERS)


def test_no_import_runs_upwards():
  upwards = [(a, b) for a, found in graph().items() for b in found if floor(b) > floor(a)]
  assert not upwards


def test_no_circle():
  left = graph()
  while left:
    ground = {name for name, needed in left.items() if not needed & left.keys()}
    assert ground, f"a circle among {sorted(left)}"
    left = {name: needed for name, needed in left.items() if name not in ground}


def test_commands_do_not_import_each_other():
  top = floor("experiments.train")
  commands = {name for name in modules() if floor(name) == top}
  assert "experiments.train" in commands
  assert not {name: graph()[name] & commands for name in commands if graph()[name] & commands}


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_nothing_else(folder):
  allowed = MAY_IMPORT[folder] | set(sys.stdlib_module_names)
  found = {}
  for path in files(folder):
    relative = str(path.relative_to(ROOT))
    longest = max((f for f in MAY_IMPORT if relative.startswith(f"{f}/")), key=len)
    if longest == folder:
      found[relative] = {name.partition(".")[0] for name in imports(path)} - allowed
  assert found and not {path: names for path, names in found.items() if names}


def test_nobody_needs_another_framework_or_the_tests():
  for folder in ("srigl_jax", "kernels", "experiments", "configs"):
    for path in files(folder):
      top = {name.partition(".")[0] for name in imports(path)}
      assert not top & (NOWHERE | {"tests"}), path
      assert folder != "experiments" or "configs" not in top, path


def test_files_and_folders_are_small():
  folders: dict[Path, int] = {}
  for folder in ("srigl_jax", "kernels", "experiments", "configs"):
    for path in files(folder):
      folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
      lines = len(path.read_text(encoding="utf-8").splitlines())
      assert lines <= MOST_LINES, f"{path.relative_to(ROOT)} has {lines} lines: split it"
  assert max(folders.values()) <= MOST_MODULES, folders


def test_one_version():
  project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
  assert srigl_jax.__version__ == project["version"]
