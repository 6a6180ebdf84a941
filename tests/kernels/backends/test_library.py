"""Where the native library is there it is used, and what is broken is not taken for absent."""

import os
import pathlib
import shutil
import subprocess
import sys

import jax
import pytest

from srigl_kernels import BACKENDS

NAME = "libsrigl_cpu.so"
OURS = pathlib.Path(__file__).resolve().parents[3] / "kernels"


def installed() -> list[pathlib.Path]:
  """Libraries where an installation, or the environment, puts them."""
  override = os.environ.get("SRIGL_KERNELS_LIB")
  found = [pathlib.Path(override)] if override else []
  found += [pathlib.Path(folder) / "srigl_kernels" / NAME for folder in [OURS, *sys.path]]
  return [path for path in found if path.is_file()]


def run(code: str, **environment: str) -> subprocess.CompletedProcess:
  env = {name: value for name, value in os.environ.items() if name != "SRIGL_KERNELS_LIB"}
  env = {"PYTHONPATH": str(OURS), **env, **environment}
  return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)


@pytest.mark.skipif(not installed(), reason="the native library is not built")
def test_a_library_that_is_there_is_used(tmp_path):
  assert BACKENDS["cpu"].is_available() == (jax.default_backend() == "cpu")
  # An editable install: sources in one folder, the library below another one of sys.path.
  folder = tmp_path / "srigl_kernels"
  folder.mkdir()
  shutil.copy(installed()[0], folder / NAME)
  show = "from srigl_kernels import BACKENDS; print(BACKENDS['cpu'].is_available())"
  path = os.pathsep.join([str(OURS), str(tmp_path)])
  assert run(show, PYTHONPATH=path, JAX_PLATFORMS="cpu").stdout == "True\n"


def test_a_broken_module_of_ours_is_an_error():
  code = (
    "import sys\n"
    "for module in ('cpu.library', 'cpu.gradients', 'pallas.dispatch'):\n"
    "  for name in [name for name in sys.modules if name.startswith('srigl_kernels')]:\n"
    "    del sys.modules[name]\n"
    "  sys.modules[f'srigl_kernels.backends.{module}'] = None\n"
    "  try: import srigl_kernels\n"
    "  except ModuleNotFoundError as error: print(module, module in str(error))"
  )
  expected = "cpu.library True\ncpu.gradients True\npallas.dispatch True\n"
  assert run(code).stdout == expected


def test_a_broken_kernel_for_gpus_is_not_taken_for_a_jax_without_pallas():
  code = (
    "import sys; sys.modules['srigl_kernels.backends.pallas.gpu_weighted_sums'] = None; "
    "from srigl_kernels import prepare, problems; "
    "prepare(problems.make_problem(problems.PROBLEMS['odd_sizes'])[1], backend='pallas')"
  )
  result = run(code, SRIGL_PALLAS_INTERPRET="gpu")
  assert "ModuleNotFoundError" in result.stderr and "cannot run here" not in result.stderr


@pytest.mark.parametrize("kind", ["absent", "no library", "another version"])
def test_one_warning_names_the_cause_and_the_fix(kind, tmp_path):
  """What a user sees after `pip install` on a machine without a compiler, and the like."""
  path, cause = tmp_path / NAME, f"{NAME} is not installed"
  if kind == "no library":
    path.write_bytes(b"not a library")
    cause = f"{path} does not load"
  elif kind == "another version":
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    subprocess.run([compiler, "-shared", "-o", path, "-x", "c", os.devnull], check=True)
    cause = f"{path} is of another version than this package"
  code = (
    "from srigl_kernels import condensed_matmul, prepare, problems\n"
    "x, condensed = problems.make_problem(problems.PROBLEMS['odd_sizes'])\n"
    "for _ in range(3): y = condensed_matmul(x, prepare(condensed))\n"
    "prepare(condensed, backend='cpu')"
  )
  result = run(code, SRIGL_KERNELS_LIB=str(tmp_path), JAX_PLATFORMS="cpu", PYTHONWARNINGS="always")
  assert result.stderr.count("The native CPU kernels cannot be used") == 1
  assert cause in result.stderr and "Reinstall srigl-jax on a machine with a C++" in result.stderr
  assert "'cpu' cannot run here" in result.stderr.splitlines()[-1]
