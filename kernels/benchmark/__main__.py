"""The door to `experiments.benchmark_kernels`: `python -m kernels.benchmark [--quick]`."""

import runpy

runpy.run_module("experiments.benchmark_kernels", run_name="__main__")
