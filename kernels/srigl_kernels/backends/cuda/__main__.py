"""Builds the library of CUDA kernels, for another machine or for tests.

    python -m srigl_kernels.backends.cuda --out=FILE --arch 80 90
    python -m srigl_kernels.backends.cuda --out=FILE --emulate

The second, built by g++, runs the kernels on the CPU, slowly: to test them, never to use them.
"""

import argparse
import pathlib
import subprocess

from srigl_kernels.backends.cuda import library


def main() -> None:
  """Runs the command."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--arch", type=int, nargs="+", default=[90], help="90 for sm_90, and so on")
  parser.add_argument("--emulate", action="store_true", help="kernels for the CPU, for tests")
  options = parser.parse_args()
  try:
    library.build(options.out, options.arch, emulate=options.emulate)
  except subprocess.CalledProcessError as error:
    raise SystemExit(error.stderr) from error


if __name__ == "__main__":
  main()
