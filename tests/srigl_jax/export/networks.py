"""Small sparse networks for the tests of exports, made without running JAX: that is cheap."""

import itertools

import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx


def filled(build_fn, fan_ins):
  """A model with random arrays, and masks of constant fan-in for some kernels.

  Args:
    build_fn: from `nnx.Rngs` to the model.
    fan_ins: by path of a kernel.
  """
  rng = np.random.default_rng(0)
  model = nnx.eval_shape(lambda: build_fn(nnx.Rngs(0)))
  model.eval()
  masks = {}
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
    name, shape = "/".join(map(str, path)), variable.get_value().shape
    x = rng.normal(size=shape) * (0.1 if len(shape) == 1 else 1)
    if name in fan_ins:
      order = rng.random((np.prod(shape[:-1]), shape[-1])).argsort(axis=0)
      masks[name] = (order < fan_ins[name]).reshape(shape)
      x = np.where(masks[name], x / np.sqrt(fan_ins[name]), 0)
    elif len(shape) > 1:
      x = x / np.sqrt(np.prod(shape[:-1]))
    elif name.endswith(("var", "scale")):
      x = 1 + abs(x)
    variable.set_value(jnp.asarray(x, jnp.float32))
  return model, masks


def mlp(activation=nnx.relu, sizes=(16, 24, 20, 5)):
  """A condensed multilayer perceptron, and its inputs."""

  def build(rngs):
    layers = [[nnx.Linear(*pair, rngs=rngs), activation] for pair in itertools.pairwise(sizes)]
    return nnx.Sequential(*itertools.chain(*layers[:-1]), layers[-1][0])

  model, masks = filled(build, {"layers/0/kernel": 5, "layers/2/kernel": 4, "layers/4/kernel": 9})
  x = np.random.default_rng(1).normal(size=(40, sizes[0])).astype(np.float32)
  return sx.condense_model(model, masks, x, backend="xla"), x


class ConvNet(nnx.Module):
  """Everything that can be exported: a residual, poolings, groups, batch norms, a wide layer."""

  def __init__(self, rngs):
    self.conv1 = nnx.Conv(3, 8, (3, 3), use_bias=False, rngs=rngs)
    self.norm1 = nnx.BatchNorm(8, rngs=rngs)
    self.conv2 = nnx.Conv(8, 8, (3, 3), strides=2, use_bias=False, rngs=rngs)
    self.norm2 = nnx.BatchNorm(8, rngs=rngs)
    self.grouped = nnx.Conv(8, 8, (3, 3), feature_group_count=4, rngs=rngs)
    self.hidden = nnx.Linear(8, 270, rngs=rngs)
    self.head = nnx.Linear(270, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm1(self.conv1(x)))
    x = nnx.max_pool(x, (2, 2), strides=(2, 2))
    x = nnx.gelu(self.norm2(self.conv2(x)))
    x = nnx.avg_pool(x, (2, 2), strides=(1, 1))
    x = nnx.relu(self.grouped(x) + x)
    return self.head(nnx.relu(self.hidden(x.mean((1, 2)))))


def convnet():
  """A condensed `ConvNet`, and its inputs."""
  fan_ins = {"conv1/kernel": 6, "conv2/kernel": 20, "hidden/kernel": 3, "head/kernel": 60}
  model, masks = filled(ConvNet, fan_ins)
  x = np.random.default_rng(1).normal(size=(20, 8, 8, 3)).astype(np.float32)
  return sx.condense_model(model, masks, x, backend="xla"), x
