"""Dense layers, masked ones and condensed ones, in JAX, with Adam.

Masks and patterns are the same, drawn from the same keys, and so are the weights that they leave.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

import srigl_jax as sx
from experiments.benchmarks.sparse_training.cases import UPDATE_EVERY, Case
from experiments.benchmarks.sparse_training.engine import (
  DVALUES,
  DX,
  FORWARD,
  LEARNING_RATE,
  OPTIMIZER,
  STEP,
  UPDATE_STEP,
  Engine,
)

SCHEDULE: dict[str, Any] = {
  "update_every": UPDATE_EVERY,
  "update_until": 10_000 * UPDATE_EVERY,
}

Linear = Callable[..., Array]
"""`(layer's name, layer's parameters, its pattern, its probe, x) -> x @ W + b`."""


def dense(case: Case) -> Engine:
  """Dense layers."""
  keys = jax.random.split(jax.random.key(1), len(case.layers))
  params = {
    name: {"kernel": jax.random.normal(key, (i, n)) * (2 / i) ** 0.5, "bias": jnp.zeros(n)}
    for key, (name, (i, n)) in zip(keys, case.layers.items(), strict=True)
  }
  tx = optax.adam(LEARNING_RATE)
  return _Trainer(case, params, {}, tx.init(params), _dense_linear, _masked_update(tx)).engine()


def masked(case: Case) -> Engine:
  """`sx.srigl` around the optimizer of dense layers."""
  shapes, fan_in = _shapes_and_fan_ins(case)
  params = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  masks = sx.init_masks(jax.random.key(0), sx.allocate(params, fan_in=fan_in))
  params = sx.init_sparse_weights(jax.random.key(1), params, masks)
  del masks
  tx = sx.srigl(optax.adam(LEARNING_RATE), fan_in=fan_in, **SCHEDULE)
  return _Trainer(case, params, {}, tx.init(params), _dense_linear, _masked_update(tx)).engine()


def condensed(case: Case) -> Engine:
  """`sx.condensed_srigl` of layers in condensed form."""
  shapes, fan_in = _shapes_and_fan_ins(case)
  patterns = sx.init_patterns(jax.random.key(0), sx.allocate(shapes, fan_in=fan_in))
  values = sx.init_condensed_weights(jax.random.key(1), patterns)
  params = {
    name: {"kernel": values[f"{name}/kernel"], "bias": jnp.zeros(n)}
    for name, (_, n) in case.layers.items()
  }
  tx = sx.condensed_srigl(optax.adam(LEARNING_RATE), **SCHEDULE)
  state = tx.init(params, patterns)
  return _Trainer(case, params, patterns, state, _condensed_linear, tx.update).engine()


def _shapes_and_fan_ins(case: Case) -> tuple[Any, dict[str, int]]:
  struct = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
  shapes = {
    name: {"kernel": struct((i, n)), "bias": struct((n,))} for name, (i, n) in case.layers.items()
  }
  return shapes, {f"{name}/kernel": case.fan_in(i) for name, (i, _) in case.layers.items()}


def _dense_linear(layer: Any, pattern: None, probe: None, x: Array) -> Array:
  return x @ layer["kernel"] + layer["bias"][None]


def _condensed_linear(layer: Any, pattern: Any, probe: Any, x: Array) -> Array:
  return sx.sparse_linear(x, layer["kernel"], pattern, layer["bias"], probe=probe)


def _masked_update(tx: optax.GradientTransformation) -> Callable[..., Any]:
  """The optimizer in the form of `CondensedTraining.update`."""

  def update(grads, signals, state, params, patterns):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), patterns, state

  return update


class _Trainer:
  """The state of a training run and the programs that train it, in donated memory."""

  def __init__(
    self,
    case: Case,
    params: Any,
    patterns: Any,
    opt_state: Any,
    linear: Linear,
    update: Callable[..., Any],
  ):
    """Holds the state; `update` is that of `CondensedTraining`."""
    self._case, self._linear = case, linear
    self._held = params, patterns, opt_state
    layers = list(case.layers.values())
    shapes = (case.batch, layers[0][0]), (case.batch, layers[-1][1])
    keys = jax.random.split(jax.random.key(7))
    self._batch = tuple(jax.random.normal(key, s) for key, s in zip(keys, shapes, strict=True))
    self._updating: Any = None

    def step(params, patterns, opt_state, batch):
      probes = {
        path: (jnp.zeros((case.batch, p.in_features)), jnp.zeros((case.batch, p.out_features)))
        for path, p in patterns.items()
      }
      loss, (grads, signals) = jax.value_and_grad(self._loss, argnums=(0, 1))(
        params, probes, patterns, batch
      )
      return loss, *update(grads, signals, opt_state, params, patterns)

    def optimize(params, patterns, opt_state, grads):
      return update(grads, None, opt_state, params, patterns)

    self._step = jax.jit(step, donate_argnums=(0, 1, 2))
    self._optimize = jax.jit(optimize, donate_argnums=(0, 1, 2))

  def engine(self) -> Engine:
    """What can be timed."""
    params, _, opt_state = self._held
    num_bytes = sum(x.nbytes for x in jax.tree.leaves((self._held, params)))
    if self._case.kind == "vit":
      gradients = jax.jit(jax.value_and_grad(self._loss))
      step = lambda: gradients(self._held[0], {}, self._held[1], self._batch)[0]
      return Engine({STEP: _waiting(step)}, num_bytes)
    forward = jax.jit(self._loss)
    calls = {
      STEP: self._train,
      FORWARD: _waiting(lambda: forward(self._held[0], {}, self._held[1], self._batch)),
      DX: self._pull(of_inputs=True),
      DVALUES: self._pull(of_inputs=False),
      OPTIMIZER: self._optimizer,
    }
    if not hasattr(opt_state, "step"):  # there is no topology
      return Engine(calls, num_bytes)
    calls[UPDATE_STEP] = _waiting(lambda: self._step(*self._updating, self._batch))
    prepare = {UPDATE_STEP: self._copy_before_update}
    return Engine(calls, num_bytes, self._before_update, prepare)

  def _loss(self, params: Any, probes: Any, patterns: Any, batch: tuple[Array, Array]) -> Array:
    def linear(name: str, x: Array) -> Array:
      path = f"{name}/kernel"
      return self._linear(params[name], patterns.get(path), probes.get(path), x)

    x, target = batch
    if self._case.kind == "vit":
      attended = linear("out", linear("qkv", x)[:, : x.shape[-1]])
      return _error(linear("down", jax.nn.gelu(linear("up", attended))), target)
    *hidden, last = self._case.layers
    for name in hidden:
      x = jax.nn.relu(linear(name, x))
    return _error(linear(last, x), target)

  def _train(self) -> float:
    loss, *held = self._step(*self._held, self._batch)
    self._held = jax.block_until_ready(held)
    return float(loss)

  def _optimizer(self) -> None:
    grads = jax.tree.map(jnp.zeros_like, self._held[0])
    self._held = jax.block_until_ready(self._optimize(*self._held, grads))

  def _before_update(self) -> None:
    """Makes the next step one that updates the topology."""
    params, patterns, opt_state = self._held
    step = jnp.asarray(UPDATE_EVERY - 1, jnp.int32)
    self._held = params, patterns, opt_state._replace(step=step)

  def _copy_before_update(self) -> None:
    """Puts a copy of the state there for an update that is timed: what is trained stays."""
    params, patterns, opt_state = jax.tree.map(jnp.copy, self._held)
    step = jnp.asarray(UPDATE_EVERY - 1, jnp.int32)
    self._updating = jax.block_until_ready((params, patterns, opt_state._replace(step=step)))

  def _pull(self, *, of_inputs: bool) -> Callable[[], Any]:
    """One kind of gradient of all layers, from given gradients in their outputs."""
    layers = self._case.layers
    keys = jax.random.split(jax.random.key(5), 2 * len(layers))
    batch, pairs = self._case.batch, zip(layers.values(), keys[::2], keys[1::2], strict=True)
    arrays = [
      (jax.random.normal(a, (batch, i)), jax.random.normal(b, (batch, n))) for (i, n), a, b in pairs
    ]

    @jax.jit
    def run(params, patterns, arrays):
      gradients = []
      for name, (x, g) in zip(layers, arrays, strict=True):
        function = lambda x, layer, name=name: self._linear(
          layer, patterns.get(f"{name}/kernel"), None, x
        )
        of_x, of_layer = jax.vjp(function, x, params[name])[1](g)
        gradients.append(of_x if of_inputs else of_layer["kernel"])
      # Nobody needs a gradient in the inputs of the network.
      return gradients[1:] if of_inputs else gradients

    return _waiting(lambda: run(self._held[0], self._held[1], arrays))


def _error(y: Array, target: Array) -> Array:
  return jnp.mean((y - target) ** 2)


def _waiting(call: Callable[[], Any]) -> Callable[[], Any]:
  return lambda: jax.block_until_ready(call())
