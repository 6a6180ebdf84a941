"""A network as two files of plain C99: no allocation, no library but `math.h`, one function."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from srigl_jax.condensed.whole_file import write_whole
from srigl_jax.export import run
from srigl_jax.export.arithmetic import Plan, plan
from srigl_jax.export.c_finish import Finisher
from srigl_jax.export.c_memory import allocate, stack_bytes
from srigl_jax.export.c_steps import StepWriter
from srigl_jax.export.c_text import Code, loop, number
from srigl_jax.export.network import Layer, Network
from srigl_jax.export.trace import read_layers, trace_network

_MAX_UNROLLED = 1024  # weights that "auto" writes out; more would leave a 32 kB instruction cache
_STACK_OVERHEAD = 512  # of registers and locals; less was measured with gcc at -Os, -O2 and -O3
_KEYWORDS = {
  "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum",
  "extern", "float", "for", "goto", "if", "inline", "int", "long", "main", "register", "restrict",
  "return", "short", "signed", "sizeof", "static", "struct", "switch", "typedef", "union",
  "unsigned", "void", "volatile", "while",
}  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class CExport:
  """A network in C, and what its code computes.

  Attributes:
    header, source: the text of `NAME.h` and `NAME.c`.
    name: of the files and in front of all that they define.
    stack_bytes: how much stack a call takes at most if compiled with optimization (-Os, -O2 or
      -O3), functions of `math.h` apart.
    num_weights: that are stored, weights of dense layers included.
    style: "loops" or "unrolled".
    plan: the network and its numbers.
  """

  header: str
  source: str
  name: str
  stack_bytes: int
  num_weights: int
  style: str
  plan: Plan

  def run(self, x: Any) -> np.ndarray:
    """What the C function computes for real inputs, in numpy.

    Args:
      x: `[B, *input_shape]`, real numbers.

    Returns:
      `[B, *output_shape]` float32: what the integers stand for. Integers are the same, bit for
      bit; in float32 sums are rounded in another order.
    """
    x = np.asarray(x, np.float32).reshape(-1, *self.plan.network.input_shape)
    if self.plan.name == "float32":
      y = run.run_float(self.plan.network, x)
    else:
      y = self.dequantize(run.run_integers(self.plan, self.quantize(x)))
    return run.softmax(y) if self.plan.softmax else y

  def quantize(self, x: Any) -> np.ndarray:
    """Real inputs as the integers that the C function takes; in float32 as they are."""
    given = self.plan.formats[0]
    return np.asarray(x, np.float32) if given is None else given.quantize(x).astype(given.dtype)

  def dequantize(self, y: np.ndarray) -> np.ndarray:
    """What the C function returns as real numbers, if it has no softmax."""
    given = self.plan.formats[-1]
    return y if given is None else given.dequantize(y)

  def write(self, directory: Path | str, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Writes the header and the source; the folder is made.

    Raises:
      FileExistsError: if one of them exists, unless `overwrite`.
    """
    directory = Path(directory)
    paths = directory / f"{self.name}.h", directory / f"{self.name}.c"
    for path in paths:
      if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give another folder or name, or overwrite=True.")
    directory.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, (self.header, self.source), strict=True):
      write_whole(path, text.encode("ascii"))
    return paths


def export_c(
  model: Any,
  inputs: Any = None,
  *,
  arithmetic: str = "float32",
  calibration: Any = None,
  name: str = "model",
  style: str = "auto",
  output: str = "logits",
  form: str = "auto",
) -> CExport:
  """Writes a trained network as plain C99, for microcontrollers and triggers.

  The code needs no allocation and no library but `math.h` (and that only for some activations in
  float32); weights and indices are `static const`, so that they stay in flash. Batch norms are
  folded into the layers beside them, and ablated neurons of linear layers are not there.

  Exported are linear layers, convolutions over one or two axes (also grouped or dilated), batch
  norms, max and mean pooling, sums of two tensors (residuals), reshapes, and the activations relu,
  relu6, leaky_relu, tanh, sigmoid, silu, gelu, elu, hard_sigmoid, hard_swish and softplus, however
  the model writes them. Layer norms, attention, transposed convolutions, layers that are shared or
  stacked in loops, and models of several inputs or outputs are refused.

  Args:
    model: a Flax NNX model, from `condense_model`, `merge_condensed`, or dense; or a list of
      condensed linear layers and names of activations, `[layer, "relu", layer]`.
    inputs: for a model, an example batch: an array or `jax.ShapeDtypeStruct`, its first axis the
      batch. For a list it is not needed.
    arithmetic: "float32"; "int8": 8-bit weights with a scale for each neuron, 8-bit activations
      with one for each tensor, 32-bit sums, 16-bit outputs; or fixed point "qM.N", such as "q3.12":
      all numbers with M bits before the point, N behind it, and a sign, limited instead of wrapped.
    calibration: `[B, ...]`, some hundred inputs as the network will see them. int8 needs them for
      its ranges; fixed point warns if they leave its range.
    name: of the files and in front of all that they define, an identifier in C.
    style: "loops" over values and indices; "unrolled", where every weight is a literal in the
      code; or "auto", which unrolls networks of linear layers of up to 1024 weights.
    output: "logits", what the model returns; or "softmax" of that, in float32.
    form: "auto" stores a layer with indices where that is smaller; "dense" stores all weights.

  Returns:
    The code; `write(directory)` puts it into two files, `run(x)` computes the same in numpy.

  Raises:
    ValueError: if a part of the model cannot be exported, saying which, an argument is unknown, or
      the numbers do not fit.
  """
  for argument, value, allowed in (
    ("style", style, ("auto", "loops", "unrolled")),
    ("output", output, ("logits", "softmax")),
    ("form", form, ("auto", "dense")),
  ):
    if value not in allowed:
      raise ValueError(f"`{argument}` is {value!r}; it must be one of {', '.join(allowed)}.")
  if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name) or name in _KEYWORDS:
    raise ValueError(f"`name` is {name!r}; it must be an identifier in C, such as 'model'.")
  network = network_of(model, inputs)
  planned = plan(network, arithmetic, calibration, softmax=output == "softmax")
  layers = [step for step in network.steps if isinstance(step, Layer)]
  is_flat = all(len(step.shape) == 1 for step in network.steps)
  num_weights = sum(step.values.size for step in layers)
  if style == "auto":
    style = "unrolled" if is_flat and num_weights <= _MAX_UNROLLED else "loops"
  return _Writer(planned, name, style, form).export()


def network_of(model: Any, inputs: Any) -> Network:
  """The network that a model or a list of layers is; see `export_c`."""
  if isinstance(model, Sequence) and not isinstance(model, str):
    network = read_layers(model)
  else:
    network = trace_network(model, inputs)
  if not any(isinstance(step, Layer) for step in network.steps):
    raise ValueError("The model has no layer with weights: there is nothing to export.")
  return network


class _Writer:
  """Puts the pieces together."""

  def __init__(self, planned: Plan, name: str, style: str, form: str):
    self.plan, self.name, self.style, self.form = planned, name, style, form
    self.ctypes = [
      "float" if given is None else f"{given.dtype.name}_t" for given in planned.formats
    ]
    self.memory = allocate(planned, self.ctypes)
    self.finisher = Finisher(planned, f"{name}_", self.ctypes)
    self.output_type = "float" if planned.softmax else self.ctypes[-1]
    self.num_inputs = math.prod(planned.network.input_shape)
    self.num_outputs = math.prod(planned.network.output_shape)
    self.stack_bytes = stack_bytes(self.memory) + _STACK_OVERHEAD
    if style == "unrolled":  # compilers read inputs early, and keep them there
      layers = [step for step in planned.network.steps if isinstance(step, Layer)]
      self.stack_bytes += 512 + 16 * max(step.num_inputs for step in layers)

  def export(self) -> CExport:
    writer = StepWriter(self.plan, self.memory, self.ctypes, self.finisher, self.form)
    for i in range(len(self.plan.network.steps)):
      writer.write(i, self.style)
    body = writer.code
    if self.plan.softmax:
      self._softmax(body)
    source = self._source(body, writer.arrays)
    stored = [re.search(r" w\d+\[(\d+)\]", text.partition("=")[0]) for text in writer.arrays]
    count = sum(int(match[1]) for match in stored if match)
    if self.style == "unrolled":
      layers = [s for s in self.plan.network.steps if isinstance(s, Layer)]
      count = sum(int(np.count_nonzero(s.values)) for s in layers)
    return CExport(
      self._header(), source, self.name, self.stack_bytes, count, self.style, self.plan
    )

  def _title(self) -> str:
    shapes = "{} -> {}".format(
      *(
        " x ".join(map(str, shape))
        for shape in (self.plan.network.input_shape, self.plan.network.output_shape)
      )
    )
    return f"A sparse network, {shapes}, in {self.plan.name}. Written by srigl_jax.export_c."

  def _header(self) -> str:
    upper, given, result = self.name.upper(), self.plan.formats[0], self.plan.formats[-1]
    lines = [f"/* {self._title()} */", f"#ifndef {upper}_H", f"#define {upper}_H", ""]
    lines += ["#include <stdint.h>", "", f"#define {upper}_INPUTS {self.num_inputs}"]
    lines.append(f"#define {upper}_OUTPUTS {self.num_outputs}")
    lines.append(
      f"#define {upper}_STACK_BYTES {self.stack_bytes}  /* of a call, at most, with optimization */"
    )
    if given is not None and result is not None:
      lines += ["", "/* An integer q stands for the real number (q - ZERO) * SCALE. */"]
      for word, f in (("INPUT", given), ("OUTPUT", result)):
        if word == "INPUT" or not self.plan.softmax:
          lines.append(f"#define {upper}_{word}_SCALE {number(f.scale, 'float')}")
          lines.append(f"#define {upper}_{word}_ZERO {f.zero}")
    lines += ["", "#ifdef __cplusplus", 'extern "C" {', "#endif", ""]
    lines.append("/* Computes the outputs of one example; x and y must not overlap. */")
    lines.append(f"{self._signature('')};")
    lines += ["", "#ifdef __cplusplus", "}", "#endif", "", f"#endif  /* {upper}_H */", ""]
    return "\n".join(lines)

  def _signature(self, qualifier: str) -> str:
    upper = self.name.upper()
    return (
      f"void {self.name}_run(const {self.ctypes[0]} x[{qualifier}{upper}_INPUTS], "
      f"{self.output_type} y[{qualifier}{upper}_OUTPUTS])"
    )

  def _source(self, body: Code, arrays: list[str]) -> str:
    parts = [f"/* {self._title()} */", f'#include "{self.name}.h"']
    if self.finisher.uses_math or self.plan.softmax:
      parts.append("#include <math.h>")
    parts += ["", "/* w: weights, i: the inputs that they belong to, b: biases, by layer. */"]
    parts += [*arrays, "", *self.finisher.functions.values(), ""]
    parts.append(f"{self._signature('restrict ')} {{")
    parts += [f"  {ctype} {array}[{size}];" for ctype, array, size in self.memory.arrays]
    return "\n".join([*parts, str(body), "}", ""])

  def _softmax(self, code: Code) -> None:
    place, result = self.memory.places[-1], self.plan.formats[-1]
    count = place.size
    scale = "" if result is None else f" * {number(result.scale, 'float')}"
    channels = self.plan.network.output_shape[-1]
    code.add("", "/* Softmax, of differences to the largest logit. */", "{")
    code.add(loop("r", count // channels))
    code.add(
      f"const {self.ctypes[-1]} *v = {place.array} + r * {channels};",
      f"float *e = y + r * {channels};",
      f"{self.ctypes[-1]} top = v[0];",
      "float sum = 0.0f;",
      loop("n", channels),
      "if (v[n] > top) top = v[n];",
      "}",
      loop("n", channels),
      f"e[n] = expf((float)(v[n] - top){scale});",
      "sum += e[n];",
      "}",
      loop("n", channels),
      "e[n] /= sum;",
      "}",
      "}",
      "}",
    )
