"""The dense networks once more, for other runtimes: written once, over the operations of `Ops`.

They are what somebody would write who serves the network: images with channels first, batch norms
folded into convolutions, a layer norm and a GELU as one operation each.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from experiments.models.mobilenet_v3 import LARGE

Weights = Mapping[str, np.ndarray]
"""Arrays by path, as the JAX network has them."""


class Ops(Protocol):
  """Operations of a runtime on its tensors; constants are NumPy arrays."""

  def linear(self, x: Any, kernel: np.ndarray, bias: np.ndarray | None) -> Any:
    """`[..., I]` times `[I, N]`."""

  def conv(
    self, x: Any, kernel: np.ndarray, bias: np.ndarray, *, stride: int, padding: int, groups: int
  ) -> Any:
    """`[B, C, H, W]` with a kernel `[N, C / groups, h, w]`."""

  def apply(self, name: str, x: Any) -> Any:
    """An activation: relu, gelu, gelu_exact, hard_swish, hard_sigmoid."""

  def layer_norm(self, x: Any, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> Any:
    """Over the last axis."""

  def add(self, x: Any, y: Any) -> Any:
    """The sum; either may be an array."""

  def multiply(self, x: Any, y: Any) -> Any:
    """The product; either may be an array."""

  def max_pool(self, x: Any) -> Any:
    """Windows of 3×3, two apart, one beyond the border."""

  def mean_pool(self, x: Any) -> Any:
    """`[B, C, H, W]` to `[B, C, 1, 1]`."""

  def reshape(self, x: Any, *shape: int) -> Any:
    """To `[B, *shape]`."""

  def transpose(self, x: Any, *axes: int) -> Any:
    """The axes in this order."""

  def prepend(self, x: Any) -> Any:
    """`[B, T, C]` to `[B, 1 + T, C]`, the first of which is 0."""

  def split(self, x: Any, parts: int) -> list[Any]:
    """Equal parts along the last axis."""

  def at(self, x: Any, index: int, axis: int) -> Any:
    """What is at a place of an axis, which is removed."""

  def concatenate(self, parts: list[Any], axis: int) -> Any:
    """One after the other along an axis."""

  def stack(self, parts: list[Any]) -> Any:
    """Along a new first axis."""

  def matmul(self, x: Any, y: Any) -> Any:
    """Of the last two axes."""

  def softmax(self, x: Any) -> Any:
    """Over the last axis."""

  def take(self, table: np.ndarray, indices: Any) -> Any:
    """Rows of a table."""


def feed_forward(ops: Ops, w: Weights, x: Any) -> Any:
  """Of `models.FeedForward`."""
  return _linear(ops, w, "down", ops.apply("gelu_exact", _linear(ops, w, "up", x)))


def wide_mlp(ops: Ops, w: Weights, x: Any) -> Any:
  """Of `models.WideMLP`."""
  for i in range(2):
    x = ops.apply("relu", _linear(ops, w, f"layers/{i}", x))
  return _linear(ops, w, "layers/2", x)


def resnet50(ops: Ops, w: Weights, x: Any) -> Any:
  """Of the ResNet-50."""
  x = ops.apply("relu", _conv(ops, w, "conv1", x, "bn1", stride=2))
  x = ops.max_pool(x)
  for stage, num_blocks in enumerate((3, 4, 6, 3), 1):
    for i in range(num_blocks):
      at, stride = f"layer{stage}/{i}/", 2 if stage > 1 and i == 0 else 1
      y = ops.apply("relu", _conv(ops, w, f"{at}conv1", x, f"{at}bn1"))
      y = ops.apply("relu", _conv(ops, w, f"{at}conv2", y, f"{at}bn2", stride=stride))
      y = _conv(ops, w, f"{at}conv3", y, f"{at}bn3")
      x = _joined(ops, w, at, x, y, stride)
  return _linear(ops, w, "head", ops.reshape(ops.mean_pool(x), w["head/kernel"].shape[0]))


def resnet18(ops: Ops, w: Weights, x: Any) -> Any:
  """Of the CIFAR ResNet-18."""
  x = ops.apply("relu", _conv(ops, w, "conv1", x, "bn1"))
  for stage in range(1, 5):
    for i in range(2):
      at, stride = f"layer{stage}/{i}/", 2 if stage > 1 and i == 0 else 1
      y = ops.apply("relu", _conv(ops, w, f"{at}conv1", x, f"{at}bn1", stride=stride))
      x = _joined(ops, w, at, x, _conv(ops, w, f"{at}conv2", y, f"{at}bn2"), stride)
  return _linear(ops, w, "head", ops.reshape(ops.mean_pool(x), w["head/kernel"].shape[0]))


def mobilenet_v3(ops: Ops, w: Weights, x: Any) -> Any:
  """Of the MobileNet-V3 large."""
  conv = lambda path, x, norm, **kwargs: _conv(ops, w, path, x, norm, epsilon=1e-3, **kwargs)
  x = ops.apply("hard_swish", conv("conv1", x, "bn1", stride=2))
  features = 16
  for i, row in enumerate(LARGE):
    at, activation = f"blocks/{i}/", "hard_swish" if row.hard_swish else "relu"
    y = x
    if row.expanded != features:
      y = ops.apply(activation, conv(f"{at}expand", y, f"{at}expand_bn"))
    depthwise = {"stride": row.stride, "groups": row.expanded}
    y = ops.apply(activation, conv(f"{at}depthwise", y, f"{at}depthwise_bn", **depthwise))
    if row.squeezes:
      scale = ops.apply("relu", conv(f"{at}se/fc1", ops.mean_pool(y), None))
      y = ops.multiply(y, ops.apply("hard_sigmoid", conv(f"{at}se/fc2", scale, None)))
    y = conv(f"{at}project", y, f"{at}project_bn")
    x = ops.add(x, y) if row.stride == 1 and features == row.out else y
    features = row.out
  x = ops.mean_pool(ops.apply("hard_swish", conv("conv_last", x, "bn_last")))
  x = ops.reshape(x, w["hidden/kernel"].shape[0])
  return _linear(ops, w, "head", ops.apply("hard_swish", _linear(ops, w, "hidden", x)))


def vit(ops: Ops, w: Weights, x: Any) -> Any:
  """Of the vision transformer."""
  _, num_tokens, width = w["pos_embedding"].shape
  kernel = w["conv_proj/kernel"]
  x = ops.conv(
    x, _filters(kernel), w["conv_proj/bias"], stride=kernel.shape[0], padding=0, groups=1
  )
  x = ops.prepend(ops.transpose(ops.reshape(x, width, num_tokens - 1), 0, 2, 1))
  token = np.zeros_like(w["pos_embedding"])
  token[:, 0] = w["class_token"][:, 0]
  x = ops.add(x, w["pos_embedding"] + token)
  for i in range(sum(path.endswith("ln1/scale") for path in w)):
    at, of = f"blocks/{i}/", f"blocks/{i}/attention/"
    y = _layer_norm(ops, w, f"{at}ln1", x)
    q, k, v = (
      _heads(ops, _linear(ops, w, f"{of}{name}", y), num_tokens, width)
      for name in ("query", "key", "value")
    )
    y = ops.reshape(_attend(ops, q, k, v), num_tokens, width)
    x = ops.add(x, _linear(ops, w, f"{of}out", y))
    y = ops.apply("gelu_exact", _linear(ops, w, f"{at}mlp/up", _layer_norm(ops, w, f"{at}ln2", x)))
    x = ops.add(x, _linear(ops, w, f"{at}mlp/down", y))
  return _linear(ops, w, "head", _layer_norm(ops, w, "ln", ops.at(x, 0, 1)))


def gpt(ops: Ops, w: Weights, tokens: Any, keys: Any = None, values: Any = None) -> Any:
  """Of `models.GPT`, and with keys and values of `models.GPTStep`."""
  (length, width), has_past = w["positions/embedding"].shape, keys is not None
  length = 1 if has_past else length
  x = ops.add(ops.take(w["embedding/embedding"], tokens), w["positions/embedding"][-length:][None])
  future = np.triu(np.full((length, length), -1e9, np.float32), 1)
  new: list[tuple[Any, Any]] = []
  for i in range(sum(path.endswith("ln1/scale") for path in w)):
    at = f"blocks/{i}/"
    y = _linear(ops, w, f"{at}qkv", _layer_norm(ops, w, f"{at}ln1", x, 1e-6))
    shape = (length, width // 64, 64)
    q, k, v = (ops.reshape(part, *shape) for part in ops.split(y, 3))
    if has_past:
      new.append((k, v))
      k = ops.concatenate([ops.at(keys, i, 0), k], 1)
      v = ops.concatenate([ops.at(values, i, 0), v], 1)
    q, k, v = (ops.transpose(part, 0, 2, 1, 3) for part in (q, k, v))
    y = _attend(ops, q, k, v, None if has_past else future)
    x = ops.add(x, _linear(ops, w, f"{at}out", ops.reshape(y, length, width)))
    y = ops.apply("gelu", _linear(ops, w, f"{at}up", _layer_norm(ops, w, f"{at}ln2", x, 1e-6)))
    x = ops.add(x, _linear(ops, w, f"{at}down", y))
  last = _layer_norm(ops, w, "ln", ops.at(x, length - 1, 1), 1e-6)
  logits = ops.linear(last, w["embedding/embedding"].T, None)
  return (logits, *(ops.stack(list(each)) for each in zip(*new, strict=True))) if new else logits


def _linear(ops: Ops, w: Weights, path: str, x: Any) -> Any:
  return ops.linear(x, w[f"{path}/kernel"], w[f"{path}/bias"])


def _layer_norm(ops: Ops, w: Weights, path: str, x: Any, epsilon: float = 1e-6) -> Any:
  return ops.layer_norm(x, w[f"{path}/scale"], w[f"{path}/bias"], epsilon)


def _filters(kernel: np.ndarray) -> np.ndarray:
  return np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))


def _conv(
  ops: Ops,
  w: Weights,
  path: str,
  x: Any,
  norm: str | None,
  *,
  stride: int = 1,
  groups: int = 1,
  epsilon: float = 1e-5,
) -> Any:
  """A convolution with the batch norm behind it."""
  kernel = w[f"{path}/kernel"]
  bias = w.get(f"{path}/bias", np.zeros(kernel.shape[-1], np.float32))
  if norm is not None:
    factor = w[f"{norm}/scale"] / np.sqrt(w[f"{norm}/var"] + epsilon)
    kernel = kernel * factor
    bias = (bias - w[f"{norm}/mean"]) * factor + w[f"{norm}/bias"]
  padding = kernel.shape[0] // 2
  return ops.conv(x, _filters(kernel), bias, stride=stride, padding=padding, groups=groups)


def _joined(ops: Ops, w: Weights, at: str, x: Any, y: Any, stride: int) -> Any:
  """The output of a residual block."""
  if f"{at}shortcut/kernel" in w:
    x = _conv(ops, w, f"{at}shortcut", x, f"{at}shortcut_bn", stride=stride)
  return ops.apply("relu", ops.add(x, y))


def _heads(ops: Ops, x: Any, num_tokens: int, width: int) -> Any:
  """`[B, heads, T, 64]`."""
  return ops.transpose(ops.reshape(x, num_tokens, width // 64, 64), 0, 2, 1, 3)


def _attend(ops: Ops, q: Any, k: Any, v: Any, mask: np.ndarray | None = None) -> Any:
  """Attention of `[B, heads, T, 64]`; back to `[B, T, heads, 64]`."""
  scores = ops.multiply(ops.matmul(q, ops.transpose(k, 0, 1, 3, 2)), np.full((), 1 / 8, np.float32))
  if mask is not None:
    scores = ops.add(scores, mask)
  return ops.transpose(ops.matmul(ops.softmax(scores), v), 0, 2, 1, 3)
