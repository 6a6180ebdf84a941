"""The library of CUDA kernels: built by nvcc at first use, kept in a cache, loaded and registered.

The cache is `srigl_kernels/` in `$XDG_CACHE_HOME` or `~/.cache`; an entry is named by a hash of the
sources, the device's architecture and the versions of nvcc and jaxlib. `SRIGL_CUDA_LIBRARY` names a
library that is loaded instead, such as `python -m srigl_kernels.backends.cuda` builds. One that
emulates the kernels on the CPU serves tests only; the backend then runs where jax runs on CPU.
"""

import ctypes
import functools
import hashlib
import importlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from importlib import metadata

import jax

LIBRARY = "SRIGL_CUDA_LIBRARY"
"""Name of the environment variable."""

# Handlers of the library.
GATHER = "srigl_cuda_gather"
TILES = "srigl_cuda_tiles"
GROUPED = "srigl_cuda_grouped"
PRODUCTS = "srigl_cuda_products"

_FILE = "libsrigl_cuda.so"
_SOURCES = ("gather.cu", "tiles.cu", "grouped.cu", "products.cu", "ffi.cu")
_OLDEST = 80  # architecture: bfloat16 and TF32 on tensor cores, asynchronous copies


_LOADING = threading.Lock()


def why_not() -> str | None:
  """Why the kernels cannot run here, or None: then they are loaded and registered."""
  with _LOADING:  # threads that prepare layers side by side would all build, and register
    return _why_not()


@functools.cache
def _why_not() -> str | None:
  override = os.environ.get(LIBRARY)
  if jax.default_backend() != "gpu" and not override:
    return f"jax runs on {jax.default_backend()}, not on an NVIDIA GPU"
  try:
    platform = _load(pathlib.Path(override) if override else _cached())
  except (OSError, AttributeError, RuntimeError, subprocess.CalledProcessError) as error:
    output = getattr(error, "stderr", None) or ""
    return f"{error}" + (f"\n{output[-2000:]}" if output else "")
  expected = {"cpu": "cpu", "CUDA": "gpu"}[platform]
  if jax.default_backend() != expected:
    return f"{override} is a library for {expected}, but jax runs on {jax.default_backend()}"
  return None


def is_available() -> bool:
  """Whether the kernels can run here; builds them if need be."""
  return why_not() is None


def _load(path: pathlib.Path) -> str:
  """Loads a library and registers its handlers; the platform that they are for."""
  library = ctypes.CDLL(str(path))
  library.srigl_cuda_platform.restype = ctypes.c_char_p
  platform = library.srigl_cuda_platform().decode()
  for name in (GATHER, TILES, GROUPED, PRODUCTS):
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(getattr(library, name)), platform=platform)
  return platform


def _cached() -> pathlib.Path:
  """The library for this device, built if it is not in the cache.

  Raises:
    RuntimeError: if the device is too old, or nvcc or the sources are missing.
    subprocess.CalledProcessError: if nvcc fails.
  """
  arch = _architecture()
  if arch < _OLDEST:
    raise RuntimeError(f"the GPU is of architecture sm_{arch}, and these kernels need sm_{_OLDEST}")
  nvcc = _nvcc()
  version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
  digest = hashlib.sha256(f"{arch} {version} {metadata.version('jaxlib')}".encode())
  for file in sorted(_sources().iterdir()):
    digest.update(file.name.encode() + file.read_bytes())
  root = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  path = root / "srigl_kernels" / digest.hexdigest()[:20] / _FILE
  if not path.is_file():
    build(path, [arch])
  return path


def _architecture() -> int:
  """Of the first GPU: 90 for compute capability 9.0."""
  capability = getattr(jax.devices("gpu")[0], "compute_capability", None)
  if not capability:
    raise RuntimeError("the GPU has no CUDA compute capability")
  return int(str(capability).replace(".", ""))


def _nvcc() -> str:
  homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
  folders = [f"{home}/bin" for home in [*homes, "/usr/local/cuda"] if home]
  found = shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(folders))
  if found is None:
    raise RuntimeError("nvcc, the CUDA compiler, is neither on PATH nor in $CUDA_HOME/bin")
  return found


def _sources() -> pathlib.Path:
  """The folder of the sources: in a checkout beside the package, else installed with it."""
  package = pathlib.Path(importlib.import_module("srigl_kernels").__path__[0])
  for folder in (package.parent / "cuda", package / "cuda_sources"):
    if (folder / _SOURCES[0]).is_file():
      return folder
  raise RuntimeError(f"the sources of the CUDA kernels are not beside {package}")


def build(path: pathlib.Path, archs: Sequence[int], *, emulate: bool = False) -> None:
  """Builds the library, beside its place first, so that others see a whole file or none.

  Args:
    path: where to put it.
    archs: architectures of GPUs, such as 90.
    emulate: whether the kernels are to run on the CPU instead.

  Raises:
    RuntimeError: if the compiler is missing.
    subprocess.CalledProcessError: if it fails; `stderr` has its messages.
  """
  if emulate:
    compiler = ["g++", "-x", "c++", "-DSRIGL_EMULATION", "-O2", "-fno-strict-aliasing"]
    compiler += ["-U_FORTIFY_SOURCE", "-fPIC", "-fvisibility=hidden"]
  else:
    compiler = [_nvcc(), "-O3", "--threads=0", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    compiler += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
  sources = [str(_sources() / name) for name in _SOURCES]
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    made = pathlib.Path(folder) / _FILE
    subprocess.run(
      [*compiler, "-std=c++17", "-shared", "-isystem", jax.ffi.include_dir(), "-o", made, *sources],
      capture_output=True, text=True, check=True,
    )  # fmt: skip
    made.replace(path)
