"""Products and convolutions with layers in condensed form, on several backends."""

from srigl_kernels.api import Prepared, choose_backend, condensed_matmul, prepare
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.conv import condensed_conv
from srigl_kernels.format import Condensed, check_condensed, make_condensed

__all__ = [
  "BACKENDS",
  "Condensed",
  "Prepared",
  "check_condensed",
  "choose_backend",
  "condensed_conv",
  "condensed_matmul",
  "make_condensed",
  "prepare",
]
