"""Products and convolutions with layers in condensed form, on several backends."""

from srigl_kernels.api import Prepared, choose_backend, condensed_matmul, prepare
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.conv import condensed_conv
from srigl_kernels.format import Condensed, check_condensed, make_condensed
from srigl_kernels.pattern import Pattern
from srigl_kernels.precision import DTYPES
from srigl_kernels.training import sparse_linear
from srigl_kernels.training_conv import ConvProbe, conv_probe, sparse_conv

__all__ = [
  "BACKENDS",
  "DTYPES",
  "Condensed",
  "ConvProbe",
  "Pattern",
  "Prepared",
  "check_condensed",
  "choose_backend",
  "condensed_conv",
  "condensed_matmul",
  "conv_probe",
  "make_condensed",
  "prepare",
  "sparse_conv",
  "sparse_linear",
]
