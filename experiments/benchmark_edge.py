"""Exported C code beside its dense twin: `python -m experiments.benchmark_edge --publish`.

Two networks at 90 % sparsity, with random weights on random inputs, on which their speed does not
depend: the digits MLP 64→256→256→10 and 16→64→32→32→5 as used in jet tagging. Each form is compared
with its dense twin, which is what the same writer makes of the dense network in the same
arithmetic; its loops go input by input, so that compilers vectorise them. Reported are the least
time of a call in rounds that take turns, code and constants in bytes, and what a Cortex-M4 takes
(`experiments/benchmarks/edge/cortex_m.py`) where its tools are installed. emlearn and keras2c are
not measured yet.
"""

import functools
import itertools
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from flax import nnx

import srigl_jax as sx
from experiments.benchmarks.edge import cortex_m
from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import RESULTS, write_json
from experiments.common.markdown import markdown_table

NETWORKS = {"digits": (64, 256, 256, 10), "jets": (16, 64, 32, 32, 5)}
ARITHMETICS = ("float32", "int8", "q4.11")
_NAMES = {arithmetic.replace(".", "_"): arithmetic for arithmetic in ARITHMETICS}
FLAGS = {"-O2": ["-O2"], "-O3 -march=native": ["-O3", "-march=native"]}
_DRIVER = """
#define _POSIX_C_SOURCE 199309L
#include <stdint.h>
#include <stdio.h>
#include <time.h>
INCLUDES
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}
int main(void) {
  double best[COUNT];
  for (int i = 0; i < COUNT; i++) best[i] = 1e18;
  for (int round = 0; round < 40; round++) {
CALLS
  }
  for (int i = 0; i < COUNT; i++) printf("%.2f\\n", best[i]);
  return 0;
}
"""
_CALL = """    {{
      static TYPE x[4][{upper}_INPUTS];
      static RESULT y[{upper}_OUTPUTS];
      for (int i = 0; i < 4; i++) for (int k = 0; k < {upper}_INPUTS; k++) x[i][k] = (i + k) % 7;
      const double start = now();
      for (int i = 0; i < 500; i++) {name}_run(x[i & 3], y);
      const double taken = (now() - start) / 500;
      if (taken < best[{i}]) best[{i}] = taken;
    }}"""


class Form(NamedTuple):
  """A network in C: its arithmetic, and "dense" or the style of the sparse code."""

  arithmetic: str
  style: str
  code: sx.CExport


def forms(sizes: tuple[int, ...]) -> list[Form]:
  """A network in every arithmetic: its dense twin, the sparse loops, and what "auto" takes."""
  rngs = nnx.Rngs(0)
  layers: list[Any] = []
  for pair in itertools.pairwise(sizes):
    layers += [nnx.Linear(*pair, rngs=rngs), nnx.relu]
  model = nnx.Sequential(*layers[:-1])
  x = np.asarray(jax.random.normal(jax.random.key(1), (64, sizes[0])), np.float32)
  params = nnx.state(model, nnx.Param)
  masks = sx.init_masks(jax.random.key(0), sx.allocate(params, sparsity=0.9))
  export = functools.partial(sx.export_c, inputs=x, calibration=x)
  found = []
  for name, arithmetic in _NAMES.items():
    kwargs = {"arithmetic": arithmetic, "form": "dense", "style": "loops"}
    found.append(Form(arithmetic, "dense", export(model, name=f"{name}_dense", **kwargs)))
  nnx.update(model, sx.apply_masks(params, masks))
  sparse = sx.condense_model(model, masks, jnp.asarray(x))
  for name, arithmetic in _NAMES.items():
    for style in {"loops": 0, export(sparse, arithmetic=arithmetic).style: 0}:
      code = export(sparse, arithmetic=arithmetic, style=style, name=f"{name}_{style}")
      found.append(Form(arithmetic, style, code))
  return sorted(found, key=lambda form: ARITHMETICS.index(form.arithmetic))


def measure(found: list[Form], folder: Path) -> list[dict[str, Any]]:
  """A row for each form: nanoseconds by flags, bytes, and of the Cortex-M4 if it is there."""
  exports = [form.code for form in found]
  for one in exports:
    one.write(folder, overwrite=True)
  rows: list[dict[str, Any]] = [
    {"arithmetic": form.arithmetic, "form": form.style} for form in found
  ]
  for title, options in FLAGS.items():
    for row, nanoseconds in zip(rows, _times(exports, folder, options), strict=True):
      row[title] = nanoseconds
  for row, one in zip(rows, exports, strict=True):
    row |= {"bytes": _size("gcc", "size", [], one.name, folder), "stack": one.stack_bytes}
    if cortex_m.is_available():
      x = np.zeros((1, *one.plan.network.input_shape))
      _, row["instructions"] = cortex_m.run_on_cortex_m(one, x, folder)
      arm = cortex_m.COMPILER, "arm-none-eabi-size", list(cortex_m.TARGET)
      row["arm_bytes"] = _size(*arm, one.name, folder)
  return rows


def _times(exports: list[sx.CExport], folder: Path, options: list[str]) -> list[float]:
  calls, names = [], [one.name for one in exports]
  for i, (name, one) in enumerate(zip(names, exports, strict=True)):
    given, result = one.plan.formats[0], one.plan.formats[-1]
    call = _CALL.format(upper=name.upper(), name=name, i=i)
    call = call.replace("TYPE", "float" if given is None else f"{given.dtype.name}_t")
    calls.append(call.replace("RESULT", "float" if result is None else f"{result.dtype.name}_t"))
  text = _DRIVER.replace("INCLUDES", "\n".join(f'#include "{name}.h"' for name in names))
  text = text.replace("CALLS", "\n".join(calls)).replace("COUNT", str(len(exports)))
  (folder / "driver.c").write_text(text)
  files = ["driver.c", *(f"{name}.c" for name in names)]
  command = ["gcc", "-std=c99", *options, *files, "-o", "driver", "-lm"]
  subprocess.run(command, cwd=folder, check=True)
  done = subprocess.run(["./driver"], cwd=folder, check=True, capture_output=True, text=True)
  return [float(line) for line in done.stdout.split()]


def _size(cc: str, tool: str, options: list[str], name: str, folder: Path) -> int:
  """Bytes of code and constants at -O2."""
  subprocess.run([cc, *options, "-std=c99", "-O2", "-c", f"{name}.c"], cwd=folder, check=True)
  done = subprocess.run([tool, f"{name}.o"], cwd=folder, check=True, capture_output=True, text=True)
  return int(done.stdout.splitlines()[1].split()[0])


def table(results: dict[str, list[dict[str, Any]]]) -> str:
  """A Markdown table; ratios are to the dense twin in the same arithmetic and program."""
  header = ["network", "arithmetic", "form", *(f"gcc {f} (ns)" for f in FLAGS)]
  header += [f"dense / it, {f}" for f in FLAGS]
  header += ["bytes", "stack", "M4 instructions", "M4 bytes"]
  cells = []
  for name, rows in results.items():
    dense = {row["arithmetic"]: row for row in rows if row["form"] == "dense"}
    for row in rows:
      ratios = [f"{dense[row['arithmetic']][f] / row[f]:.2f}" for f in FLAGS]
      numbers = [row["bytes"], row["stack"], row.get("instructions", 0), row.get("arm_bytes", 0)]
      times = [f"{row[f]:,.0f}" for f in FLAGS]
      titles = [name, row["arithmetic"], row["form"]]
      cells.append([*titles, *times, *ratios, *(f"{n:,}" if n else "" for n in numbers)])
  return markdown_table(header, cells, align="lll" + "r" * (len(header) - 3))


def main() -> int:
  """The command."""
  results = {}
  for name, sizes in NETWORKS.items():
    with tempfile.TemporaryDirectory() as folder:
      results[name] = measure(forms(sizes), Path(folder))
  text = table(results)
  print(text)
  if flags.FLAGS.publish:
    compiler = subprocess.run(["gcc", "--version"], capture_output=True, text=True, check=True)
    described = {**environment(), "gcc": compiler.stdout.splitlines()[0]}
    command = command_line("experiments.benchmark_edge")
    value = {"command": command, "environment": described, "networks": results, "table": text}
    write_json(RESULTS / "edge.json", value)
  return 0


if __name__ == "__main__":
  flags.DEFINE_bool("publish", False, "Write the results that docs/microcontroller.md shows.")
  cli.run(main)
