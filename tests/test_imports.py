"""Imports run downwards only; what may import what is the design's, and this holds it to it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# folder -> top-level modules that its files may import besides the standard library
MAY_IMPORT = {
  "srigl_jax": {"srigl_jax", "jax", "numpy", "optax"},
  "kernels/srigl_kernels": {"srigl_kernels", "jax", "numpy"},
  "configs": {"configs", "ml_collections"},
}
# Files that may import more: of the library, only the condensed form needs kernels.
EXCEPTIONS = {
  "srigl_jax/__init__.py": {"srigl_kernels"},  # what it hands on
  "srigl_jax/condense.py": {"srigl_kernels"},
  "srigl_jax/condense_model.py": {"srigl_kernels"},
  "srigl_jax/folding_report.py": {"srigl_kernels"},
  "srigl_jax/model_arrays.py": {"srigl_kernels"},
  "srigl_jax/nnx_layers.py": {"srigl_kernels", "flax"},  # imported when a model is condensed
  "srigl_jax/nnx_trace.py": {"flax"},
  "srigl_jax/nnx_twins.py": {"srigl_kernels", "flax"},
  "srigl_jax/serialize.py": {"srigl_kernels", "safetensors"},
}
MAY_NOT_IMPORT = {
  "experiments": {"configs", "tests", "kernels"},
  "kernels/cpu": {"kernels", "srigl_jax", "experiments", "configs", "tests", "flax", "optax"},
  "kernels/benchmark": {"configs", "tests"},  # run from the checkout, as experiments are
}
NOWHERE = {"tensorflow", "torch"}


def imports(path):
  """Dotted names of all modules that a file imports, in functions too."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative imports hide what is imported"
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def top_level(path):
  return {name.partition(".")[0] for name in imports(path)}


def files(folder):
  return sorted((ROOT / folder).rglob("*.py"))


def test_files_are_found():
  assert {path.name for path in files("srigl_jax")} >= {"__init__.py", "topology.py"}
  assert top_level(Path(__file__)) == {"ast", "sys", "pathlib", "pytest"}
  assert all((ROOT / path).is_file() for path in EXCEPTIONS)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_nothing_else(folder):
  allowed = MAY_IMPORT[folder] | set(sys.stdlib_module_names)
  found = {str(path.relative_to(ROOT)): top_level(path) - allowed for path in files(folder)}
  found = {path: names - EXCEPTIONS.get(path, set()) for path, names in found.items()}
  assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("folder", MAY_NOT_IMPORT)
def test_imports_nothing_above(folder):
  forbidden = MAY_NOT_IMPORT[folder]
  found = {str(path.relative_to(ROOT)): top_level(path) & forbidden for path in files(folder)}
  assert not {path: names for path, names in found.items() if names}


def test_nobody_needs_another_framework():
  folders = ("srigl_jax", "kernels", "experiments", "configs", "tests")
  found = {str(path): top_level(path) & NOWHERE for folder in folders for path in files(folder)}
  assert not {path: names for path, names in found.items() if names}


def library_graph():
  """module -> modules of the library that it imports."""
  modules = {path.stem: path for path in files("srigl_jax") if path.stem != "__init__"}
  graph = {}
  for name, path in modules.items():
    inner = [n.split(".")[1:] for n in imports(path) if n.partition(".")[0] == "srigl_jax"]
    # `import srigl_jax` and `from srigl_jax import srigl` would reach for the whole package.
    assert all(parts and parts[0] in modules for parts in inner), f"{path} imports the package"
    graph[name] = {parts[0] for parts in inner}
  return graph


def test_library_has_no_cycles():
  graph = library_graph()
  assert graph["transform"] and not graph["counts"]
  while graph:
    leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
    assert leaves, f"a cycle among {sorted(graph)}"
    graph = {name: needed for name, needed in graph.items() if name not in leaves}
