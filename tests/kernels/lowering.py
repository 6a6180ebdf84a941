"""Lowering for devices that are not here: a kernel that Pallas cannot lower fails here, too."""

import jax
from jax.sharding import AbstractDevice, AbstractMesh

_H100 = AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")


def lower(platform, function, *args):
  """The program of `function` for "cuda" or "tpu", as text; args are arrays, or their shapes."""
  shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
  with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=_H100)):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
