"""Pallas kernels for accelerators."""

from srigl_kernels.backends.pallas.dispatch import BACKEND

__all__ = ["BACKEND"]
