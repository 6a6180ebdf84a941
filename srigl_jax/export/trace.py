"""From a Flax NNX model to a `Network`: the traced program, read operation by operation."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.export.activations import ACTIVATIONS, recognize
from srigl_jax.export.layer_steps import affine_layer, condensed_layer
from srigl_jax.export.network import (
  Activation,
  Add,
  Network,
  Pool,
  Reshape,
  Step,
  Window,
  as_image,
)
from srigl_jax.export.simplify import simplify
from srigl_jax.programs.elementwise import Curve, curve_of, number_of
from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op

_WHAT_CAN = (
  "What can be exported: linear layers, convolutions (1D, 2D, grouped, dilated), batch norms, max "
  "and mean pooling, sums of two tensors, reshapes, and the activations "
  + ", ".join(ACTIVATIONS)
  + "."
)


def trace_network(model: Any, inputs: Any) -> Network:
  """Reads what a model computes in inference.

  Args:
    model: a Flax NNX model, condensed by `condense_model`, by `merge_condensed`, or dense.
    inputs: an example batch, an array or `jax.ShapeDtypeStruct`, its first axis the batch.

  Returns:
    The network of one example, simplified: factors folded into weights, and neurons that are
    constant, or that nothing reads, removed. All weights are float32.

  Raises:
    ValueError: if the model has a part that cannot be exported, saying which.
  """
  flax = import_with_flax("nnx_layers")
  if not flax.is_model(model):
    raise ValueError(
      f"A Flax NNX model is needed, not {type(model).__name__}. Layers of other frameworks are "
      "exported as a list: [condense(kernel, mask, bias), 'relu', ...]."
    )
  if not hasattr(inputs, "shape") or len(inputs.shape) < 2:
    raise ValueError(
      "`inputs` must be one array or jax.ShapeDtypeStruct whose first axis is the batch, such as "
      f"jax.ShapeDtypeStruct((1, 64), jnp.float32); got {inputs!r}."
    )
  batch = 3
  example = jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), jnp.float32)
  traced = import_with_flax("nnx_trace").trace(flax.for_inference(model), (example,))
  reader = _Reader(flax.find_modules(model), batch, example.shape[1:])
  return simplify(reader.read(traced.jaxpr, traced.scalars))


class _Reader:
  """Turns operations into steps, one after the other."""

  def __init__(self, modules: dict[str, Any], batch: int, input_shape: tuple[int, ...]):
    self.modules, self.batch, self.input_shape = modules, batch, input_shape
    self.steps: list[Step] = []
    self.env: dict[int, Any] = {}  # tensor of the program -> number of ours, or a Curve

  def read(self, jaxpr: FlatJaxpr, scalars: dict[int, np.ndarray]) -> Network:
    self.env.update(scalars)
    self.env[jaxpr.inputs[-1]] = 0
    for op in jaxpr.ops:
      values = [self.env.get(x) if isinstance(x, int) else x for x in op.inputs]
      self._apply(op, values)
    if len(jaxpr.outputs) != 1 or not isinstance(jaxpr.outputs[0], int):
      raise ValueError(
        f"The model must return one array, but returns {len(jaxpr.outputs)}: export a model that "
        "returns the logits alone."
      )
    last = self._settled(self.env.get(jaxpr.outputs[0]), "the output")
    if last != len(self.steps):  # an earlier tensor, or the input
      self._add(Reshape(last, self.shapes[last]))
    return Network(self.input_shape, tuple(self.steps))

  @property
  def shapes(self) -> list[tuple[int, ...]]:
    return Network(self.input_shape, tuple(self.steps)).shapes

  def _add(self, step: Step) -> int:
    self.steps.append(step)
    return len(self.steps)

  def _apply(self, op: Op, values: list[Any]) -> None:
    name, out = op.primitive.name, op.outputs[0]
    tensors = [x for x in values if isinstance(x, int | Curve)]
    if not tensors:
      self.env[out] = number_of(op, values)  # of parameters alone: refused where a tensor meets it
      return
    if op.layer is not None:
      self.env[out] = self._layer(op, self._settled(values[0], op.layer))
    elif name in ("reshape", "squeeze", "expand_dims") or self._is_widening(op):
      self.env[out] = self._reshape(op, self._settled(values[0], name))
    elif (curve := self._curve(op, values)) is not None:
      self.env[out] = curve
    elif name in ("add", "add_any") and len(tensors) == 2:
      a, b = (self._settled(x, name) for x in tensors)
      shape = self.shapes[a]
      if shape != self.shapes[b]:
        raise ValueError(f"A sum of shapes {shape} and {self.shapes[b]} cannot be exported.")
      self.env[out] = self._add(Add(a, b, shape))
    elif name == "reduce_sum":
      self.env[out] = self._mean_pool(op, self._settled(values[0], name))
    elif name in ("reduce_window_max", "reduce_window_sum", "reduce_window"):
      self.env[out] = self._pool(op, self._settled(values[0], name))
    else:
      for x in values:
        if x is None:
          self._settled(x, name)  # says what a parameter is in the way
      raise ValueError(f"The model computes {name!r}, which cannot be exported.{_hint(name)}")

  def _is_widening(self, op: Op) -> bool:
    if op.primitive.name != "broadcast_in_dim" or op.in_avals[0].shape == ():
      return False
    return math.prod(op.out_avals[0].shape) == math.prod(op.in_avals[0].shape)

  def _curve(self, op: Op, values: list[Any]) -> Curve | None:
    """The operation sampled on the grid, if it is a function of one tensor and of numbers."""
    bases = {x if isinstance(x, int) else x.base for x in values if isinstance(x, int | Curve)}
    return curve_of(op, values, (self.batch, *self.shapes[bases.pop()])) if bases else None

  def _settled(self, value: Any, where: str) -> int:
    """The number of a tensor, element-wise functions on it made a step."""
    if isinstance(value, int):
      return value
    if not isinstance(value, Curve):
      raise ValueError(
        f"The model computes {where!r} of something else than its input and its layers' outputs, "
        f"such as a parameter of its own, which cannot be exported. {_WHAT_CAN}"
      )
    found = recognize(value.values)
    shape = self.shapes[value.base]
    if found is None:
      raise ValueError(
        f"An element-wise function of the model (it ends in {value.name!r}, before {where!r}) is "
        f"none that can be exported. {_WHAT_CAN}"
      )
    channels = as_image(shape)[2]
    if isinstance(found, Activation):
      one = affine_layer("", value.base, shape, np.ones(channels), np.zeros(channels))
      return self._add(dataclasses.replace(one, activation=found))
    if found == (1.0, 0.0):
      return value.base
    factor, shift = (np.full(channels, x) for x in found)
    return self._add(affine_layer("", value.base, shape, factor, shift))

  def _layer(self, op: Op, source: int) -> int:
    layers = import_with_flax("trace_layers", "export")
    path = op.layer or ""
    step = layers.read_layer(self.modules[path], path, source, self.shapes[source])
    if step is None:
      return source
    if (self.batch, *step.shape) != op.out_avals[0].shape:
      raise ValueError(
        f"Layer {path!r} maps {self.shapes[source]} to {op.out_avals[0].shape[1:]} in the model, "
        f"which cannot be exported; {step.shape} was expected."
      )
    return self._add(step)

  def _reshape(self, op: Op, source: int) -> int:
    shape = op.out_avals[0].shape
    if not shape or shape[0] != self.batch or len(shape) < 2:
      raise ValueError(
        f"A reshape to {shape} mixes examples of a batch of {self.batch}, which cannot be exported."
      )
    same = shape[1:] == self.shapes[source]
    return source if same else self._add(Reshape(source, shape[1:]))

  def _mean_pool(self, op: Op, source: int) -> int:
    """A sum over all positions."""
    rank = len(op.in_avals[0].shape)
    if sorted(op.params["axes"]) != list(range(1, rank - 1)):
      raise ValueError(
        f"A sum over the axes {op.params['axes']} cannot be exported, only one over all positions "
        f"of an image.{_hint('reduce_sum')}"
      )
    height, width, channels = as_image(self.shapes[source])
    return self._add(Pool(source, (channels,), Window((height, width)), "sum"))

  def _pool(self, op: Op, source: int) -> int:
    params, name = op.params, op.primitive.name
    kind = "max" if name.endswith("max") else "sum"
    rank = len(op.in_avals[0].shape)
    ones = all(n == 1 for n in params.get("base_dilation", ()))
    size, strides = params["window_dimensions"], params["window_strides"]
    dilation, pads = params["window_dilation"], params["padding"]
    outer = [(size[a], strides[a], *pads[a]) for a in (0, rank - 1)]
    if name == "reduce_window" or not ones or rank not in (3, 4) or {*outer} != {(1, 1, 0, 0)}:
      raise ValueError("Only max and mean pooling over one or two axes can be exported.")
    two: Any = lambda values, one: ((one,) if rank == 3 else ()) + tuple(values[1:-1])
    window = Window(two(size, 1), two(strides, 1), two(dilation, 1), two(pads, (0, 0)))
    return self._add(Pool(source, op.out_avals[0].shape[1:], window, kind))


def _hint(primitive: str) -> str:
  if primitive in ("reduce_max", "reduce_sum", "argmax"):
    return (
      " Softmax and argmax are left out of the model: export_c(..., output='softmax') adds one, "
      f"and the largest logit is the class. {_WHAT_CAN}"
    )
  return f" {_WHAT_CAN}"


def read_layers(layers: Sequence[Any]) -> Network:
  """The network of condensed layers one after the other, such as `[layer, "relu", layer]`.

  Args:
    layers: each a `Condensed` of a kernel `(in, out)`, or the name of an activation.

  Raises:
    ValueError: if there is no layer, one does not fit the one before, or a name is unknown.
  """
  steps: list[Step] = []
  for i, item in enumerate(layers):
    if isinstance(item, str):
      if item not in ACTIVATIONS or not steps:
        raise ValueError(
          f"Item {i} of the list is {item!r}; it must be a Condensed layer or, behind one, an "
          f"activation of {', '.join(ACTIVATIONS)}."
        )
      shape = steps[-1].shape
      one = affine_layer("", len(steps), shape, np.ones(shape), np.zeros(shape))
      steps.append(dataclasses.replace(one, activation=Activation(item)))
      continue
    steps.append(condensed_layer(item, f"layer{i}", len(steps), steps[-1].shape if steps else None))
  if not steps:
    raise ValueError("The list has no layer: give it Condensed layers and names of activations.")
  return simplify(Network((layers[0].in_features,), tuple(steps)))
