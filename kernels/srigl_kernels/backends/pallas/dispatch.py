"""The backend "pallas": kernels for accelerators, those of the device that jax runs on."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.pallas import device

_MODULES = {"gpu": "srigl_kernels.backends.pallas.gpu", "tpu": "srigl_kernels.backends.pallas.tpu"}


@functools.cache
def _jax_has_pallas() -> bool:
  """Whether what the kernels use of Pallas can be imported; errors of our own are not hidden."""
  try:
    for name in ("triton", "tpu"):
      importlib.import_module(f"jax.experimental.pallas.{name}")
  except (ImportError, AttributeError):  # AttributeError: within a jax that has dropped a part
    return False
  return True


def _on_device(name: str) -> Callable[..., Any]:
  """The function of this name of the module for the device, imported when it is called."""

  def call(*args: Any) -> Any:
    return getattr(importlib.import_module(_MODULES[device.platform() or ""]), name)(*args)

  return call


BACKEND = Backend(
  _on_device("pack"),
  _on_device("matmul"),
  is_available=lambda: device.platform() in _MODULES and _jax_has_pallas(),
  needs=(
    f"a GPU or a TPU that jax runs on; for tests, {device.INTERPRET}=gpu (or tpu) in the "
    "environment interprets its kernels, slowly, on any device"
  ),
  packs_traced=lambda: device.platform() == "gpu",  # layouts for TPUs are made on the host
  pack_pattern=_on_device("pack_pattern"),
  with_values=_on_device("with_values"),
  input_gradient=_on_device("input_gradient"),
  values_gradient=_on_device("values_gradient"),
)
"""GPUs by Triton, TPUs by Mosaic."""
