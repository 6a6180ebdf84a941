"""The door to the kernel benchmark: `python -m kernels.benchmark [--quick]`, or `--device=gpu`."""

import runpy
import sys

_ON_GPU = "--device=gpu"
if _ON_GPU in sys.argv:
  sys.argv.remove(_ON_GPU)
  runpy.run_module("experiments.benchmarks.kernels.gpu_check", run_name="__main__")
else:
  runpy.run_module("experiments.benchmark_kernels", run_name="__main__")
