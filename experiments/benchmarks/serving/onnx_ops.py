"""`Ops` that write an ONNX graph."""

# ruff: noqa: D102 (what the methods do, `Ops` says)

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
  "relu": ("Relu", {}),
  "gelu": ("Gelu", {"approximate": "tanh"}),
  "gelu_exact": ("Gelu", {}),
  "hard_swish": ("HardSwish", {}),
  "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
}


class OnnxOps:
  """Adds nodes to a graph; a tensor is its name."""

  def __init__(self) -> None:
    import onnx

    self.onnx = onnx
    self.nodes: list[Any] = []
    self.constants: list[Any] = []

  def node(self, kind: str, *inputs: Any, **attributes: Any) -> str:
    """Adds a node; returns the name of its output."""
    name = f"{kind}_{len(self.nodes)}"
    names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
    self.nodes.append(self.onnx.helper.make_node(kind, names, [name], name=name, **attributes))
    return name

  def constant(self, value: Any) -> str:
    """Adds a constant; returns its name."""
    value = np.asarray(value)
    value = value.astype(np.float32 if value.dtype.kind == "f" else np.int64, order="C")
    name = f"constant_{len(self.constants)}"
    self.constants.append(self.onnx.numpy_helper.from_array(value, name))
    return name

  def linear(self, x: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
    y = self.node("MatMul", x, kernel)
    return y if bias is None else self.node("Add", y, bias)

  def conv(
    self, x: str, kernel: np.ndarray, bias: np.ndarray, *, stride: int, padding: int, groups: int
  ) -> str:
    geometry = {"strides": [stride] * 2, "pads": [padding] * 4, "group": groups}
    return self.node("Conv", x, kernel, bias, kernel_shape=kernel.shape[2:], **geometry)

  def apply(self, name: str, x: str) -> str:
    kind, attributes = _ACTIVATIONS[name]
    return self.node(kind, x, **attributes)

  def layer_norm(self, x: str, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> str:
    return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=epsilon)

  def add(self, x: Any, y: Any) -> str:
    return self.node("Add", x, y)

  def multiply(self, x: Any, y: Any) -> str:
    return self.node("Mul", x, y)

  def max_pool(self, x: str) -> str:
    return self.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

  def mean_pool(self, x: str) -> str:
    return self.node("GlobalAveragePool", x)

  def reshape(self, x: str, *shape: int) -> str:
    return self.node("Reshape", x, np.asarray([0, *shape]))

  def transpose(self, x: str, *axes: int) -> str:
    return self.node("Transpose", x, perm=axes)

  def prepend(self, x: str) -> str:
    return self.node("Pad", x, np.asarray([0, 1, 0, 0, 0, 0]))

  def split(self, x: str, parts: int) -> list[str]:
    first = f"Split_{len(self.nodes)}"
    names = [f"{first}_{i}" for i in range(parts)]
    node = self.onnx.helper.make_node("Split", [x], names, name=first, axis=-1, num_outputs=parts)
    self.nodes.append(node)
    return names

  def at(self, x: str, index: int, axis: int) -> str:
    return self.node("Gather", x, np.asarray(index), axis=axis)

  def concatenate(self, parts: list[str], axis: int) -> str:
    return self.node("Concat", *parts, axis=axis)

  def stack(self, parts: list[str]) -> str:
    one = [self.node("Unsqueeze", part, np.asarray([0])) for part in parts]
    return self.concatenate(one, 0)

  def matmul(self, x: str, y: str) -> str:
    return self.node("MatMul", x, y)

  def softmax(self, x: str) -> str:
    return self.node("Softmax", x, axis=-1)

  def take(self, table: np.ndarray, indices: str) -> str:
    return self.node("Gather", table, indices, axis=0)


def write_onnx(
  twin: Callable[..., Any], shapes: Sequence[Sequence[int | str]], dtypes: Sequence[Any], path: Path
) -> None:
  """Writes a dense twin as an ONNX file.

  Args:
    twin: from `Ops` and tensors to tensors.
    shapes: of the inputs `input0` and on; a name stands for any size.
    dtypes: of the inputs.
    path: of the file.
  """
  ops = OnnxOps()
  helper = ops.onnx.helper
  names = [f"input{i}" for i in range(len(shapes))]
  results = twin(ops, *names)
  results = results if isinstance(results, tuple) else (results,)
  outputs = [f"output{i}" for i in range(len(results))]
  for result, output in zip(results, outputs, strict=True):
    ops.nodes.append(helper.make_node("Identity", [result], [output]))
  kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(dtype)) for dtype in dtypes]
  graph = helper.make_graph(
    ops.nodes,
    "dense",
    [helper.make_tensor_value_info(*each) for each in zip(names, kinds, shapes, strict=True)],
    [helper.make_tensor_value_info(name, ops.onnx.TensorProto.FLOAT, None) for name in outputs],
    ops.constants,
  )
  opset = helper.make_opsetid("", 20)  # the first with Gelu
  model = helper.make_model(graph, opset_imports=[opset], ir_version=9)
  ops.onnx.save(ops.onnx.shape_inference.infer_shapes(model), path)
