"""Which device the Pallas kernels run on, without importing Pallas.

Interpret mode runs a kernel operation by operation on any device: to test it, never to use it. It
is chosen by the environment variable `SRIGL_PALLAS_INTERPRET` only, `gpu` or `tpu`, which says
whose kernels the backend "pallas" is to run here.
"""

import os

import jax

INTERPRET = "SRIGL_PALLAS_INTERPRET"
"""Name of the environment variable."""

PLATFORMS = ("gpu", "tpu")
"""Devices that there are kernels for, as `jax.default_backend()` calls them."""


def platform() -> str | None:
  """Whose kernels to run, `"gpu"` or `"tpu"`; None where there are none.

  Raises:
    ValueError: if the environment variable asks for something else.
  """
  interpreted = os.environ.get(INTERPRET, "")
  if interpreted and interpreted not in PLATFORMS:
    raise ValueError(f"{INTERPRET}={interpreted} must be one of {PLATFORMS}, or not be set.")
  name = interpreted or jax.default_backend()
  return name if name in PLATFORMS else None


def is_interpreted() -> bool:
  """Whether kernels are to run in interpret mode."""
  return bool(os.environ.get(INTERPRET))
