"""Where condensed layers are expected to be faster than dense ones on a GPU, before it is measured.

    python -m kernels.benchmark --expected [--out=experiments/results/gpu_expected.json]

By `srigl_kernels.cost_model`, whose constants for GPUs come from published figures of an H100.
"""

from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.common.environment import environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from srigl_kernels import cost_model
from srigl_kernels.problems import LAYERS

_LAYERS = ("vit_ffn_up", "square_90", "square_95", "wide")
_BATCHES = (1, 16, 64, 256)
_TYPES = {"float32 highest": "float32", "float32": "TF32", "bfloat16": "bfloat16"}
_CONDENSED = ("cuda", "pallas", "xla")


def expected(layer: str, dtype: str, batch: int) -> tuple[str, float]:
  """The condensed backend that is expected to be fastest, and dense time over its time.

  Args:
    layer: a key of `LAYERS`.
    dtype: what follows the device in keys of `cost_model.SECONDS`.
    batch: rows of x.
  """
  problem = LAYERS[layer]
  sizes = cost_model.Sizes(*problem[:4])
  # What has no row of its own for a precision computes as in float32.
  key = lambda name: next(
    k for k in (f"{name} gpu {dtype}", f"{name} gpu float32") if k in cost_model.SECONDS
  )
  seconds = {n: cost_model.estimate(key(n), sizes, batch) for n in ("dense", *_CONDENSED)}
  best = min(_CONDENSED, key=seconds.__getitem__)
  return best, seconds["dense"] / seconds[best]


def main() -> None:
  """The command."""
  out = flags.FLAGS.out
  rows = []
  for layer in _LAYERS:
    problem = LAYERS[layer]
    weights = 1 - problem.num_active * problem.fan_in / (problem.in_features * problem.out_features)
    for dtype, title in _TYPES.items():
      found = [expected(layer, dtype, batch) for batch in _BATCHES]
      cells = [f"{ratio:.2f} ({name})" for name, ratio in found]
      rows.append([f"{layer}, {100 * weights:.1f} %", title, *cells])
  table = markdown_table(["layer", "products in", *(f"batch {n}" for n in _BATCHES)], rows)
  print(table)
  if out:
    command = f"python -m kernels.benchmark --expected --out={out}"
    write_json(Path(out), {"command": command, "environment": environment(), "table": table})


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "JSON file of the results.")
  cli.run(main)
