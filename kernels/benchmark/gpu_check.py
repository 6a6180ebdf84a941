"""The door to the GPU check: `python kernels/benchmark/gpu_check.py [--tiny]`, uninstalled too."""

import pathlib
import runpy
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(_ROOT), str(_ROOT / "kernels")]
runpy.run_module("experiments.benchmarks.kernels.gpu_check", run_name="__main__")
