"""The door to the kernel benchmark: `python -m kernels.benchmark [--quick]`, `--device=gpu`, and
`--expected`, what a GPU is expected to show.
"""

import runpy
import sys

_ON_GPU = "--device=gpu"
if _ON_GPU in sys.argv:
  sys.argv.remove(_ON_GPU)
  runpy.run_module("experiments.benchmarks.kernels.gpu_check", run_name="__main__")
elif "--expected" in sys.argv:
  sys.argv.remove("--expected")
  runpy.run_module("experiments.benchmarks.kernels.expected", run_name="__main__")
else:
  runpy.run_module("experiments.benchmark_kernels", run_name="__main__")
