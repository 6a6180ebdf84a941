"""Compiles exported networks and runs them as programs of their own."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import srigl_jax as sx

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZERS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")

_HOST = """
#include <stdio.h>
{includes}
int main(void) {{
{calls}
  return 0;
}}
"""
_HOST_CALL = """  {{
    static {given} x[{upper}_INPUTS];
    static {result} y[{upper}_OUTPUTS];
    for (int i = 0; i < {count}; i++) {{
      if (fread(x, sizeof x, 1, stdin) != 1) return 1;
      {name}_run(x, y);
      if (fwrite(y, sizeof y, 1, stdout) != 1) return 2;
    }}
  }}"""


def compiler(name: str) -> str:
  """The path of a compiler; skips the test if there is none."""
  found = shutil.which(name)
  if found is None:
    pytest.skip(f"{name} is not installed")
  return found


def types(exported: sx.CExport) -> tuple[np.dtype, np.dtype]:
  """Of the function's inputs and outputs."""
  given, result = exported.plan.formats[0], exported.plan.formats[-1]
  float32 = np.dtype(np.float32)
  is_float = exported.plan.softmax or result is None
  return float32 if given is None else given.dtype, float32 if is_float else result.dtype


def _ctype(dtype: np.dtype) -> str:
  return "float" if dtype == np.float32 else f"{dtype.name}_t"


def run_compiled(
  exports: list[sx.CExport], x: np.ndarray, folder: Path, *, cc: str, flags=SANITIZERS
) -> list[np.ndarray]:
  """What the C functions compute, all of them in one program: integers or floats as returned."""
  for one in exports:
    one.write(folder, overwrite=True)
  calls = []
  for one in exports:
    given, result = map(_ctype, types(one))
    calls.append(
      _HOST_CALL.format(
        given=given, result=result, upper=one.name.upper(), name=one.name, count=len(x)
      )
    )
  includes = "\n".join(f'#include "{one.name}.h"' for one in exports)
  main = folder / "main_host.c"
  main.write_text(_HOST.format(includes=includes, calls="\n".join(calls)))
  program = folder / f"program_{Path(cc).name}"
  sources = [str(folder / f"{one.name}.c") for one in exports]
  subprocess.run(
    [cc, *WARNINGS, *flags, str(main), *sources, "-o", str(program), "-lm"], check=True
  )
  data = b"".join(one.quantize(x).tobytes() for one in exports)
  done = subprocess.run([str(program)], input=data, capture_output=True, check=False)
  assert done.returncode == 0, done.stderr.decode()
  results, at = [], 0
  for one in exports:
    dtype, shape = types(one)[1], (len(x), *one.plan.network.output_shape)
    size = int(np.prod(shape)) * dtype.itemsize
    results.append(np.frombuffer(done.stdout[at : at + size], dtype).reshape(shape))
    at += size
  assert at == len(done.stdout)
  return results


def assert_same(exported: sx.CExport, found: np.ndarray, x: np.ndarray) -> None:
  """Checks what C computed against the same arithmetic in numpy: integers bit for bit."""
  expected = exported.run(x)
  if exported.plan.name == "float32" or exported.plan.softmax:
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  else:
    np.testing.assert_array_equal(exported.dequantize(found), expected)
