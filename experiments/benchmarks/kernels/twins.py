"""Whole models, convolutions and gradients, dense against condensed, at 90 % sparsity.

Both sides are one jitted call on the same inputs, and their results are compared before they are
timed. The models' weights, unlike a single layer's, do not all stay in the caches:

- the CIFAR ResNet-18 of the experiments, untrained, with random masks allocated by
  Erdős–Rényi-Kernel and every neuron active; the dense twin computes its batch norms, which the
  condensed one has folded, as it would in use;
- a multi-layer perceptron of three 4096-wide layers with ReLU, every neuron active;
- the linear layers of a ViT-B/16 block on the 197 tokens of an image: query, key and value,
  attention's output, and the two layers of the MLP with GELU. Attention itself has no weights and
  is left out on both sides.

XLA's default runs some dense convolutions on one thread, which flatters the condensed side; with
XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= (empty) they use all.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

import srigl_jax as sx
from experiments import models
from experiments.benchmarks.comparison import Comparison, compare
from experiments.benchmarks.kernels.layers import SHAPES, Shape, random_layer
from experiments.benchmarks.kernels.measurement import NUM_INPUTS
from experiments.benchmarks.timing import call_seconds, take_turns
from experiments.common.progress import progress

_SPARSITY = 0.9
_TOKENS = 197
_TOLERANCE = 1e-3  # relative to the largest output, after several layers in float32

Side = tuple[Callable[..., Any], Any]
"""A function and its weights: `fn(x, weights)` is compiled."""

# The convolutions of the CIFAR ResNet-18: image, channels, neurons, kernel, stride.
CONVOLUTIONS: dict[str, tuple[int, int, int, int, int]] = {
  "64": (32, 64, 64, 3, 1),
  "64-128 /2": (32, 64, 128, 3, 2),
  "64-128 1x1 /2": (32, 64, 128, 1, 2),
  "128": (16, 128, 128, 3, 1),
  "128-256 /2": (16, 128, 256, 3, 2),
  "128-256 1x1 /2": (16, 128, 256, 1, 2),
  "256": (8, 256, 256, 3, 1),
  "256-512 /2": (8, 256, 512, 3, 2),
  "256-512 1x1 /2": (8, 256, 512, 1, 2),
  "512": (4, 512, 512, 3, 1),
}


def compare_twins(
  name: str,
  dense: Side,
  condensed: Side,
  *shapes: tuple[int, ...],
  rounds: int,
  at_least: float | None = None,
  pick: Callable[[np.ndarray], np.ndarray] = lambda y: y,
) -> Comparison:
  """The dense twin's time over the condensed one's.

  Args:
    name: of what is compared.
    dense: the twin.
    condensed: the same in condensed form.
    *shapes: of the inputs; the functions take an array, or a tuple if there are several.
    rounds: of each.
    at_least: target.
    pick: of the dense result what the condensed one should equal; not timed.

  Raises:
    RuntimeError: if the two compute different things.
  """
  keys = jax.random.split(jax.random.key(7), len(shapes))
  pairs = zip(keys, shapes, strict=True)
  arrays = [jax.random.normal(key, (NUM_INPUTS, *shape)) for key, shape in pairs]
  inputs = [tuple(x) if len(shapes) > 1 else x[0] for x in zip(*arrays, strict=True)]
  jax.block_until_ready(inputs)
  calls = {}
  for side, (fn, weights) in (("dense", dense), ("condensed", condensed)):
    calls[side] = functools.partial(_call, jax.jit(fn), weights)
  want, got = (np.asarray(call(inputs[0])) for call in calls.values())
  want = pick(want)
  error = np.abs(got - want).max() / np.abs(want).max()
  if not error <= _TOLERANCE:
    raise RuntimeError(f"{name}: the condensed output is off by {error:.2g} of the largest.")
  timers = {
    side: functools.partial(call_seconds, call, inputs, warm_up=0.05, spend=0.1, most=20)
    for side, call in calls.items()
  }
  with progress(name, step=0, total_steps=rounds) as show:
    times = take_turns(timers, rounds=rounds, after_round=show)
  return compare(f"{name}: dense / condensed", times, "dense", "condensed", at_least=at_least)


def _call(fn: Callable[..., Any], weights: Any, x: Any) -> jax.Array:
  return fn(x, weights).block_until_ready()


def model_rows(*, rounds: int) -> Iterator[Comparison]:
  """Whole models."""
  mlp = {f"layer{i}": Shape(4096, 4096, 4096) for i in range(3)}

  def apply_mlp(x, layer):
    x = layer("layer0", x, "relu")
    return layer("layer2", layer("layer1", x, "relu"), None)

  name = "MLP 3 × 4096, batch 1"
  yield linear_row(name, mlp, apply_mlp, (1, 4096), at_least=8.0, rounds=rounds)

  block = {"qkv": Shape(768, 2304, 2304), "out": Shape(768, 768, 768)}
  block |= {"up": SHAPES["vit_ffn_up"], "down": SHAPES["vit_ffn_down"]}

  def apply_block(x, layer):
    q, k, v = jnp.split(layer("qkv", x, None), 3, axis=-1)
    x = x + layer("out", q + k + v, None)
    return x + layer("down", layer("up", x, "gelu"), None)

  name = f"ViT-B/16 block's linear layers, {_TOKENS} tokens"
  yield linear_row(name, block, apply_block, (1, _TOKENS, 768), at_least=4.0, rounds=rounds)

  model = models.build("resnet18", num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
  params = nnx.state(model, nnx.Param)
  masks = sx.init_masks(jax.random.key(1), sx.allocate(params, _SPARSITY))
  nnx.update(model, sx.apply_masks(params, masks))
  for batch, at_least in ((1, 4.0), (64, 2.5)):
    shape = (batch, 32, 32, 3)
    sides = _split(model), _split(sx.condense_model(model, masks, jnp.zeros(shape)))
    name = f"CIFAR ResNet-18, batch {batch}"
    yield compare_twins(name, *sides, shape, at_least=at_least, rounds=rounds)


def _split(model: nnx.Module) -> Side:
  graph, state = nnx.split(model)
  return lambda x, state: nnx.merge(graph, state)(x, train=False), state


def linear_row(
  name: str,
  shapes: Mapping[str, Shape],
  apply: Callable[..., jax.Array],
  shape: tuple[int, ...],
  *,
  at_least: float,
  rounds: int,
) -> Comparison:
  """A model of linear layers.

  Args:
    name: of the row.
    shapes: of the layers.
    apply: `(x, layer) -> y`, with `layer(name, x, activation)`.
    shape: of the input.
    at_least: target.
    rounds: of each.
  """
  batch = int(np.prod(shape[:-1]))
  layers = {key: random_layer(key, shape, _SPARSITY) for key, shape in shapes.items()}
  dense = {key: (jnp.asarray(x.kernel), jnp.asarray(x.bias)) for key, x in layers.items()}
  condensed = {key: sx.prepare(x.condensed, batch=batch) for key, x in layers.items()}

  def run_dense(x, weights):
    def layer(key, x, activation):
      kernel, bias = weights[key]
      y = x @ kernel + bias.reshape((1,) * (x.ndim - 1) + (-1,))
      return {"relu": jax.nn.relu, "gelu": jax.nn.gelu, None: lambda y: y}[activation](y)

    return apply(x, layer)

  def run_condensed(x, weights):
    matmul = lambda key, x, activation: sx.condensed_matmul(x, weights[key], activation=activation)
    return apply(x, matmul)

  sides = (run_dense, dense), (run_condensed, condensed)
  return compare_twins(name, *sides, shape, at_least=at_least, rounds=rounds)


def convolution_rows(batches: Sequence[int] = (1, 64), *, rounds: int) -> Iterator[Comparison]:
  """The convolutions of the ResNet-18, with bias and ReLU."""
  for batch in batches:
    for name, (image, channels, neurons, size, stride) in CONVOLUTIONS.items():
      shape = (size, size, channels, neurons)
      layer = random_layer(name, Shape(size * size * channels, neurons, neurons), _SPARSITY)
      condensed = dataclasses.replace(layer.condensed, kernel_shape=shape, neuron_axes=(3,))
      padding = size // 2
      dense_conv = functools.partial(_dense_conv, stride=stride, padding=padding)
      conv = functools.partial(
        sx.condensed_conv, strides=stride, padding=padding, activation="relu"
      )
      yield compare_twins(
        f"convolution {name}, batch {batch}",
        (dense_conv, (jnp.asarray(layer.kernel.reshape(shape)), jnp.asarray(layer.bias))),
        (conv, sx.prepare(condensed, batch=batch)),
        (batch, image, image, channels),
        rounds=rounds,
      )


def _dense_conv(x: jax.Array, weights: Any, *, stride: int, padding: int) -> jax.Array:
  kernel, bias = weights
  y = lax.conv_general_dilated(
    x,
    kernel,
    (stride, stride),
    ((padding, padding),) * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))


def gradient_rows(
  shapes: Mapping[str, Shape] = SHAPES, batches: Sequence[int] = (64, 256), *, rounds: int
) -> Iterator[Comparison]:
  """What training calls: the product with values that change, the gradients in x and the values."""
  for name, shape in shapes.items():
    layer = random_layer(name, shape, _SPARSITY)
    where = np.asarray(layer.condensed.indices), np.asarray(layer.condensed.active)[:, None]
    prepared = sx.prepare(layer.condensed, gradients=True)
    dense = {"values": jnp.asarray(layer.kernel), "bias": jnp.asarray(layer.bias)}, None
    condensed = prepared.weights, prepared
    for batch in batches:
      x, g = (batch, shape.in_features), (batch, shape.out_features)
      for what, fn, inputs, pick in (
        ("product of new values", _forward, (x,), lambda y: y),
        ("gradient in x", _input_gradient, (x, g), lambda y: y),
        ("gradient in the values", _values_gradient, (x, g), lambda y, where=where: y[where]),
      ):
        label, sides = f"{name}, batch {batch}, {what}", ((fn, dense), (fn, condensed))
        yield compare_twins(label, *sides, *inputs, rounds=rounds, pick=pick)


def _product(x: jax.Array, weights: Mapping[str, Any], layer: Any) -> jax.Array:
  if layer is None:
    return x @ weights["values"] + weights["bias"][None]
  return sx.condensed_matmul(x, layer.with_weights(weights))


def _forward(x: Any, weights: Any) -> jax.Array:
  return _product(x, *weights)


def _input_gradient(inputs: Any, weights: Any) -> jax.Array:
  x, g = inputs
  return jax.vjp(lambda x: _product(x, *weights), x)[1](g)[0]


def _values_gradient(inputs: Any, weights: Any) -> jax.Array:
  (x, g), (trained, layer) = inputs, weights
  return jax.vjp(lambda trained: _product(x, trained, layer), trained)[1](g)[0]["values"]
