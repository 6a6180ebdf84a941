"""Installs a wheel into a fresh environment, without a compiler, and runs condensed layers there.

python -m tests.check_wheel dist/*.whl
"""

import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "srigl_kernels/libsrigl_cpu.so"

RUN = """
import jax.numpy as jnp
import srigl_jax as sx
from srigl_kernels.problems import PROBLEMS, make_problem

assert sx.__file__.startswith({prefix!r}), sx.__file__
x, condensed = make_problem(PROBLEMS["odd_sizes"])
layer = sx.prepare(condensed)
want = sx.condensed_matmul(x, condensed, backend="reference")
assert jnp.allclose(sx.condensed_matmul(x, layer), want, atol=1e-5)
assert jnp.allclose(sx.condensed_matmul(x, condensed, backend={backend!r}), want, atol=1e-5)
print(sx.choose_backend(layer)[0])
"""


def environment() -> dict[str, str]:
  """What a user's shell has, less what leads to the checkout."""
  return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "SRIGL_KERNELS_LIB")}


def check_contents(wheel: Path, has_library: bool = True) -> None:
  """Whether a wheel holds both packages, their type marks and the library."""
  names = set(zipfile.ZipFile(wheel).namelist())
  for folder in (ROOT / "srigl_jax", ROOT / "kernels/srigl_kernels"):
    files = {str(path.relative_to(folder.parent)) for path in folder.rglob("*.py")}
    assert files | {f"{folder.name}/py.typed"} <= names, files - names
  assert (LIBRARY in names) == has_library, LIBRARY


def run_installed(wheel: Path, folder: Path, backend: str = "cpu") -> subprocess.CompletedProcess:
  """Installs a wheel into an environment in the folder and runs `RUN` there, without a compiler."""
  venv.create(folder, with_pip=True)
  python, env = folder / "bin/python", environment()
  subprocess.run([python, "-m", "pip", "install", "-q", wheel], env=env, check=True)
  env |= {"PATH": str(folder / "bin"), "JAX_PLATFORMS": "cpu"}
  code = RUN.format(prefix=str(folder), backend=backend)
  return subprocess.run(
    [python, "-c", code], env=env, cwd=folder, capture_output=True, text=True, check=True
  )


def main(wheel: str) -> None:
  check_contents(Path(wheel))
  with tempfile.TemporaryDirectory() as folder:
    result = run_installed(Path(wheel), Path(folder))
  assert result.stdout == "cpu\n" and "native CPU kernels" not in result.stderr, result
  print(f"{wheel} runs in a fresh environment, on the native kernels.")


if __name__ == "__main__":
  main(*sys.argv[1:])
