"""What stands behind a sum in C: rescaling, limits and activation; and the functions for these."""

import numpy as np

from srigl_jax.export.activations import ACTIVATIONS
from srigl_jax.export.arithmetic import Numbers, Plan, Table
from srigl_jax.export.c_text import array, identifier, number
from srigl_jax.export.network import Activation, Add, Step


class Finisher:
  """Writes the ends of expressions, and remembers which functions and arrays they need."""

  def __init__(self, plan: Plan, prefix: str, ctypes: list[str]):
    self.plan, self.prefix, self.ctypes = plan, prefix, ctypes
    self.functions: dict[str, str] = {}
    self.uses_math = False
    self._tables: dict[bytes, str] = {}

  def finished(self, i: int, total: str, neuron: str = "0") -> str:
    """The value of a step's output.

    Args:
      i: number of the step.
      total: expression of the sum, in the accumulator's type.
      neuron: expression of the neuron's number, for its multiplier; or its number itself.
    """
    step, numbers = self.plan.network.steps[i], self.plan.numbers[i]
    if self.plan.name == "float32":
      return self._activated(step.activation, total)
    scaled = self._rescaled(step, numbers, total, neuron, i)
    return self.limited(i, scaled)

  def limited(self, i: int, value: str) -> str:
    """The value of a step's output from what is rescaled already."""
    step, numbers = self.plan.network.steps[i], self.plan.numbers[i]
    if self.plan.name == "float32":
      return self._activated(step.activation, value)
    low, high = number(numbers.low, "int32_t"), number(numbers.high, "int32_t")
    value = f"{self._limit()}({value}, {low}, {high})"
    if numbers.table is not None:
      value = self._looked_up(numbers.table, value, step.activation, self.ctypes[i + 1])
    return f"({self.ctypes[i + 1]}){value}"

  def _rescaled(self, step: Step, numbers: Numbers, total: str, neuron: str, i: int) -> str:
    assert numbers.shift is not None and numbers.middle is not None
    zero = numbers.middle.zero
    plus = f" + {zero}" if zero > 0 else f" - {-zero}" if zero else ""
    if isinstance(step, Add) or numbers.multiplier is None:
      shift = int(numbers.shift[0])
      if shift == 0:
        return total + plus
      one = "1" if numbers.accumulator == "int32_t" and shift <= 15 else f"({numbers.accumulator})1"
      return f"(({total} + ({one} << {shift - 1})) >> {shift}){plus}"
    multiplier, shifts = self._scales(numbers, neuron, i)
    return f"{self._rescale()}({total}, {multiplier}, {shifts}){plus}"

  def _scales(self, numbers: Numbers, neuron: str, i: int) -> tuple[str, str]:
    assert numbers.multiplier is not None and numbers.shift is not None
    if len(numbers.multiplier) == 1 or neuron.isdecimal():
      at = 0 if len(numbers.multiplier) == 1 else int(neuron)
      return number(numbers.multiplier[at], "int32_t"), str(numbers.shift[at])
    return f"m{i}[{neuron}]", f"r{i}[{neuron}]"

  def scale_arrays(self, i: int) -> list[str]:
    """The arrays that `finished` reads if it is given an expression as the neuron's number."""
    numbers = self.plan.numbers[i]
    if numbers.multiplier is None or len(numbers.multiplier) == 1 or numbers.shift is None:
      return []
    return [
      array("int32_t", f"m{i}", numbers.multiplier),
      array("uint8_t", f"r{i}", numbers.shift),
    ]

  def _activated(self, activation: Activation | None, value: str) -> str:
    if activation is None:
      return value
    name, function = self.prefix + activation.name, ACTIVATIONS[activation.name]
    if activation.alpha:
      name += "_" + identifier(f"{activation.alpha:g}")
    body = function.c.replace("{alpha}", number(activation.alpha, "float"))
    self.uses_math |= any(f"{f}(" in body for f in ("expf", "expm1f", "tanhf", "erff", "log1pf"))
    self.functions[name] = f"static float {name}(float x) {{ return {body}; }}"
    return f"{name}({value})"

  def _limit(self) -> str:
    wide = "int64_t" if self._is_wide() else "int32_t"
    name = f"{self.prefix}limited"
    self.functions[name] = (
      f"static int32_t {name}({wide} x, int32_t low, int32_t high) {{\n"
      "  return x < low ? low : x > high ? high : (int32_t)x;\n}"
    )
    return name

  def _is_wide(self) -> bool:
    return any(n.multiplier is not None or n.accumulator == "int64_t" for n in self.plan.numbers)

  def _rescale(self) -> str:
    name = f"{self.prefix}rescaled"
    self.functions[name] = (
      "/* sum * multiplier / 2^shift, rounded; >> of a negative number keeps its sign. */\n"
      f"static int64_t {name}(int64_t sum, int32_t multiplier, int shift) {{\n"
      "  return (sum * multiplier + ((int64_t)1 << (shift - 1))) >> shift;\n}"
    )
    return name

  def _looked_up(self, table: Table, value: str, activation: Activation | None, ctype: str) -> str:
    assert activation is not None
    key = table.values.tobytes() + bytes([table.bits or 255])
    name = self._tables.setdefault(key, f"{self.prefix}{activation.name}_{len(self._tables)}")
    values = array(ctype, f"{name}_table", table.values)
    if table.bits is None:
      body = f"return {name}_table[x - {number(table.low, 'int32_t')}];".replace("- -", "+ ")
      self.functions[name] = f"{values}\nstatic int32_t {name}(int32_t x) {{ {body} }}"
      return f"{name}({value})"
    limit = self._limit()
    self.functions.pop(name, None)  # behind `limited`, which it calls
    last, bits = len(table.values) - 2, table.bits
    half = f" + {1 << (bits - 1)}" if bits else ""
    low = number(table.low, "int64_t")
    clamp = f"{limit}(at >> {bits}, 0, {last})"
    if not self._is_wide():
      clamp = f"(int32_t)(at < 0 ? 0 : at >> {bits} > {last} ? {last} : at >> {bits})"
    end = "(int32_t)(y < LOW ? LOW : y > HIGH ? HIGH : y)"
    end = end.replace("LOW", number(table.least, "int32_t"))
    end = end.replace("HIGH", number(table.most, "int32_t"))
    self.functions[name] = (
      f"{values}\n"
      f"/* Between neighbours of the table; beyond it, its outermost segments are continued. */\n"
      f"static int32_t {name}(int32_t x) {{\n"
      f"  const int64_t at = (int64_t)x - ({low});\n"
      f"  const int32_t i = {clamp};\n"
      f"  const int64_t first = {name}_table[i];\n"
      f"  const int64_t rise = {name}_table[i + 1] - first;\n"
      f"  const int64_t y = first + ((rise * (at - (int64_t)i * {1 << bits}){half}) >> {bits});\n"
      f"  return {end};\n}}"
    )
    return f"{name}({value})"


def product_type(ctype: str, accumulator: str) -> str:
  """What a weight is cast to before it is multiplied by a number, empty for float.

  Args:
    ctype: of weights and numbers.
    accumulator: of the sum.
  """
  if accumulator == "float":
    return ""
  return "(int64_t)" if np.dtype(ctype.removesuffix("_t")).itemsize > 2 else "(int32_t)"
