"""Versions and machine, for results that others should be able to place."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
  """Versions and machine, for results that others should be able to place."""
  device = jax.local_devices()[0]
  return {
    **versions(),
    "device": f"{jax.local_device_count()} × {device.device_kind}",
    "processor": _processor(),
    "cpu_cores": len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count(),
  }


def versions() -> dict[str, str]:
  """Those of Python and of the packages that results depend on."""
  packages = ("jax", "jaxlib", "flax", "optax", "srigl-jax")
  return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def _version(package: str) -> str:
  """A package's version; this one may be run from the checkout without being installed."""
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"


def _processor() -> str:
  """The processor's name where the system tells it."""
  path = Path("/proc/cpuinfo")
  lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
  names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
  return names[0] if names else platform.processor() or platform.machine()
