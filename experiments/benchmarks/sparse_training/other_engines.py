"""Engines of the cases that are not linear layers in a row: a very wide head, a ResNet-18."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array, lax

import srigl_jax as sx
from experiments import models
from experiments.benchmarks.sparse_training.cases import UPDATE_EVERY, Case
from experiments.benchmarks.sparse_training.engine import LEARNING_RATE, STEP, Engine
from experiments.benchmarks.sparse_training.jax_engines import SCHEDULE

_CHUNKS = 8


def head(case: Case) -> Engine:
  """One layer of very many outputs, condensed; the loss of a few rows at a time."""
  [(num_inputs, num_classes)] = case.layers.values()
  path = "head/kernel"
  shapes = {"head": {"kernel": jax.ShapeDtypeStruct((num_inputs, num_classes), jnp.float32)}}
  allocation = sx.allocate(shapes, fan_in={path: case.fan_in(num_inputs)})
  patterns = sx.init_patterns(jax.random.key(0), allocation)
  values = sx.init_condensed_weights(jax.random.key(1), patterns)
  params = {"head": {"kernel": values.pop(path)}}
  tx = sx.condensed_srigl(optax.adam(LEARNING_RATE), **SCHEDULE)
  held: list[Any] = [params, patterns, tx.init(params, patterns)]
  x = jax.random.normal(jax.random.key(7), (_CHUNKS, case.batch // _CHUNKS, num_inputs))
  labels = jax.random.randint(jax.random.key(8), x.shape[:2], 0, num_classes)

  def loss_fn(params, probe, patterns, x: Array, labels: Array) -> Array:
    logits = sx.sparse_linear(x, params["head"]["kernel"], patterns[path], probe=probe)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return loss.mean() / _CHUNKS

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def step(params, patterns, state, x, labels):
    rows = x.shape[1]
    probe = jnp.zeros((rows, num_inputs)), jnp.zeros((rows, num_classes))

    def add(total, chunk):
      loss, (grads, signal) = jax.value_and_grad(loss_fn, argnums=(0, 1))(
        params, probe, patterns, *chunk
      )
      return jax.tree.map(jnp.add, total, (loss, grads)), signal

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (loss, grads), signal = lax.scan(add, zeros, (x, labels))
    signals = {path: tuple(s.reshape(case.batch, -1) for s in signal)}
    return loss, *tx.update(grads, signals, state, params, patterns)

  def train() -> float:
    loss, *held[:] = step(*held, x, labels)
    return float(loss)

  def before_update() -> None:
    held[2] = held[2]._replace(step=jnp.asarray(UPDATE_EVERY - 1, jnp.int32))

  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((held, params)))
  del params, patterns
  return Engine({STEP: train}, num_bytes, before_update)


def dense_resnet(case: Case) -> Engine:
  """The experiments' ResNet-18, dense."""
  model = _resnet()
  optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
  return _train_nnx(case, model, optimizer, nnx.value_and_grad)


def condensed_resnet(case: Case) -> Engine:
  """The same, its sparse layers in condensed form; steps without a topology update."""
  model = sx.sparsify(_resnet, sparsity=case.sparsity)
  tx = sx.condensed_srigl(optax.adam(LEARNING_RATE), **SCHEDULE)
  return _train_nnx(case, model, sx.condensed_optimizer(model, tx), sx.condensed_value_and_grad)


def _resnet() -> nnx.Module:
  return models.build("resnet18", num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0))


def _train_nnx(
  case: Case, model: nnx.Module, optimizer: Any, value_and_grad: Callable[..., Any]
) -> Engine:
  images = jax.random.normal(jax.random.key(7), (case.batch, 32, 32, 3))
  labels = jnp.arange(case.batch) % 10

  def loss_fn(model: Any, images: Array, labels: Array) -> Array:
    logits = model(images, train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  graphdef, state = nnx.split((model, optimizer))
  held = [state]

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state, images, labels):
    model, optimizer = nnx.merge(graphdef, state)
    loss, grads = value_and_grad(loss_fn)(model, images, labels)
    optimizer.update(model, grads)
    return loss, nnx.state((model, optimizer))

  def train() -> float:
    loss, held[0] = jax.block_until_ready(step(held[0], images, labels))
    return float(loss)

  num_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves((state, nnx.state(model, nnx.Param))))
  return Engine({STEP: train}, num_bytes)
