"""A wheel from a machine without a compiler; `make wheel` checks the one from a machine with it."""

import subprocess
import sys

import pytest

from tests import check_wheel


@pytest.mark.slow
def test_without_a_compiler_the_package_installs_and_warns_once(tmp_path):
  env = check_wheel.environment() | {"CC": "/no/compiler", "CXX": "/no/compiler"}
  command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path]
  subprocess.run([*command, check_wheel.ROOT], env=env, check=True)
  (wheel,) = tmp_path.glob("*.whl")
  check_wheel.check_contents(wheel, has_library=False)
  result = check_wheel.run_installed(wheel, tmp_path / "environment", backend="xla")
  assert result.stdout.strip() in ("structured", "dense", "xla")
  assert result.stderr.count("The native CPU kernels cannot be used") == 1
  assert "is not installed" in result.stderr and "C++ compiler" in result.stderr
