"""`Ops` that write a graph of PyTorch, for its compiler."""

# ruff: noqa: D102 (what the methods do, `Ops` says)

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np


class TorchOps:
  """Adds calls to a graph; a tensor is a node of it."""

  def __init__(self) -> None:
    self.torch = torch = importlib.import_module("torch")
    self.fn = torch.nn.functional
    self.graph, self.constants = torch.fx.Graph(), torch.nn.Module()

  def call(self, function: Any, *inputs: Any, **kwargs: Any) -> Any:
    """Adds a call; arrays become constants."""
    return self.graph.call_function(function, tuple(map(self._node, inputs)), kwargs)

  def _node(self, value: Any) -> Any:
    if not isinstance(value, np.ndarray):
      return value
    name = f"constant_{len(list(self.constants.buffers()))}"
    self.constants.register_buffer(name, self.torch.tensor(value))
    return self.graph.get_attr(name)

  def linear(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
    return self.call(self.fn.linear, x, np.ascontiguousarray(kernel.T), bias)

  def conv(
    self, x: Any, kernel: np.ndarray, bias: np.ndarray, *, stride: int, padding: int, groups: int
  ) -> Any:
    return self.call(self.fn.conv2d, x, kernel, bias, stride, padding, 1, groups)

  def apply(self, name: str, x: Any) -> Any:
    if name.startswith("gelu"):
      return self.call(self.fn.gelu, x, approximate="tanh" if name == "gelu" else "none")
    return self.call({"hard_swish": self.fn.hardswish, "hard_sigmoid": self.fn.hardsigmoid,
                      "relu": self.fn.relu}[name], x)  # fmt: skip

  def layer_norm(self, x: Any, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> Any:
    return self.call(self.fn.layer_norm, x, scale.shape, scale, bias, epsilon)

  def add(self, x: Any, y: Any) -> Any:
    return self.call(self.torch.add, x, y)

  def multiply(self, x: Any, y: Any) -> Any:
    return self.call(self.torch.mul, x, y)

  def max_pool(self, x: Any) -> Any:
    return self.call(self.fn.max_pool2d, x, 3, 2, 1)

  def mean_pool(self, x: Any) -> Any:
    return self.call(self.fn.adaptive_avg_pool2d, x, 1)

  def reshape(self, x: Any, *shape: int) -> Any:
    batch = self.call(self.torch.Tensor.size, x, 0)
    return self.call(self.torch.reshape, x, (batch, *shape))

  def transpose(self, x: Any, *axes: int) -> Any:
    return self.call(self.torch.permute, x, axes)

  def prepend(self, x: Any) -> Any:
    return self.call(self.fn.pad, x, (0, 0, 1, 0))

  def split(self, x: Any, parts: int) -> list[Any]:
    chunks = self.call(self.torch.chunk, x, parts, -1)
    return [self.call(_item, chunks, i) for i in range(parts)]

  def at(self, x: Any, index: int, axis: int) -> Any:
    return self.call(self.torch.select, x, axis, index)

  def concatenate(self, parts: list[Any], axis: int) -> Any:
    return self.call(self.torch.cat, parts, axis)

  def stack(self, parts: list[Any]) -> Any:
    return self.call(self.torch.stack, parts)

  def matmul(self, x: Any, y: Any) -> Any:
    return self.call(self.torch.matmul, x, y)

  def softmax(self, x: Any) -> Any:
    return self.call(self.torch.softmax, x, -1)

  def take(self, table: np.ndarray, indices: Any) -> Any:
    return self.call(self.fn.embedding, indices, table)


def _item(values: Any, i: int) -> Any:
  return values[i]


def torch_module(twin: Callable[..., Any], num_inputs: int) -> Any:
  """The dense twin as a module.

  Args:
    twin: from `Ops` and tensors to tensors.
    num_inputs: tensors that it takes.
  """
  ops = TorchOps()
  ops.graph.output(twin(ops, *(ops.graph.placeholder(f"input{i}") for i in range(num_inputs))))
  return ops.torch.fx.GraphModule(ops.constants, ops.graph).eval()
