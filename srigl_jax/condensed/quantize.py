"""Products of fewer bits for a condensed model: layer by layer, as far as an error allows."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from srigl_jax.analysis.summary import format_table
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.layers import kernel_path, natural_key
from srigl_kernels import Prepared, prepare
from srigl_kernels.precision import DTYPES, precision_of

Model = Any  # an nnx.Module

_NEXT = {"int8": "bfloat16", "int8_weights": "bfloat16", "bfloat16": "float32"}
"""What a layer falls back to whose error is too large."""


class QuantizedLayer(NamedTuple):
  """One layer of a `QuantizationReport`.

  Attributes:
    path: of its kernel.
    dtype: what its products are of now, a name in `srigl_kernels.DTYPES`.
    error: root mean square of what that changes in its outputs, over that of its outputs, both
      without bias; NaN if the layer was left alone.
  """

  path: str
  dtype: str
  error: float


class QuantizationReport(NamedTuple):
  """What a model's layers compute in; `str()` is a table.

  Attributes:
    layers: every condensed layer, in natural order of their paths.
    residuals: what lies between calibrated layers under `jax.jit`, by the name of "residuals": in
      `"int8"`, or in `"float32"` as its error is too large. The error is the root mean square of
      what 8 bits change there in the model's outputs, over that of the outputs. None without
      calibrated layers, and where the call cannot be compiled, so that each layer runs alone.
  """

  layers: tuple[QuantizedLayer, ...]
  residuals: QuantizedLayer | None = None

  def __str__(self) -> str:
    lines = [*self.layers, *([self.residuals] if self.residuals else [])]
    rows = [[x.path, x.dtype, _percent(x.error)] for x in lines]
    largest = max((x.error for x in self.layers if x.error == x.error), default=math.nan)
    return format_table(["layer", "dtype", "error"], rows, ["largest", "", _percent(largest)])


def _percent(error: float) -> str:
  return "-" if math.isnan(error) else f"{error:.2%}"


def quantize_model(
  model: Model,
  inputs: Any,
  dtype: str = "int8",
  *,
  max_error: float = 0.05,
  calibrate: bool = False,
  call: Callable[..., Any] | None = None,
) -> tuple[Model, QuantizationReport]:
  """A condensed model whose layers multiply fewer bits, where that changes their outputs little.

  Every condensed layer is run on what it reads when the model computes `inputs`, in float32 and in
  fewer bits. One whose error is above `max_error` becomes a bfloat16 layer, or if that is not
  enough, too, stays as it is. The error is that of a layer alone: how much of it reaches the
  model's outputs only these can tell, such as by accuracy. Calibrated layers pass 8 bits on to each
  other under `jax.jit`, residuals included, which no layer sees alone: where that changes the
  model's outputs by more than `max_error`, layers find the range of each row anew, and pass on
  float32.

  Args:
    model: of `condense_model`, not to be fine-tuned; it is left as it is.
    inputs: arrays as the model gets them, or a tuple of several arguments; some hundred examples.
    dtype: `"int8"`, `"int8_weights"` or `"bfloat16"`, as for `srigl_jax.prepare`.
    max_error: of a layer, and of residuals in 8 bits; relative: see `QuantizedLayer`.
    calibrate: with `"int8"`, whether the range of what a layer reads here holds for all inputs, and
      those beyond it are clipped. Else each row of its inputs has its own range (in a convolution
      each image), which is more exact and takes a little longer. The call is compiled once, with
      what lies between the layers in 8 bits, to see what that changes.
    call: `(model, *inputs) -> outputs`, how the model is called, if not by `model(*inputs)`.

  Returns:
    `(model, report)`. Left alone are layers that have fewer bits already, that the model did not
    call, or called inside of its own `jit`, `scan` or `vmap`, and stacks of layers.

  Raises:
    ValueError: if the name or `max_error` is none, or the model is being fine-tuned.
  """
  if dtype not in _NEXT:
    raise ValueError(f"`dtype` must be one of {list(DTYPES[1:])}, not {dtype!r}.")
  if not max_error > 0:
    raise ValueError(f"`max_error` must be above 0, such as 0.05, not {max_error!r}.")
  if calibrate and dtype != "int8":
    raise ValueError(f"`calibrate` is for dtype='int8', which rounds the inputs, not {dtype!r}.")
  flax = import_with_flax("nnx_observed")
  arguments = inputs if isinstance(inputs, tuple) else (inputs,)
  layers = {path: module.prepared for path, module in flax.find_condensed(model).items()}
  if any(layer.gradients for layer in layers.values()):
    raise ValueError(
      "The model is being fine-tuned, in float32: quantize what "
      "merge_condensed(dense_model, *split_condensed(model)) returns."
    )
  is_open = lambda layer: layer.values.ndim == 2 and not layer.is_reduced  # no stack
  candidates = [path for path, layer in layers.items() if is_open(layer.condensed)]
  run = lambda see: (call or _call)(flax.observed(model, candidates, see), *arguments)

  ranges: dict[str, tuple[float, float]] = {}

  def find_range(path: str, x: Any) -> None:
    if isinstance(x, jax.core.Tracer) or not x.size:
      return
    low, high = ranges.get(path, (math.inf, -math.inf))
    ranges[path] = min(low, float(x.min())), max(high, float(x.max()))

  run(find_range)
  found: dict[str, tuple[Prepared, str, float]] = {}
  open_layers, step = set(ranges), dtype
  while open_layers and step != "float32":
    limits = ranges if calibrate and step == "int8" else {}
    changed = {path: _converted(layers[path], step, limits.get(path)) for path in open_layers}
    errors = _errors(run, flax, model, layers, changed)
    for path in sorted(open_layers):
      if errors[path] <= max_error:
        found[path] = changed[path], step, errors[path]
    open_layers, step = open_layers - {*found}, _NEXT[step]
  quantized = flax.with_prepared(model, {path: x[0] for path, x in found.items()})
  calibrated = [path for path, x in found.items() if calibrate and x[1] == "int8"]
  error = _error_between(call or _call, quantized, arguments) if calibrated else None
  residuals = None if error is None else QuantizedLayer("residuals", "int8", error)
  if error is not None and not error <= max_error:
    residuals = QuantizedLayer("residuals", "float32", error)
    changed = {path: _converted(layers[path], "int8", None) for path in calibrated}
    for path, new_error in _errors(run, flax, model, layers, changed).items():
      found[path] = changed[path], "int8", new_error
    quantized = flax.with_prepared(model, {path: x[0] for path, x in found.items()})
  report = [
    QuantizedLayer(
      kernel_path(path),
      found[path][1] if path in found else precision_of(layers[path].condensed),
      found[path][2] if path in found else 0.0 if path in ranges else math.nan,
    )
    for path in sorted(layers, key=natural_key)
  ]
  return quantized, QuantizationReport(tuple(report), residuals)


def _error_between(
  call: Callable[..., Any], model: Model, arguments: tuple[Any, ...]
) -> float | None:
  """How much of a model's outputs changes as its call is compiled; None where it cannot be."""
  leaves, tree = jax.tree.flatten(arguments)
  is_array = [isinstance(x, jax.Array | np.ndarray) for x in leaves]

  @jax.jit
  def compiled(arrays: list[Any]) -> Any:
    given = iter(arrays)
    full = [next(given) if is_one else x for x, is_one in zip(leaves, is_array, strict=True)]
    return call(model, *jax.tree.unflatten(tree, full))

  try:
    got = compiled([x for x, is_one in zip(leaves, is_array, strict=True) if is_one])
  except Exception:  # whatever a call does that cannot be traced: such a call passes nothing on
    return None
  change = size = 0.0
  for want, y in zip(jax.tree.leaves(call(model, *arguments)), jax.tree.leaves(got), strict=True):
    if jnp.issubdtype(jnp.result_type(want), jnp.inexact):
      change += float(jnp.sum(jnp.abs(jnp.asarray(y, jnp.float32) - want) ** 2))
      size += float(jnp.sum(jnp.abs(jnp.asarray(want, jnp.float32)) ** 2))
  return math.sqrt(change / size) if size > 0 else 0.0


def _call(model: Model, *inputs: Any) -> Any:
  return model(*inputs)


def _converted(layer: Prepared, dtype: str, input_range: Any) -> Prepared:
  """A layer prepared again as it was, in another precision."""
  spaced: dict[str, Any] = {}
  if layer.subpixel is not None:
    dilations = layer.subpixel.strides, layer.subpixel.dilation
    spaced = dict(zip(("input_dilation", "kernel_dilation"), dilations, strict=True))
  return prepare(
    layer.condensed,
    backend="auto" if layer.is_automatic else layer.preference or "auto",
    feature_group_count=layer.feature_group_count,
    dtype=dtype,
    input_range=input_range,
    **spaced,
  )


def _errors(
  run: Callable[[Callable[[str, Any], None]], Any],
  flax: Any,
  model: Model,
  layers: dict[str, Prepared],
  changed: dict[str, Prepared],
) -> dict[str, float]:
  """The relative error of each changed layer on what it reads in `run`, bias left out."""
  without = {path: (_without_bias(layers[path]), _without_bias(x)) for path, x in changed.items()}
  modules = flax.find_condensed(model)
  pairs = {p: [flax.with_layer(modules[p], x) for x in pair] for p, pair in without.items()}
  squares = {path: [0.0, 0.0] for path in changed}

  def compare(path: str, x: Any) -> None:
    if path not in pairs or isinstance(x, jax.core.Tracer):
      return
    exact, rounded = (module(x).astype(jnp.float32) for module in pairs[path])
    for i, difference in enumerate((exact, rounded - exact)):
      squares[path][i] += float(jnp.sum(difference**2))

  run(compare)
  return {p: math.sqrt(error / size) if size > 0 else 0.0 for p, (size, error) in squares.items()}


def _without_bias(layer: Prepared) -> Prepared:
  return dataclasses.replace(layer, condensed=dataclasses.replace(layer.condensed, bias=None))
