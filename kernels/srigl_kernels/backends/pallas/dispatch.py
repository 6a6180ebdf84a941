"""The backend "pallas": kernels for accelerators, those of the device that jax runs on."""

import importlib
from typing import Any

from jax import Array

from srigl_kernels.backends.pallas import lowering
from srigl_kernels.format import Condensed

_MODULES = {"gpu": "srigl_kernels.backends.pallas.gpu", "tpu": "srigl_kernels.backends.pallas.tpu"}


def is_available() -> bool:
  """Whether there are kernels for the device, or their interpretation is asked for."""
  return lowering.platform() in _MODULES


def packs_traced() -> bool:
  """Whether layouts are made on the device; those for TPUs are made on the host."""
  return lowering.platform() == "gpu"


def _module() -> Any:
  return importlib.import_module(_MODULES[lowering.platform() or ""])


def pack(condensed: Condensed) -> Any:
  """The layout that `matmul` reads."""
  return _module().pack(condensed)


def pack_pattern(condensed: Condensed) -> Any:
  """The layout of a layer whose values change."""
  return _module().pack_pattern(condensed)


def with_values(layout: Any, values: Array) -> Any:
  """What `matmul` reads, from either layout."""
  return _module().with_values(layout, values)


def matmul(
  x: Array, layout: Any, bias: Array | None = None, activation: str | None = None
) -> Array:
  """The product as `reference.matmul` defines it."""
  return _module().matmul(x, layout, bias, activation)


def input_gradient(g: Array, condensed: Condensed, layout: Any) -> Array:
  """Gradient of a loss in `x`, from its gradient in the product."""
  return _module().input_gradient(g, condensed, layout)


def values_gradient(g: Array, x: Array, condensed: Condensed, layout: Any) -> Array:
  """Gradient of a loss in `condensed.values`, from its gradient in the product."""
  return _module().values_gradient(g, x, condensed, layout)
