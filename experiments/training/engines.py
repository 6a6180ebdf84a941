"""The two ways to store and train sparse layers: dense with masks, or in condensed form.

A step's gradients and its update are all that differs. The training loop is the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx
from jax import Array

import srigl_jax as sx
from experiments import models
from experiments.processes.sharding import mean_over_devices
from srigl_jax.condensed_training.nnx_modules import CondensedGradients

ENGINES = ("masked", "condensed")
"""What `config.method.engine` may be."""


class TrainState(NamedTuple):
  """Everything that training carries from step to step.

  Attributes:
    step: `[]` int32, batches done. The batch order and all randomness are functions of the seed
      and the step, so this is the position in the data too.
    params: `{path: array}`, zero off the masks; of layers in condensed form their values `[C]`.
    model_state: `{path: array}`, batch statistics; and the patterns of layers in condensed form.
    opt_state: the optimizer's state, including the masks.
    experience: what a network that acts for its examples carries, see `data.Experience`.
  """

  step: Array
  params: dict[str, Array]
  model_state: dict[str, Any]
  opt_state: Any
  experience: Any = ()


class Gradients(NamedTuple):
  """What a step finds out about a batch, averaged over all devices.

  Attributes:
    loss: `[]` float32.
    aux: what the loss function returns besides, this device's own.
    model_state: after the forward pass.
    grads: for the engine's `update`.
    trained: the gradients of the parameters among them, whose norm is recorded.
  """

  loss: Array
  aux: Any
  model_state: dict[str, Any]
  grads: Any
  trained: Any


class Engine(NamedTuple):
  """How sparse layers are stored and trained; functions for use under `jax.pmap`.

  Attributes:
    gradients: `(loss_fn, state, x, rngs) -> Gradients`, where `loss_fn(logits)` is
      `(loss, aux)`, `x` are inputs and `rngs` a random key.
    update: `(grads, state) -> (state, updates)`: the state after an optimizer step, and what was
      added to the parameters, or None where steps also move them.
    apply: the network itself, for one that acts.
  """

  gradients: Callable[..., Gradients]
  update: Callable[..., tuple[TrainState, Any]]
  apply: models.Apply


def masked_engine(apply: models.Apply, tx: optax.GradientTransformationExtraArgs) -> Engine:
  """Dense layers, with masks in the optimizer's state if they are sparse.

  Args:
    apply: the model.
    tx: the optimizer, including sparse training.
  """

  def gradients(loss_fn, state, x, rngs):
    def of(params):
      logits, model_state = apply(params, state.model_state, x, train=True, rngs=rngs)
      loss, aux = loss_fn(logits)
      return loss, (model_state, aux)

    (loss, (model_state, aux)), grads = jax.value_and_grad(of, has_aux=True)(state.params)
    loss, grads, model_state = mean_over_devices((loss, grads, model_state))
    return Gradients(loss, aux, model_state, grads, grads)

  def update(grads, state):
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return state._replace(params=params, opt_state=opt_state), updates

  return Engine(gradients, update, apply)


def condensed_engine(
  apply: models.Apply, make_module: Callable[..., nnx.Module], tx: sx.CondensedTraining
) -> Engine:
  """Sparse layers in condensed form.

  Args:
    apply: the model.
    make_module: see `models.CondensedModel.module`.
    tx: training in condensed form, of `sharding.AXIS`.
  """

  def gradients(loss_fn, state, x, rngs):
    module = make_module(state.params, state.model_state)

    def of(module):
      return loss_fn(module(x, train=True, rngs=nnx.Rngs(rngs)))

    (loss, aux), grads = sx.condensed_value_and_grad(of, has_aux=True)(module)
    loss, params = mean_over_devices((loss, models.flatten(grads.params)))
    model_state = models.state_of(module)
    statistics = {k: x for k, x in model_state.items() if not isinstance(x, sx.Pattern)}
    model_state |= mean_over_devices(statistics)
    return Gradients(loss, aux, model_state, CondensedGradients(params, grads.signals), params)

  def update(grads, state):
    patterns = models.patterns_of(state.model_state)
    params, patterns, opt_state = tx.update(
      grads.params, grads.signals, state.opt_state, state.params, patterns
    )
    model_state = models.with_patterns(state.model_state, patterns)
    return state._replace(params=params, model_state=model_state, opt_state=opt_state), None

  return Engine(gradients, update, apply)
