"""Engines of a ResNet-18."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import srigl_jax as sx
from experiments import models
from experiments.benchmarks.sparse_training.cases import Case
from experiments.benchmarks.sparse_training.engine import LEARNING_RATE, STEP, Engine
from experiments.benchmarks.sparse_training.jax_engines import SCHEDULE


def dense(case: Case) -> Engine:
  """The experiments' ResNet-18, dense."""
  model = _resnet()
  optimizer = nnx.Optimizer(model, optax.adam(LEARNING_RATE), wrt=nnx.Param)
  return _train_nnx(case, model, optimizer, nnx.value_and_grad)


def condensed(case: Case) -> Engine:
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
