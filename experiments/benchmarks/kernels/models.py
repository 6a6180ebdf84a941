"""Whole models under jit against their dense twins, at 90 % sparsity.

Their weights, unlike a single layer's, do not all stay in the caches. The networks are

- the CIFAR ResNet-18 of the experiments, untrained, with random masks allocated by
  Erdős–Rényi-Kernel and every neuron active; the dense twin computes its batch norms, which the
  condensed one has folded, as it would in use;
- a multi-layer perceptron of three 4096-wide layers with ReLU, every neuron active;
- the linear layers of a ViT-B/16 block on the 197 tokens of an image: query, key and value,
  attention's output, and the two layers of the MLP with GELU. The MLP's first layer keeps 1145
  neurons, as in the paper's network; in the others every neuron is active. Attention itself has no
  weights and is left out on both sides.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx
from experiments import models
from experiments.benchmarks.kernels.layers import SHAPES, Shape, random_layer
from experiments.benchmarks.timing import Row, call_seconds, take_turns
from experiments.common.progress import progress

_SPARSITY = 0.9
_NUM_INPUTS = 4
_TOKENS = 197
_TOLERANCE = 1e-3  # relative to the largest output, after several layers in float32

Model = Callable[..., jax.Array]


def rows(*, rounds: int) -> list[Row]:
  """The rows of all models."""
  return [row for problem in (_mlp, _vit_block, _resnet18) for row in problem(rounds)]


def compare(
  name: str,
  dense: tuple[Model, Any],
  condensed: tuple[Model, Any],
  shape: tuple[int, ...],
  *,
  at_least: float,
  rounds: int,
) -> Row:
  """The row of a model: the dense twin's time over the condensed one's.

  Args:
    name: of the row.
    dense: `(fn, weights)`; `fn(x, weights)` is compiled.
    condensed: the same of the condensed model.
    shape: of the input.
    at_least: target.
    rounds: of each.

  Raises:
    RuntimeError: if the two compute different things.
  """
  xs = jax.random.normal(jax.random.key(7), (_NUM_INPUTS, *shape))
  inputs = [jax.block_until_ready(x) for x in xs]
  calls = {}
  for side, (fn, weights) in (("dense", dense), ("condensed", condensed)):
    calls[side] = functools.partial(_call, jax.jit(fn), weights)
  want, got = (np.asarray(call(inputs[0])) for call in calls.values())
  error = np.abs(got - want).max() / np.abs(want).max()
  if not error <= _TOLERANCE:
    raise RuntimeError(
      f"{name}: the condensed model's output is off by {error:.2g} of the largest."
    )
  timers = {
    side: functools.partial(call_seconds, call, inputs, warm_up=0.05, spend=0.1, most=20)
    for side, call in calls.items()
  }
  with progress(name, step=0, total_steps=rounds) as show:
    times = take_turns(timers, rounds=rounds, after_round=show)
  ratios = [a / b for a, b in zip(times["dense"], times["condensed"], strict=True)]
  return Row(f"{name}: dense / condensed", ratios, times, at_least=at_least)


def _call(fn: Model, weights: Any, x: jax.Array) -> jax.Array:
  return fn(x, weights).block_until_ready()


def _mlp(rounds: int) -> Iterator[Row]:
  shapes = {f"layer{i}": Shape(4096, 4096, 4096) for i in range(3)}

  def apply(x, layer):
    x = layer("layer0", x, "relu")
    return layer("layer2", layer("layer1", x, "relu"), None)

  yield _linear("MLP 3 × 4096, batch 1", shapes, apply, (1, 4096), at_least=8.0, rounds=rounds)


def _vit_block(rounds: int) -> Iterator[Row]:
  shapes = {"qkv": Shape(768, 2304, 2304), "out": Shape(768, 768, 768)}
  shapes |= {"up": SHAPES["vit_ffn_up"], "down": SHAPES["vit_ffn_down"]}

  def apply(x, layer):
    q, k, v = jnp.split(layer("qkv", x, None), 3, axis=-1)
    x = x + layer("out", q + k + v, None)
    return x + layer("down", layer("up", x, "gelu"), None)

  name = f"ViT-B/16 block's linear layers, {_TOKENS} tokens"
  yield _linear(name, shapes, apply, (1, _TOKENS, 768), at_least=4.0, rounds=rounds)


def _linear(
  name: str,
  shapes: Mapping[str, Shape],
  apply: Callable[..., jax.Array],
  shape: tuple[int, ...],
  *,
  at_least: float,
  rounds: int,
) -> Row:
  """The row of a model of linear layers.

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
  return compare(name, *sides, shape, at_least=at_least, rounds=rounds)


def _resnet18(rounds: int) -> Iterator[Row]:
  model = models.build("resnet18", num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))
  params = nnx.state(model, nnx.Param)
  masks = sx.init_masks(jax.random.key(1), sx.allocate(params, _SPARSITY))
  nnx.update(model, sx.apply_masks(params, masks))
  for batch, at_least in ((1, 4.0), (64, 2.5)):
    shape = (batch, 32, 32, 3)
    condensed = sx.condense_model(model, masks, jnp.zeros(shape))
    sides = _split(model), _split(condensed)
    name = f"CIFAR ResNet-18, batch {batch}"
    yield compare(name, *sides, shape, at_least=at_least, rounds=rounds)


def _split(model: nnx.Module) -> tuple[Model, Any]:
  """A model as a function and its arrays."""
  graph, state = nnx.split(model)
  return lambda x, state: nnx.merge(graph, state)(x, train=False), state
