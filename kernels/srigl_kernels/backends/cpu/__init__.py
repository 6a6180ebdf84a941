"""The backend "cpu": native kernels in a shared library, called through `jax.ffi`."""

import functools

import jax

from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.cpu import conv, gradients, library, matmul
from srigl_kernels.format import Condensed
from srigl_kernels.prepared import Layout


def _pack(condensed: Condensed, exact: bool = True) -> Layout:
  return matmul.pack(
    condensed.values,
    condensed.indices,
    condensed.active,
    condensed.in_features,
    condensed.out_features,
    exact=exact,
    scales=condensed.scales,
    input_range=condensed.input_range,
    rounds_inputs=condensed.rounds_inputs,
  )


BACKEND = Backend(
  _pack,
  matmul.matmul,
  is_available=lambda: library.is_available() and jax.default_backend() == "cpu",
  needs="jax running on CPU, and the native library, which `pip install .` builds",
  pack_rounded=functools.partial(_pack, exact=False),
  packs_traced=lambda: False,
  pack_pattern=gradients.pack,
  with_values=gradients.with_values,
  input_gradient=gradients.input_gradient,
  values_gradient=gradients.values_gradient,
  conv=conv.conv,
  converts=True,
  fuses=matmul.ACTIVATIONS,
  adds_residual=True,
  is_linear=lambda layout: not getattr(layout, "is_quantized", False),
)
"""CPUs, where the library is installed."""
