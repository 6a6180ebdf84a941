"""Engines of one layer with very many outputs."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

import srigl_jax as sx
from experiments.benchmarks.sparse_training.cases import UPDATE_EVERY, Case
from experiments.benchmarks.sparse_training.engine import LEARNING_RATE, STEP, Engine
from experiments.benchmarks.sparse_training.jax_engines import SCHEDULE

_CHUNKS = 8
_MOST_POSITIONS = 2**31 - 1024  # of a sparse layer; more labels than that make several layers

_losses = optax.softmax_cross_entropy_with_integer_labels


def dense(case: Case) -> Engine:
  """A dense kernel; all rows at once, since their logits are small beside it."""
  [shape] = case.layers.values()
  draw = jax.jit(lambda key: jax.random.normal(key, shape) * (2 / shape[0]) ** 0.5)
  params = draw(jax.random.key(1))
  tx = optax.adam(LEARNING_RATE)
  held: list[Any] = [params, tx.init(params)]
  batch = [array.reshape(case.batch, *array.shape[2:]) for array in _batch(case)]

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, state, x, labels):
    loss_fn = lambda params: _losses(x @ params, labels).mean()
    loss, grads = jax.value_and_grad(loss_fn)(params)
    updates, state = tx.update(grads, state, params)
    return loss, optax.apply_updates(params, updates), state

  state_bytes = _num_bytes(held, params)
  del params
  return Engine({STEP: _trainer(step, held, batch)}, state_bytes)


def condensed(case: Case) -> Engine:
  """`sx.condensed_srigl` of a layer in condensed form; the loss of a chunk of rows at a time."""
  [(num_inputs, num_classes)] = case.layers.values()
  parts = -(-num_inputs * num_classes // _MOST_POSITIONS)
  widths = [num_classes * (i + 1) // parts - num_classes * i // parts for i in range(parts)]
  kernel = lambda width: jax.ShapeDtypeStruct((num_inputs, width), jnp.float32)
  shapes = {f"head_{i}": {"kernel": kernel(width)} for i, width in enumerate(widths)}
  paths = {name: f"{name}/kernel" for name in shapes}
  allocation = sx.allocate(shapes, fan_in=dict.fromkeys(paths.values(), case.fan_in(num_inputs)))
  patterns = sx.init_patterns(jax.random.key(0), allocation)
  values = sx.init_condensed_weights(jax.random.key(1), patterns)
  params = {name: {"kernel": values.pop(path)} for name, path in paths.items()}
  tx = sx.condensed_srigl(optax.adam(LEARNING_RATE), **SCHEDULE)
  held: list[Any] = [params, patterns, tx.init(params, patterns)]
  batch = _batch(case)

  def loss_fn(params, probes, patterns, x: Array, labels: Array) -> Array:
    logits = [
      sx.sparse_linear(x, params[name]["kernel"], patterns[path], probe=probes[path])
      for name, path in paths.items()
    ]
    return _losses(jnp.concatenate(logits, axis=-1), labels).mean() / _CHUNKS

  @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
  def step(params, patterns, state, x, labels):
    rows = x.shape[1]
    zeros_of = lambda width: (jnp.zeros((rows, num_inputs)), jnp.zeros((rows, width)))
    probes = dict(zip(paths.values(), map(zeros_of, widths), strict=True))

    def add(total, chunk):
      loss, (grads, signals) = jax.value_and_grad(loss_fn, argnums=(0, 1))(
        params, probes, patterns, *chunk
      )
      return jax.tree.map(jnp.add, total, (loss, grads)), signals

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    (loss, grads), chunks = lax.scan(add, zeros, (x, labels))
    signals = jax.tree.map(lambda s: s.reshape(case.batch, -1), chunks)
    return loss, *tx.update(grads, signals, state, params, patterns)

  def before_update() -> None:
    held[2] = held[2]._replace(step=jnp.asarray(UPDATE_EVERY - 1, jnp.int32))

  state_bytes = _num_bytes(held, params)
  del params, patterns
  return Engine({STEP: _trainer(step, held, batch)}, state_bytes, before_update)


def _batch(case: Case) -> tuple[Array, Array]:
  """Inputs and labels in chunks of rows."""
  [(num_inputs, num_classes)] = case.layers.values()
  x = jax.random.normal(jax.random.key(7), (_CHUNKS, case.batch // _CHUNKS, num_inputs))
  return x, jax.random.randint(jax.random.key(8), x.shape[:2], 0, num_classes)


def _num_bytes(held: Any, gradients: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves((held, gradients)))


def _trainer(
  step: Callable[..., Any], held: list[Any], batch: Iterable[Array]
) -> Callable[[], float]:
  def train() -> float:
    loss, *held[:] = jax.block_until_ready(step(*held, *batch))
    return float(loss)

  return train
