"""A network as an ONNX file of standard operators."""

import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from srigl_jax.condensed.whole_file import write_whole
from srigl_jax.export.c_file import network_of
from srigl_jax.export.network import Activation, Add, Layer, Network, Pool, Window, as_image

_OPSET = 20  # the first with Gelu
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
  "relu": ("Relu", {}),
  "tanh": ("Tanh", {}),
  "sigmoid": ("Sigmoid", {}),
  "gelu": ("Gelu", {"approximate": "tanh"}),
  "gelu_exact": ("Gelu", {}),
  "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
  "hard_swish": ("HardSwish", {}),
  "softplus": ("Softplus", {}),
}


def export_onnx(
  model: Any,
  path: Path | str,
  inputs: Any = None,
  *,
  form: str = "gather",
  output: str = "logits",
  overwrite: bool = False,
) -> Path:
  """Writes a trained network as an ONNX file, for ONNX Runtime and other runtimes.

  The file takes `input`, `[batch, ...]` float32 for any batch, and gives `output`. What can be
  exported is what `export_c` exports. Convolutions are always dense.

  Args:
    model: a Flax NNX model, from `condense_model`, `merge_condensed`, or dense; or a list of
      condensed linear layers and names of activations.
    path: of the file, conventionally `NAME.onnx`.
    inputs: for a model, an example batch: an array or `jax.ShapeDtypeStruct`.
    form: "gather": a sparse linear layer is a Gather of the inputs of every neuron, a Mul and a
      ReduceSum, which stores no missing weight; "dense": a MatMul with zeros for them, which most
      runtimes execute faster.
    output: "logits", what the model returns, or "softmax" of that.
    overwrite: whether an existing file may be replaced.

  Returns:
    The path.

  Raises:
    ModuleNotFoundError: if onnx is not installed.
    FileExistsError: if the file exists, unless `overwrite`.
    ValueError: if a part of the model cannot be exported, or an argument is unknown.
  """
  if form not in ("gather", "dense"):
    raise ValueError(f"`form` is {form!r}; it must be 'gather' or 'dense'.")
  if output not in ("logits", "softmax"):
    raise ValueError(f"`output` is {output!r}; it must be 'logits' or 'softmax'.")
  path = Path(path)
  if path.exists() and not overwrite:
    raise FileExistsError(f"{path} exists: give another path, or overwrite=True.")
  onnx = _import_onnx()
  graph = _Graph(onnx, network_of(model, inputs), form)
  proto = graph.build(softmax=output == "softmax")
  onnx.checker.check_model(proto, full_check=True)
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, proto.SerializeToString())
  return path


def _import_onnx() -> Any:
  try:
    importlib.import_module("onnx.checker")
    return importlib.import_module("onnx")
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "export_onnx writes with the package onnx, which is not installed: pip install "
      "'srigl-jax[onnx]' (or 'onnx>=1.16').",
      name="onnx",
    ) from error


class _Graph:
  """Adds nodes one after the other; every tensor of the network is `[batch, *shape]`."""

  def __init__(self, onnx: Any, network: Network, form: str):
    self.onnx, self.network, self.form = onnx, network, form
    self.nodes: list[Any] = []
    self.constants: dict[str, Any] = {}

  def build(self, *, softmax: bool) -> Any:
    """The model's protocol buffer."""
    helper, float32 = self.onnx.helper, self.onnx.TensorProto.FLOAT
    names = ["input"]
    for i in range(len(self.network.steps)):
      names.append(self._step(i, names))
    last = self.node("Softmax", [names[-1]], axis=-1) if softmax else names[-1]
    self.nodes.append(helper.make_node("Identity", [last], ["output"]))
    value = lambda name, shape: helper.make_tensor_value_info(name, float32, ["batch", *shape])
    graph = helper.make_graph(
      self.nodes,
      "srigl_jax",
      [value("input", self.network.input_shape)],
      [value("output", self.network.output_shape)],
      list(self.constants.values()),
    )
    opset = helper.make_opsetid("", _OPSET)
    return helper.make_model(graph, opset_imports=[opset], ir_version=9, producer_name="srigl_jax")

  def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
    """Adds a node; returns the name of its output."""
    name = f"{kind}_{len(self.nodes)}"
    self.nodes.append(self.onnx.helper.make_node(kind, inputs, [name], name=name, **attributes))
    return name

  def constant(self, name: str, value: Any) -> str:
    """Adds a constant; float ones are float32."""
    value = np.asarray(value)
    value = np.ascontiguousarray(value, np.float32 if value.dtype.kind == "f" else np.int64)
    self.constants[name] = self.onnx.numpy_helper.from_array(value, name)
    return name

  def reshaped(self, x: str, shape: tuple[int, ...]) -> str:
    """`[batch, *shape]`."""
    name = "shape_" + "_".join(map(str, shape))
    return self.node("Reshape", [x, self.constant(name, [0, *shape])])

  def _step(self, i: int, names: list[str]) -> str:
    step = self.network.steps[i]
    x = names[step.source]
    if isinstance(step, Layer):
      is_point = step.window == Window()
      y = self._linear(i, step, x) if is_point else self._convolution(i, step, x)
    elif isinstance(step, Pool):
      y = self._pool(i, step, x)
    elif isinstance(step, Add):
      y = self.node("Add", [x, names[step.other]])
    else:
      y = self.reshaped(x, step.shape)
    return self._activated(i, step.activation, y)

  def _linear(self, i: int, step: Layer, x: str) -> str:
    bias = self.constant(f"bias_{i}", step.bias)
    if self.form == "dense" or 2 * step.values.size >= step.num_inputs * step.num_neurons:
      y = self.node("MatMul", [x, self.constant(f"weights_{i}", step.dense)])
      return self.node("Add", [y, bias])
    fan_in = step.values.shape[1]
    values = np.zeros((step.num_neurons, fan_in), np.float32)  # of all neurons, ablated ones too
    indices = np.zeros(values.shape, np.int64)
    values[step.active], indices[step.active] = step.values, step.indices
    where = self.constant(f"indices_{i}", indices)
    gathered = self.node("Gather", [x, where], axis=len(step.shape))  # [batch, ..., N, K]
    products = self.node("Mul", [gathered, self.constant(f"values_{i}", values)])
    axes = self.constant("last_axis", [-1])
    return self.node("Add", [self.node("ReduceSum", [products, axes], keepdims=0), bias])

  def _convolution(self, i: int, step: Layer, x: str) -> str:
    height, width = step.window.size
    kernel = step.dense.reshape(height, width, -1, step.num_neurons).transpose(3, 2, 0, 1)
    weights, bias = self.constant(f"weights_{i}", kernel), self.constant(f"bias_{i}", step.bias)
    y = self.node(
      "Conv",
      [self._channels_first(x, step.source), weights, bias],
      dilations=step.window.dilation,
      **_geometry(step.window),
    )
    return self._channels_last(y, step.shape)

  def _pool(self, i: int, step: Pool, x: str) -> str:
    x = self._channels_first(x, step.source)
    attributes = {**_geometry(step.window), "dilations": step.window.dilation}
    if step.kind == "max":
      return self._channels_last(self.node("MaxPool", [x], **attributes), step.shape)
    y = self.node("AveragePool", [x], count_include_pad=1, **attributes)
    factor = step.factor * math.prod(step.window.size)
    if not math.isclose(factor, 1, rel_tol=1e-6):
      y = self.node("Mul", [y, self.constant(f"factor_{i}", float(factor))])
    return self._channels_last(y, step.shape)

  def _channels_first(self, x: str, tensor: int) -> str:
    image = as_image(self.network.shapes[tensor])
    return self.node("Transpose", [self.reshaped(x, image)], perm=[0, 3, 1, 2])

  def _channels_last(self, y: str, shape: tuple[int, ...]) -> str:
    return self.reshaped(self.node("Transpose", [y], perm=[0, 2, 3, 1]), shape)

  def _activated(self, i: int, activation: Activation | None, y: str) -> str:
    if activation is None:
      return y
    if activation.name in _ACTIVATIONS:
      kind, attributes = _ACTIVATIONS[activation.name]
      return self.node(kind, [y], **attributes)
    if activation.name == "silu":
      return self.node("Mul", [y, self.node("Sigmoid", [y])])
    if activation.name == "relu6":
      return self.node("Clip", [y, self.constant("zero", 0.0), self.constant("six", 6.0)])
    kind = {"leaky_relu": "LeakyRelu", "elu": "Elu"}[activation.name]
    return self.node(kind, [y], alpha=activation.alpha)


def _geometry(window: Window) -> dict[str, Any]:
  (top, bottom), (left, right) = window.pads
  return {
    "kernel_shape": window.size,
    "strides": window.strides,
    "pads": [top, left, bottom, right],
  }
