"""The backends of the condensed product by name: what each can do, and its layouts."""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import Array

from srigl_kernels.backends import dense, grouped, reference, xla
from srigl_kernels.backends.cpu import gradients
from srigl_kernels.conv_geometry import Geometry, expand_groups
from srigl_kernels.format import Condensed
from srigl_kernels.prepared import Layout


class Backend(NamedTuple):
  """One way to compute the product.

  Attributes:
    pack: `(condensed) -> layout`, the arrays that `matmul` reads.
    matmul: `(x [B, I], layout, bias [N] or None, activation) -> y [B, N]` of x's type.
    is_available: whether it can run here.
    needs: what it takes to run, for messages.
    pack_rounded: as `pack`, where it is faster to compute with weights that are slightly rounded.
    packs_traced: whether `pack` also takes traced arrays.
    pack_pattern: `(condensed) -> layout`, all that does not depend on the values; None where
      `pack` is cheap enough for every call.
    with_values: `(layout, values [A, K]) -> layout`, from what `pack_pattern` or `pack` made to
      what `matmul` and `conv` read.
    input_gradient: `(g [B, N], condensed, layout) -> dx [B, I]`.
    values_gradient: `(g [B, N], x [B, I], condensed, layout) -> dvalues [A, K]`.
    conv: `(x [B, *S, C], layout, bias or None, activation, geometry) -> y [B, *S_out, N]`; None if
      it runs a convolution as `patches.conv` with its `matmul`.
    conv_groups: whether `conv` knows groups; to others the layer's are expanded.
  """

  pack: Callable[[Condensed], Layout]
  matmul: Callable[[Array, Layout, Array | None, str | None], Array]
  is_available: Callable[[], bool] = lambda: True
  needs: str = ""
  pack_rounded: Callable[[Condensed], Layout] | None = None
  packs_traced: Callable[[], bool] = lambda: True
  pack_pattern: Callable[[Condensed], Layout] | None = None
  with_values: Callable[[Layout, Array], Layout] = lambda layout, values: layout
  input_gradient: Callable[[Array, Condensed, Layout], Array] = lambda g, condensed, layout: (
    xla.input_gradient(g, condensed)
  )
  values_gradient: Callable[[Array, Array, Condensed, Layout], Array] = (
    lambda g, x, condensed, layout: xla.values_gradient(g, x, condensed)
  )
  conv: Callable[[Array, Layout, Array | None, str | None, Geometry], Array] | None = None
  conv_groups: bool = False


@functools.cache
def native() -> Any:
  """The module of the native CPU kernels if it is there and its library loads, else None."""
  try:
    cpu = importlib.import_module("srigl_kernels.backends.cpu.library")
    return cpu if cpu.is_available() else None
  except (ImportError, OSError):  # OSError: the library is there but does not load
    return None


def _pack_cpu(condensed: Condensed, exact: bool = True) -> Layout:
  return native().pack(
    condensed.values,
    condensed.indices,
    condensed.active,
    condensed.in_features,
    condensed.out_features,
    exact=exact,
  )


@functools.cache
def _pallas() -> Any:
  """The module of the Pallas kernels, None if this jax cannot import Pallas."""
  try:
    return importlib.import_module("srigl_kernels.backends.pallas.dispatch")
  except (ImportError, AttributeError):  # AttributeError: a jax that has dropped what we use
    return None


BACKENDS: dict[str, Backend] = {
  "reference": Backend(lambda condensed: condensed, reference.matmul),
  "xla": Backend(xla.pack, xla.matmul),
  "cpu": Backend(
    _pack_cpu,
    lambda *args: native().matmul(*args),
    is_available=lambda: native() is not None and jax.default_backend() == "cpu",
    needs="jax running on CPU, and the native library, which `pip install .` builds",
    pack_rounded=functools.partial(_pack_cpu, exact=False),
    packs_traced=lambda: False,
    pack_pattern=gradients.pack,
    with_values=gradients.with_values,
    input_gradient=gradients.input_gradient,
    values_gradient=gradients.values_gradient,
    conv=lambda *args: importlib.import_module("srigl_kernels.backends.cpu.conv").conv(*args),
  ),
  "pallas": Backend(
    lambda condensed: _pallas().pack(condensed),
    lambda *args: _pallas().matmul(*args),
    is_available=lambda: _pallas() is not None and _pallas().is_available(),
    needs=(
      "a GPU or a TPU that jax runs on; for tests, SRIGL_PALLAS_INTERPRET=gpu (or tpu) in the "
      "environment interprets its kernels, slowly, on any device"
    ),
    packs_traced=lambda: _pallas().packs_traced(),
    pack_pattern=lambda condensed: _pallas().pack_pattern(condensed),
    with_values=lambda *args: _pallas().with_values(*args),
    input_gradient=lambda *args: _pallas().input_gradient(*args),
    values_gradient=lambda *args: _pallas().values_gradient(*args),
  ),
  "grouped": Backend(
    grouped.group,
    grouped.matmul,
    packs_traced=lambda: False,
    pack_pattern=grouped.group_pattern,
    with_values=grouped.with_values,
    input_gradient=grouped.input_gradient,
    values_gradient=grouped.values_gradient,
  ),
  "structured": Backend(dense.pack_structured, dense.matmul, conv=dense.conv, conv_groups=True),
  "dense": Backend(dense.pack_dense, dense.matmul, conv=dense.conv, conv_groups=True),
}
"""All backends by name."""


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
  if not backend.conv_groups:
    condensed = expand_groups(condensed, feature_group_count)
  if gradients and backend.pack_pattern is not None:
    return backend.pack_pattern(condensed)
  if not exact and backend.pack_rounded is not None:
    return backend.pack_rounded(condensed)
  return backend.pack(condensed)


def is_traced(tree: Any) -> bool:
  """Whether any leaf is traced."""
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))
