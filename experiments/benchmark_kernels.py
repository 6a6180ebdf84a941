"""Microbenchmarks of condensed layers and models: `python -m kernels.benchmark [--quick]`.

Every method computes the same layer, bias included, in float32 on the same inputs and threads, in
one run: see `benchmarks.kernels.baselines` for the methods, `benchmarks.kernels.measure` for how
they are timed and `benchmarks.kernels.targets` for what is held against the targets. It ends in
tables, and in a folder with `benchmark.json`, `benchmark.csv` and bar charts.

    python -m kernels.benchmark --quick                       the rows with targets
    python -m kernels.benchmark                               both layers of the paper, all of it
    python -m kernels.benchmark --shape=512x2048x700          any shape (inputs x outputs x active)
    python -m kernels.benchmark --model=FILE --layer=NAME     a layer of an exported model
    python -m kernels.benchmark --models                      whole models
    python -m kernels.benchmark --fit                         the cost model's constants
    python -m kernels.benchmark --device=gpu                  on a GPU: see `gpu_check`
"""

import os
import sys


def _pin(argv: list[str]) -> None:
  """Keeps the process on the last N of its cores if the command says `--pin=N`.

  Libraries size their thread pools when they start: this must come before jax is imported.
  """
  counts = [arg.partition("=")[2] for arg in argv if arg.startswith("--pin=")]
  if counts and counts[0].isdigit() and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[-int(counts[0]) :]))
    os.environ["OMP_NUM_THREADS"] = counts[0]  # PyTorch, MKL, OpenBLAS


if __name__ == "__main__" and "--device=gpu" in sys.argv:
  from experiments.benchmarks.kernels import gpu_check

  sys.exit(gpu_check.main([arg for arg in sys.argv[1:] if arg != "--device=gpu"]))

if __name__ == "__main__":
  _pin(sys.argv)
  from experiments.benchmarks.kernels import command

  command.run()
