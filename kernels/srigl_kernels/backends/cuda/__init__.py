"""The backend "cuda": CUDA C++ kernels for NVIDIA GPUs, called through `jax.ffi`."""

from srigl_kernels.backends.base import Backend
from srigl_kernels.backends.cuda import layout, library, products

BACKEND = Backend(
  layout.pack,
  products.matmul,
  is_available=library.is_available,
  needs=(
    "an NVIDIA GPU of compute capability 8.0 or more that jax runs on, and nvcc to build the "
    "kernels at first use; `srigl_kernels.backends.cuda.library.why_not()` tells what is missing"
  ),
  pack_pattern=layout.pack_pattern,
  with_values=layout.with_values,
  input_gradient=products.input_gradient,
  values_gradient=products.values_gradient,
)
"""NVIDIA GPUs, where nvcc or a built library is."""
