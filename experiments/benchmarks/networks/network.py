"""One form for networks of all frameworks: parameters, a pure function of them, an export."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

import srigl_jax as sx

PyTree = Any
Function = Callable[[Any], jax.Array]


class Network(NamedTuple):
  """A network of any framework.

  Attributes:
    params: what is trained.
    state: what else it holds, such as running statistics.
    apply: `(params, state, inputs, train) -> (outputs, state)`, pure.
    inputs: an example batch of a given size.
    condense: `(params, state, masks, inputs) -> (inputs -> outputs)`: the network made ready for
      inference.
    kwargs: of the sparse transformation, `axes` among them where it has to be told.
  """

  params: PyTree
  state: PyTree
  apply: Callable[[PyTree, PyTree, Any, bool], tuple[jax.Array, PyTree]]
  inputs: Callable[[int], Any]
  condense: Callable[[PyTree, PyTree, sx.Masks, Any], Function]
  kwargs: dict[str, Any]


class Trained(NamedTuple):
  """A network after some steps.

  Attributes:
    params: trained, 0 off the masks.
    state: as the network's.
    masks: the last ones.
    history: the masks after each step.
    losses: of each step.
  """

  params: PyTree
  state: PyTree
  masks: sx.Masks
  history: list[sx.Masks]
  losses: list[float]


def train(
  network: Network,
  *,
  steps: int = 24,
  update_every: int = 8,
  sparsity: float = 0.7,
  batch: int = 4,
  **kwargs: Any,
) -> Trained:
  """Trains a network by SRigL to fit random targets, with a topology update every few steps.

  Args:
    network: to train; it is left as it is.
    steps: of the optimizer.
    update_every: steps between topology updates, the last of which comes before the last step.
    sparsity: of all layers together.
    batch: examples, the same in every step.
    **kwargs: further arguments of `srigl`.
  """
  tx = sx.srigl(
    optax.adam(3e-3),
    sparsity=sparsity,
    update_every=update_every,
    update_until=steps,
    **{**network.kwargs, **kwargs},
  )
  inputs = network.inputs(batch)
  params, state = network.params, network.state
  shape = jax.eval_shape(lambda p, s: network.apply(p, s, inputs, True)[0], params, state).shape
  targets = jax.random.normal(jax.random.key(1), shape)

  @jax.jit
  def step(params: PyTree, state: PyTree, opt_state: Any) -> Any:
    def loss_fn(params: PyTree) -> tuple[jax.Array, PyTree]:
      outputs, new_state = network.apply(params, state, inputs, True)
      return jnp.mean((outputs - targets) ** 2), new_state

    (loss, state), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), state, opt_state, loss

  opt_state = tx.init(params)
  params = sx.apply_masks(params, sx.get_masks(opt_state))
  history, losses = [], []
  for _ in range(steps):
    params, state, opt_state, loss = step(params, state, opt_state)
    history.append(sx.get_masks(opt_state))
    losses.append(float(loss))
  return Trained(params, state, history[-1], history, losses)


def dense_twin(network: Network, trained: Trained) -> Function:
  """The network with its masked dense kernels, for inference."""
  return lambda x: network.apply(trained.params, trained.state, x, False)[0]


def from_nnx(
  model: nnx.Module,
  inputs: Callable[[int], Any],
  *,
  has_train: bool = False,
  **kwargs: Any,
) -> Network:
  """A network of a Flax NNX model.

  Args:
    model: called as `model(inputs)`.
    inputs: see `Network`.
    has_train: whether it is called as `model(inputs, train=...)`, as those of
      `experiments.models` are.
    **kwargs: see `Network`.
  """
  parts: Any = nnx.split(model, nnx.Param, ...)
  graphdef, params, state = parts

  def apply(params: PyTree, state: PyTree, x: Any, train: bool) -> tuple[jax.Array, PyTree]:
    model = nnx.merge(graphdef, params, state, copy=True)
    if not has_train:
      model.set_attributes(use_running_average=not train, raise_if_not_found=False)
    outputs = model(x, train=train) if has_train else model(x)
    parts: Any = nnx.split(model, nnx.Param, ...)
    return outputs, parts[2]

  def condense(params: PyTree, state: PyTree, masks: sx.Masks, x: Any) -> Function:
    model = nnx.merge(graphdef, params, state)
    parts: Any = nnx.split(sx.condense_model(model, masks, (x,)))
    return jax.jit(lambda x: nnx.merge(*parts, copy=True)(x))  # a copy: cells count random numbers

  return Network(params, state, apply, inputs, condense, kwargs)


def floats(*shape: int) -> Callable[[int], jax.Array]:
  """Batches of random float32 inputs of a shape."""
  return lambda batch: jax.random.normal(jax.random.key(0), (batch, *shape))


def tokens(length: int, vocabulary: int) -> Callable[[int], jax.Array]:
  """Batches of random tokens."""
  return lambda batch: jnp.asarray(
    np.random.default_rng(0).integers(0, vocabulary, (batch, length)), jnp.int32
  )


def from_linen(module: nn.Module, inputs: Callable[[int], Any], **kwargs: Any) -> Network:
  """A network of a Flax Linen module without running statistics; see `from_nnx`."""
  params = module.init(jax.random.key(0), inputs(1))["params"]

  def apply(params: PyTree, state: PyTree, x: Any, train: bool) -> tuple[jax.Array, PyTree]:
    outputs: Any = module.apply({"params": params}, x)
    return outputs, state

  def condense(params: PyTree, state: PyTree, masks: sx.Masks, x: Any) -> Function:
    condensed = sx.condense_linen(module, params, masks, x)
    return jax.jit(lambda x: condensed(x))

  return Network(params, {}, apply, inputs, condense, kwargs)


def from_equinox(model: Any, inputs: Callable[[int], Any], **kwargs: Any) -> Network:
  """A network of an Equinox module that is called with one example; see `from_nnx`."""
  import equinox as eqx

  params, static = eqx.partition(model, eqx.is_inexact_array)

  def apply(params: PyTree, state: PyTree, x: Any, train: bool) -> tuple[jax.Array, PyTree]:
    return jax.vmap(eqx.combine(params, static))(x), state

  def condense(params: PyTree, state: PyTree, masks: sx.Masks, x: Any) -> Function:
    model = sx.condense_equinox(eqx.combine(params, static), masks)
    return jax.jit(sx.fuse(lambda x: jax.vmap(model)(x)))

  return Network(params, {}, apply, inputs, condense, kwargs)


def from_haiku(
  function: Callable[[Any], Any], inputs: Callable[[int], Any], **kwargs: Any
) -> Network:
  """A network of a Haiku function of linear layers; see `from_nnx`."""
  import haiku as hk

  transformed: Any = hk.without_apply_rng(hk.transform(function))
  params = transformed.init(jax.random.key(0), inputs(1))

  def apply(params: PyTree, state: PyTree, x: Any, train: bool) -> tuple[jax.Array, PyTree]:
    return transformed.apply(params, x), state

  def condense(params: PyTree, state: PyTree, masks: sx.Masks, x: Any) -> Function:
    layers = {
      path.removesuffix("/w"): sx.prepare(sx.condense(p["w"], masks[path], p["b"]))
      for path, p in ((f"{name}/w", p) for name, p in params.items())
      if path in masks
    }

    def swap(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
      is_call = context.method_name == "__call__"
      layer = layers.get(context.module.module_name) if is_call else None
      return call(*args, **kwargs) if layer is None else sx.condensed_matmul(args[0], layer)

    @jax.jit
    @sx.fuse
    def run(x: Any) -> Any:
      with hk.intercept_methods(swap):
        return transformed.apply(params, x)

    return run

  return Network(params, {}, apply, inputs, condense, kwargs)
