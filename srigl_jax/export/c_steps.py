"""The steps of an exported network in C: loops over arrays, or sums written out."""

import numpy as np

from srigl_jax.export.arithmetic import Plan
from srigl_jax.export.c_finish import Finisher, product_type
from srigl_jax.export.c_memory import Memory, Place
from srigl_jax.export.c_text import Code, array, loop, number, unsigned_type
from srigl_jax.export.network import Add, Layer, Pool, Window

_UNROLL = 4  # accumulators of a float sum, so that additions do not wait for each other
_STRAIGHT = 8  # a fan-in up to which the sum of a neuron has no loop


class StepWriter:
  """Writes steps one after the other.

  Attributes:
    code: the body of the function.
    arrays: the constants that it reads.
  """

  def __init__(self, plan: Plan, memory: Memory, ctypes: list[str], finisher: Finisher, form: str):
    self.plan, self.memory, self.ctypes = plan, memory, ctypes
    self.finisher, self.form = finisher, form
    self.code, self.arrays = Code(1), list[str]()

  def write(self, i: int, style: str) -> None:
    """Writes step `i`, its layer in a style, "loops" or "unrolled"."""
    step = self.plan.network.steps[i]
    source, out = self.memory.places[step.source], self.memory.places[i + 1]
    if i in self.memory.copies:
      source = self._copy(i, source, self._fill(i))
    if out.pads != ((0, 0), (0, 0)):
      reader = self.plan.network.readers(i + 1)[0]
      fill = self._fill([*self.plan.network.steps].index(reader))
      self._fill_all(out, self.ctypes[i + 1], fill)
    if isinstance(step, Layer):
      self._layer(i, step, source, out, style)
    elif isinstance(step, Pool):
      self._pool(i, step, source, out)
    elif isinstance(step, Add):
      self._add(i, step, source, self.memory.places[step.other], out)

  def _fill(self, i: int) -> str:
    """What stands in the pads that step `i` reads."""
    step, ctype = self.plan.network.steps[i], self.ctypes[self.plan.network.steps[i].source]
    given = self.plan.formats[step.source]
    is_max = isinstance(step, Pool) and step.kind == "max"
    if given is None:
      return "-3.40282347e+38f" if is_max else "0.0f"
    return number(given.low if is_max else given.zero, ctype)

  def _fill_all(self, place: Place, ctype: str, fill: str) -> None:
    del ctype
    self.code.add(loop("i", place.size), f"{place.array}[i] = {fill};", "}")

  def _copy(self, i: int, source: Place, fill: str) -> Place:
    copy = self.memory.copies[i]
    height, width, channels = source.image
    self.code.add("/* The image with its border. */")
    self._fill_all(copy, "", fill)
    self.code.add(
      loop("y_", height),
      loop("i", width * channels),
      f"{copy.array}[{copy.first} + y_ * {copy.row} + i] = {source.array}[y_ * {source.row} + i];",
      "}",
      "}",
    )
    return copy

  def _positions(self, window: Window, source: Place, out: Place, ctypes: tuple[str, str]) -> int:
    """Opens the loops over positions; sets `p` to the window there and `o` to the output."""
    code, (height, width, channels) = self.code, out.image
    down, right = window.strides
    read, written = [source.array], [f"{out.array} + {out.first}" if out.first else out.array]
    opened = 0
    for variable, size, from_step, to_step in (
      ("oy", height, down * source.row, out.row),
      ("ox", width, right * source.image[2], channels),
    ):
      if size > 1:
        code.add(loop(variable, size))
        read.append(f"{variable} * {from_step}")
        written.append(f"{variable} * {to_step}")
        opened += 1
    code.add(f"const {ctypes[0]} *p = {' + '.join(read)};")
    code.add(f"{ctypes[1]} *o = {' + '.join(written)};")
    return opened

  def _offsets(self, step: Layer, source: Place) -> np.ndarray:
    """The indices of a layer as distances from the first number of the window."""
    channels = source.image[2]
    position, channel = step.indices // channels, step.indices % channels
    y, x = position // step.window.size[1], position % step.window.size[1]
    far_y, far_x = step.window.dilation
    return y * far_y * source.row + x * far_x * channels + channel

  def _layer(self, i: int, step: Layer, source: Place, out: Place, style: str) -> None:
    ctypes = self.ctypes[step.source], self.ctypes[i + 1]
    numbers, fan_in = self.plan.numbers[i], step.values.shape[1]
    assert numbers.weights is not None and numbers.bias is not None
    offsets = self._offsets(step, source)
    is_dense = self._is_dense(step, offsets)
    kind = "dense" if is_dense else f"{fan_in} weights each"
    act = f", {step.activation.name}" if step.activation else ""
    idle = step.num_neurons - len(step.active)
    gone = f", {idle} of them constant" if idle else ""
    self.code.add(
      "",
      f"/* {step.name or 'factors'}: {step.num_inputs} inputs, {step.num_neurons} neurons{gone}, "
      f"{kind}{act}. */",
      "{",
    )
    opened = self._positions(step.window, source, out, ctypes)
    if idle and not is_dense:
      self._constants(i, step)
    if is_dense and style != "unrolled":
      self._dense(i, step, source)
    elif style == "unrolled":
      self._unrolled(i, step, offsets)
    elif len(step.active):
      self._condensed(i, step, offsets)
    self.code.add(*["}"] * (opened + 1))

  def _is_dense(self, step: Layer, offsets: np.ndarray) -> bool:
    """Whether a layer is written without indices, weights of 0 as well."""
    runs_are_whole = step.window.dilation[1] == 1 or step.window.size[1] == 1
    if self.form == "dense" or not runs_are_whole:
      return self.form == "dense" and runs_are_whole
    width = 4 if self.plan.name == "float32" else np.dtype(self.ctypes[step.source][:-2]).itemsize
    index = np.dtype(unsigned_type(int(offsets.max(initial=0)))[:-2]).itemsize
    return offsets.size * (width + index) >= step.num_inputs * step.num_neurons * width

  def _constants(self, i: int, step: Layer) -> None:
    """The outputs of neurons without weights."""
    idle = np.setdiff1d(np.arange(step.num_neurons), step.active)
    bias, accumulator = self.plan.numbers[i].bias, self.plan.numbers[i].accumulator
    assert bias is not None
    for n in idle:
      value = self.finisher.finished(i, number(bias[n], accumulator), str(n))
      self.code.add(f"o[{n}] = {value};")

  def _bias(self, i: int, values: np.ndarray) -> None:
    accumulator = self.plan.numbers[i].accumulator
    self.arrays.append(array(accumulator, f"b{i}", values))

  def _dense(self, i: int, step: Layer, source: Place) -> None:
    numbers, code = self.plan.numbers[i], self.code
    assert numbers.weights is not None and numbers.bias is not None
    kernel = np.zeros((step.num_inputs, step.num_neurons), numbers.weights.dtype)
    kernel[step.indices, step.active[:, None]] = numbers.weights
    run = step.window.size[1] * source.image[2]
    count, stride = step.window.size[0], step.window.dilation[0] * source.row
    neurons, ctype = step.num_neurons, self.ctypes[step.source]
    self._bias(i, numbers.bias)
    if numbers.accumulator == "float":  # input by input: a vector of neurons at a time
      self.arrays.append(array("float", f"w{i}", kernel))
      code.add(f"const float *w = w{i};", loop("n", neurons), f"o[n] = b{i}[n];", "}")
      if count > 1:
        code.add(loop("r", count, also=f", p += {stride}"))
      code.add(loop("k", run, also=f", w += {neurons}"), loop("n", neurons))
      code.add("o[n] += w[n] * p[k];", "}", "}", *["}"] * (count > 1))
      if step.activation:
        code.add(loop("n", neurons), f"o[n] = {self.finisher.finished(i, 'o[n]')};", "}")
      return
    self.arrays.append(array(ctype, f"w{i}", kernel.T))
    self.arrays += self.finisher.scale_arrays(i)
    cast = product_type(ctype, numbers.accumulator)
    code.add(f"const {ctype} *w = w{i};", loop("n", neurons))
    code.add(f"{numbers.accumulator} s = b{i}[n];")
    place = "p"
    if count > 1:
      code.add("const " + ctype + " *q = p;", loop("r", count, also=f", q += {stride}"))
      place = "q"
    code.add(loop("k", run, also=", w++"), f"s += {cast}*w * {place}[k];", "}")
    code.add(*["}"] * (count > 1), f"o[n] = {self.finisher.finished(i, 's', 'n')};", "}")

  def _condensed(self, i: int, step: Layer, offsets: np.ndarray) -> None:
    """Loops over values and indices; one pointer goes through each array."""
    numbers, code = self.plan.numbers[i], self.code
    accumulator, ctype = numbers.accumulator, self.ctypes[step.source]
    assert numbers.weights is not None and numbers.bias is not None
    fan_in, neurons = step.values.shape[1], len(step.active)
    deltas = np.diff(offsets, axis=1, prepend=0)
    by_delta = offsets.max() >= 2**8 and deltas.max() < 2**8
    index_type = "uint8_t" if by_delta else unsigned_type(int(offsets.max()))
    wctype = "float" if accumulator == "float" else ctype
    self.arrays.append(array(wctype, f"w{i}", numbers.weights))
    self.arrays.append(array(index_type, f"i{i}", deltas if by_delta else offsets))
    self.arrays += self.finisher.scale_arrays(i)
    self._bias(i, numbers.bias[step.active])
    where = "n"
    if neurons < step.num_neurons:
      self.arrays.append(array(unsigned_type(step.num_neurons), f"n{i}", step.active))
      where = f"n{i}[n]"
    code.add(f"const {wctype} *w = w{i};", f"const {index_type} *j = i{i};", loop("n", neurons))
    sums = _UNROLL if fan_in > 1 else 1
    zero = number(0, accumulator)
    starts = [f"b{i}[n]", *[zero] * (min(sums, fan_in) - 1)]
    code.add(f"{accumulator} " + ", ".join(f"s{u} = {x}" for u, x in enumerate(starts)) + ";")
    if by_delta:
      code.add(f"const {ctype} *q = p;  /* indices are distances from the one before */")
    cast = product_type(ctype, accumulator)

    def products(count: int) -> None:
      for u in range(count):
        x = f"*(q += j[{u}])" if by_delta else f"p[j[{u}]]"
        code.add(f"s{u % sums} += {cast}w[{u}] * {x};")

    whole = fan_in // _UNROLL * _UNROLL if fan_in > _STRAIGHT else 0
    if whole:
      code.add(loop("k", whole, _UNROLL, also=f", w += {_UNROLL}, j += {_UNROLL}"))
      products(_UNROLL)
      code.add("}")
    rest = fan_in - whole
    products(rest)
    if rest:
      code.add(f"w += {rest};", f"j += {rest};")
    total = " + ".join(f"s{u}" for u in range(len(starts)))
    if len(starts) == 4:
      total = "(s0 + s1) + (s2 + s3)"
    code.add(f"o[{where}] = {self.finisher.finished(i, total, where)};", "}")

  def _unrolled(self, i: int, step: Layer, offsets: np.ndarray) -> None:
    """Every weight is a literal in the sum of its neuron; weights of 0 are left out."""
    numbers = self.plan.numbers[i]
    accumulator = numbers.accumulator
    assert numbers.weights is not None and numbers.bias is not None
    cast = {"float": "", "int32_t": "(int32_t)", "int64_t": "(int64_t)"}[accumulator]
    for row, n in enumerate(step.active):
      total = cast + number(numbers.bias[n], accumulator)
      for w, at in zip(numbers.weights[row], offsets[row], strict=True):
        if w == 0:
          continue
        sign = "-" if w < 0 else "+"
        total += f" {sign} {cast}{number(abs(w), accumulator)} * p[{at}]"
      self.code.add(f"o[{n}] = {self.finisher.finished(i, total, str(n))};")

  def _pool(self, i: int, step: Pool, source: Place, out: Place) -> None:
    ctypes = self.ctypes[step.source], self.ctypes[i + 1]
    given, accumulator = self.plan.formats[step.source], self.plan.numbers[i].accumulator
    (rows, columns), (far_y, far_x) = step.window.size, step.window.dilation
    channels, is_max = source.image[2], step.kind == "max"
    what = "maximum" if is_max else "sum"
    self.code.add("", f"/* The {what} of {rows} x {columns} positions. */", "{")
    opened = self._positions(step.window, source, out, ctypes)
    kind = ctypes[0] if is_max else accumulator
    start = "p[c]" if is_max else number(0, accumulator)
    minus = "" if is_max or given is None or not given.zero else f" - ({given.zero})"
    self.code.add(loop("c", channels), f"{kind} s = {start};")
    at = ["c"]
    for variable, size, step_size in (
      ("wy", rows, far_y * source.row),
      ("wx", columns, far_x * channels),
    ):
      if size > 1:
        self.code.add(loop(variable, size))
        at.append(f"{variable} * {step_size}")
    value = f"p[{' + '.join(at)}]"
    self.code.add(f"if ({value} > s) s = {value};" if is_max else f"s += {value}{minus};")
    self.code.add(*["}"] * (len(at) - 1))
    total = "s"
    if not is_max and given is None and step.factor != 1:
      total = f"s * {number(step.factor, 'float')}"
    end = self.finisher.limited if is_max else self.finisher.finished
    self.code.add(f"o[c] = {end(i, total)};", *["}"] * (opened + 2))

  def _add(self, i: int, step: Add, a: Place, b: Place, out: Place) -> None:
    height, width, channels = out.image
    numbers = self.plan.numbers[i]
    index = lambda place: f"{place.array}[{place.first} + r * {place.row} + k]"
    self.code.add("", "/* A sum of two tensors. */", loop("r", height), loop("k", width * channels))
    if self.plan.name == "float32":
      total = f"{index(a)} + {index(b)}"
    else:
      assert numbers.multiplier is not None
      parts = []
      for tensor, place, m in zip(
        (step.source, step.other), (a, b), numbers.multiplier, strict=True
      ):
        given = self.plan.formats[tensor]
        assert given is not None
        parts.append(f"((int64_t){index(place)} - ({given.zero})) * {number(m, 'int32_t')}")
      total = f"({' + '.join(parts)})"
    self.code.add(f"{index(out)} = {self.finisher.finished(i, total)};", "}", "}")
