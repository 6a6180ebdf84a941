"""The backends of the condensed product by name, and the layouts that they make."""

from typing import Any

import jax

from srigl_kernels.backends import cpu, cuda, dense, grouped, pallas, reference, xla
from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.layout_size import check_layout_bytes
from srigl_kernels.conv_geometry import expand_groups
from srigl_kernels.format import Condensed
from srigl_kernels.precision import dequantize
from srigl_kernels.prepared import Layout

BACKENDS: dict[str, Backend] = {
  "reference": reference.BACKEND,
  "xla": xla.BACKEND,
  "cpu": cpu.BACKEND,
  "cuda": cuda.BACKEND,
  "pallas": pallas.BACKEND,
  "grouped": grouped.BACKEND,
  "structured": dense.STRUCTURED,
  "dense": dense.DENSE,
}
"""All backends by name; what each needs is in its record."""


def pack(
  name: str,
  condensed: Condensed,
  feature_group_count: int = 1,
  *,
  gradients: bool = False,
  exact: bool = True,
) -> Layout:
  """The layout of one backend; raises as `prepare` does.

  With `gradients`, None if it is to be made in every call.
  """
  if name not in BACKENDS:
    raise ValueError(f"`backend` must be 'auto' or one of {list(BACKENDS)}, not {name!r}.")
  backend = BACKENDS[name]
  if not backend.is_available():
    raise ValueError(
      f"Backend {name!r} cannot run here, on {jax.default_backend()}: it needs {backend.needs}. "
      "backend='auto' takes one that can."
    )
  if gradients and backend.packs_traced() and backend.pack_pattern is None:
    return None
  reads = (condensed.indices, condensed.active) if gradients else condensed
  if not backend.packs_traced() and is_traced(reads):
    raise ValueError(
      f"Backend {name!r} lays a layer out on the host and cannot do so with traced arrays: call "
      f"prepare(condensed, backend={name!r}) before, outside of jit, and pass what it returns; "
      "with gradients=True its values may change."
    )
  if not backend.converts:
    condensed = dequantize(condensed)
  if not backend.conv_groups:
    condensed = expand_groups(condensed, feature_group_count)
  check_layout_bytes(name, condensed)
  if gradients and backend.pack_pattern is not None:
    return backend.pack_pattern(condensed)
  if not exact and backend.pack_rounded is not None:
    return backend.pack_rounded(condensed)
  return backend.pack(condensed)


def is_traced(tree: Any) -> bool:
  """Whether any leaf is traced."""
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
