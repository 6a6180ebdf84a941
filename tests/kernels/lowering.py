"""Kernels for devices that are not here: interpreted, and lowered, which finds what cannot be."""

import contextlib

import jax
from jax.sharding import AbstractDevice, AbstractMesh

from srigl_kernels.backends.pallas.device import INTERPRET

_H100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")


@contextlib.contextmanager
def interpreting(monkeypatch, device):
  """Interprets the kernels for "gpu" or "tpu"; XLA takes a third less time for what that makes."""
  monkeypatch.setenv(INTERPRET, device)
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


def lower(platform, function, *args):
  """The program of `function` for "cuda" or "tpu", as text; args are arrays, or their shapes."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=_H100)):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
