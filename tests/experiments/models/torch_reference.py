"""Forward passes of PyTorch's networks in NumPy and float64, from state dicts in its own layout.

Written from torchvision's definitions: images `[B, C, H, W]`, kernels OIHW, modules by their
PyTorch names. `State` makes random state dicts by being asked for what a network needs.
"""

import math

import numpy as np
from scipy.special import erf


class State:
  """A state dict, either given or made up on the way, float64."""

  def __init__(self, arrays=None, seed=0):
    self.arrays = {} if arrays is None else arrays
    self.asked = set()
    self._rng = np.random.default_rng(seed)
    self._makes = arrays is None

  def __call__(self, key, *shape, low=None):
    """The array of a key; a new one is normal over the fan-in, or uniform from `low` up."""
    self.asked.add(key)
    if key not in self.arrays and self._makes:
      scale = 1 / math.sqrt(math.prod(shape[1:]) or 1)
      new = self._rng.normal(size=shape) * scale
      self.arrays[key] = new if low is None else self._rng.uniform(low, low + 1, shape)
    assert self.arrays[key].shape == shape, key
    return self.arrays[key]


def relu(x):
  return np.maximum(x, 0)


def hard_sigmoid(x):
  return np.clip(x + 3, 0, 6) / 6


def hard_swish(x):
  return x * hard_sigmoid(x)


def gelu(x):
  return x * (1 + erf(x / math.sqrt(2))) / 2


def conv(state, name, x, num_neurons, size, *, stride=1, groups=1, bias=False, padding=None):
  inputs = x.shape[1] // groups
  kernel = state(f"{name}.weight", num_neurons, inputs, size, size)
  pad = size // 2 if padding is None else padding
  x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
  rows, columns = ((n - size) // stride + 1 for n in x.shape[2:])
  y = np.zeros((len(x), num_neurons, rows, columns))
  per_group = num_neurons // groups
  for neuron in range(num_neurons):
    group = neuron // per_group
    seen = x[:, group * inputs : (group + 1) * inputs]
    for i in range(rows):
      for j in range(columns):
        window = seen[:, :, i * stride : i * stride + size, j * stride : j * stride + size]
        y[:, neuron, i, j] = (window * kernel[neuron]).sum((1, 2, 3))
  return y + state(f"{name}.bias", num_neurons)[:, None, None] if bias else y


def batch_norm(state, name, x, *, epsilon=1e-5):
  n = x.shape[1]
  each = lambda leaf, **kwargs: state(f"{name}.{leaf}", n, **kwargs)[:, None, None]
  state.arrays.setdefault(f"{name}.num_batches_tracked", np.asarray(3))
  y = (x - each("running_mean")) / np.sqrt(each("running_var", low=0.5) + epsilon)
  return y * each("weight", low=0.5) + each("bias")


def linear(state, name, x, num_neurons):
  weight = state(f"{name}.weight", num_neurons, x.shape[-1])
  return x @ weight.T + state(f"{name}.bias", num_neurons)


def layer_norm(state, name, x):
  n = x.shape[-1]
  y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return y * state(f"{name}.weight", n, low=0.5) + state(f"{name}.bias", n)


def max_pool(x):
  x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
  rows, columns = ((n - 3) // 2 + 1 for n in x.shape[2:])
  windows = [x[:, :, i::2, j::2][:, :, :rows, :columns] for i in range(3) for j in range(3)]
  return np.max(windows, axis=0)


def resnet50(state, x, *, stage_sizes, width, num_classes):
  x = max_pool(relu(batch_norm(state, "bn1", conv(state, "conv1", x, width, 7, stride=2))))
  for i, num_blocks in enumerate(stage_sizes):
    for j in range(num_blocks):
      name, inner, stride = f"layer{i + 1}.{j}", width * 2**i, 2 if i and not j else 1
      y = relu(batch_norm(state, f"{name}.bn1", conv(state, f"{name}.conv1", x, inner, 1)))
      y = conv(state, f"{name}.conv2", y, inner, 3, stride=stride)
      y = relu(batch_norm(state, f"{name}.bn2", y))
      y = batch_norm(state, f"{name}.bn3", conv(state, f"{name}.conv3", y, 4 * inner, 1))
      if not j:
        x = conv(state, f"{name}.downsample.0", x, 4 * inner, 1, stride=stride)
        x = batch_norm(state, f"{name}.downsample.1", x)
      x = relu(x + y)
  return linear(state, "fc", x.mean((2, 3)), num_classes)


def resnet18(state, x, *, stage_sizes, width, num_classes):
  """The CIFAR network of SRigL's authors."""
  x = relu(batch_norm(state, "bn1", conv(state, "conv1", x, width, 3)))
  for i, num_blocks in enumerate(stage_sizes):
    for j in range(num_blocks):
      name, inner, stride = f"layer{i + 1}.{j}", width * 2**i, 2 if i and not j else 1
      y = conv(state, f"{name}.conv1", x, inner, 3, stride=stride)
      y = relu(batch_norm(state, f"{name}.bn1", y))
      y = batch_norm(state, f"{name}.bn2", conv(state, f"{name}.conv2", y, inner, 3))
      if stride != 1:
        x = conv(state, f"{name}.shortcut.0", x, inner, 1, stride=stride)
        x = batch_norm(state, f"{name}.shortcut.1", x)
      x = relu(x + y)
  return linear(state, "linear", x.mean((2, 3)), num_classes)


def wide_resnet22_2(state, x, *, depth, widen, num_classes):
  """The network of SRigL's authors, without the log-softmax at its end."""
  x = conv(state, "conv1", x, 16, 3)
  for i in range(3):
    width = 16 * widen * 2**i
    for j in range((depth - 4) // 6):
      name, stride = f"block{i + 1}.layer.{j}", 2 if i and not j else 1
      activated = relu(batch_norm(state, f"{name}.bn1", x))
      y = conv(state, f"{name}.conv1", activated, width, 3, stride=stride)
      y = conv(state, f"{name}.conv2", relu(batch_norm(state, f"{name}.bn2", y)), width, 3)
      if x.shape[1] != width:
        x = conv(state, f"{name}.convShortcut", activated, width, 1, stride=stride)
      x = x + y
  return linear(state, "fc", relu(batch_norm(state, "bn1", x)).mean((2, 3)), num_classes)


def mobilenet_v3(state, x, *, blocks, hidden, num_classes):
  def normed(name, x, *args, **kwargs):
    return batch_norm(
      state, f"{name}.1", conv(state, f"{name}.0", x, *args, **kwargs), epsilon=1e-3
    )

  x = hard_swish(normed("features.0", x, 16, 3, stride=2))
  for i, (size, inner, out, squeezes, is_hard, stride) in enumerate(blocks, start=1):
    activate = hard_swish if is_hard else relu
    part, y = 0, x
    if inner != x.shape[1]:
      y, part = activate(normed(f"features.{i}.block.{part}", y, inner, 1)), part + 1
    name = f"features.{i}.block.{part}"
    y, part = activate(normed(name, y, inner, size, stride=stride, groups=inner)), part + 1
    if squeezes:
      name = f"features.{i}.block.{part}"
      squeezed = max(8, (inner // 4 + 4) // 8 * 8)
      squeezed += 8 if squeezed < 0.9 * (inner // 4) else 0
      scale = relu(
        conv(state, f"{name}.fc1", y.mean((2, 3), keepdims=True), squeezed, 1, bias=True)
      )
      y = y * hard_sigmoid(conv(state, f"{name}.fc2", scale, inner, 1, bias=True))
      part += 1
    y = normed(f"features.{i}.block.{part}", y, out, 1)
    x = x + y if stride == 1 and x.shape[1] == out else y
  x = hard_swish(normed(f"features.{len(blocks) + 1}", x, 6 * x.shape[1], 1))
  x = hard_swish(linear(state, "classifier.0", x.mean((2, 3)), hidden))
  return linear(state, "classifier.3", x, num_classes)


def attention(state, name, x, num_heads):
  """`torch.nn.MultiheadAttention`: q, k and v in one projection, heads side by side in each."""
  batch, tokens, width = x.shape
  weight = state(f"{name}.in_proj_weight", 3 * width, width)
  qkv = x @ weight.T + state(f"{name}.in_proj_bias", 3 * width)
  heads = np.zeros((batch, tokens, width))
  size = width // num_heads
  for head in range(num_heads):
    start = head * size
    q, k, v = (qkv[..., n * width + start : n * width + start + size] for n in range(3))
    scores = np.exp(q @ k.swapaxes(1, 2) / math.sqrt(size))
    heads[..., start : start + size] = scores / scores.sum(-1, keepdims=True) @ v
  return linear(state, f"{name}.out_proj", heads, width)


def vit_b16(state, x, *, patch_size, depth, width, num_heads, mlp_width, num_classes):
  x = conv(state, "conv_proj", x, width, patch_size, stride=patch_size, bias=True, padding=0)
  x = x.reshape(*x.shape[:2], -1).swapaxes(1, 2)
  token = np.broadcast_to(state("class_token", 1, 1, width), (len(x), 1, width))
  x = np.concatenate([token, x], axis=1)
  x = x + state("encoder.pos_embedding", 1, x.shape[1], width)
  for i in range(depth):
    name = f"encoder.layers.encoder_layer_{i}"
    y = layer_norm(state, f"{name}.ln_1", x)
    x = x + attention(state, f"{name}.self_attention", y, num_heads)
    y = gelu(linear(state, f"{name}.mlp.0", layer_norm(state, f"{name}.ln_2", x), mlp_width))
    x = x + linear(state, f"{name}.mlp.3", y, width)
  return linear(state, "heads.head", layer_norm(state, "encoder.ln", x)[:, 0], num_classes)


NETWORKS = {
  "mobilenet_v3_large": mobilenet_v3,
  "mobilenet_v3_small": mobilenet_v3,
  "resnet18": resnet18,
  "resnet50": resnet50,
  "vit_b16": vit_b16,
  "wide_resnet22_2": wide_resnet22_2,
}
