"""Versions, machine and settings, for results that others should be able to place and repeat."""

import contextlib
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import srigl_jax

# Environment variables on which speed depends.
_SETTINGS = (
  "XLA_FLAGS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION", "JAX_DISABLE_MOST_OPTIMIZATIONS",
  "NPROC", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS",
)  # fmt: skip

_ROOT = Path(__file__).resolve().parents[2]


def environment() -> dict[str, Any]:
  """Versions, machine, and those settings of speed that are not the defaults."""
  device = jax.local_devices()[0]
  return {
    **versions(),
    "device": f"{jax.local_device_count()} × {device.device_kind}",
    "processor": _processor(),
    "cpu_cores": len(available_cores()),
    **settings(),
  }


def available_cores() -> list[int]:
  """The cores that this process may use, ascending."""
  if hasattr(os, "sched_getaffinity"):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def settings() -> dict[str, str]:
  """The environment variables on which speed depends, those that are set."""
  return {name: os.environ[name] for name in _SETTINGS if os.environ.get(name)}


def command_line(module: str) -> str:
  """The command that runs, for its results: `python -m MODULE` and the arguments given."""
  return shlex.join(["python", "-m", module, *sys.argv[1:]])


def versions() -> dict[str, str]:
  """Those of Python and of the packages that results depend on."""
  return {
    "python": platform.python_version(),
    **package_versions(("jax", "jaxlib", "flax", "optax")),
    "srigl-jax": srigl_jax.__version__,
  }


def package_versions(names: Iterable[str]) -> dict[str, str]:
  """Versions of those packages that are installed, by name."""
  found = {}
  for name in names:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[name] = importlib.metadata.version(name)
  return found


def commit() -> str | None:
  """What `SRIGL_COMMIT` says of a copy, whose git may be of another commit; else the checkout's."""
  return os.environ.get("SRIGL_COMMIT") or git("rev-parse", "HEAD")


def git(*arguments: str) -> str | None:
  """What git says about the checkout; None if it is none, or there is no git."""
  try:
    done = subprocess.run(
      ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=20, check=False
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() if done.returncode == 0 else None


def cpu_features() -> list[str]:
  """The processor's instruction sets on which the speed of products depends, where it is told."""
  wanted = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")
  found = _cpuinfo("flags").split()
  return [name for name in wanted if name in found]


def _processor() -> str:
  """The processor's name where the system tells it."""
  return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(field: str) -> str:
  path = Path("/proc/cpuinfo")
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  found = [line.split(":", 1)[1].strip() for line in lines if line.startswith(field)]
  return found[0] if found else ""
