"""Fixtures of the tests of kernels."""

import pytest

from srigl_kernels.backends.cpu import library
from tests.kernels.cpu_targets import targets


@pytest.fixture(params=targets())
def isa(request):
  """Each CPU target that this machine supports, in use."""
  before = library.isa()
  library.set_isa(request.param)
  yield request.param
  library.set_isa(before)
