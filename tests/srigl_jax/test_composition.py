"""The transformation in and around others of optax, under jax's own, and in trainers."""

import functools
import inspect

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import srigl_jax as sx
from srigl_jax.layers import leaf_dict
from tests import helpers
from tests.helpers import SCHEDULE, SGD, Training, changed, srigl

# ---------------------------------------------------------------- in and around other transforms


def with_injected_drop_fraction():
  static = {*inspect.signature(sx.srigl).parameters} - {"drop_fraction"}
  return optax.inject_hyperparams(sx.srigl, static_args=static)(
    SGD, sparsity=0.6, drop_fraction=0.3, gamma_sal=0.95, **SCHEDULE
  )


WRAPPED = {
  "chain_before": lambda: optax.chain(optax.clip_by_global_norm(1.0), srigl(SGD)),
  "chain_inside": lambda: srigl(
    optax.chain(optax.clip_by_global_norm(1.0), optax.add_decayed_weights(1e-2), SGD)
  ),
  "multi_transform": lambda: optax.multi_transform(
    {"sparse": srigl(SGD, ablate=True), "dense": optax.adam(0.01)},
    {"conv": {"kernel": "sparse", "bias": "dense"}, "head": "dense"},
  ),
  "masked_outside": lambda: optax.masked(
    srigl(SGD, ablate=True),
    {"conv": True, "head": {"kernel": False, "bias": False}},
  ),
  "masked_inside": lambda: srigl(
    optax.chain(
      optax.masked(
        optax.add_decayed_weights(0.1), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
      ),
      optax.masked(optax.trace(0.9), {"conv": True, "head": False}),
      optax.scale(-0.1),
    )
  ),
  "inner_multi_transform": lambda: srigl(
    optax.multi_transform({"adam": optax.adam(0.01), "sgd": SGD}, {"conv": "adam", "head": "sgd"})
  ),
  "inject_learning_rate": lambda: optax.inject_hyperparams(
    lambda learning_rate: srigl(optax.sgd(learning_rate, momentum=0.9))
  )(learning_rate=optax.cosine_decay_schedule(0.1, 8)),
  "inject_inside": lambda: srigl(
    optax.inject_hyperparams(optax.sgd, static_args="momentum")(learning_rate=0.01, momentum=0.9)
  ),
  "inject_drop_fraction": with_injected_drop_fraction,
  "multi_steps": lambda: optax.MultiSteps(srigl(SGD, update_until=5), every_k_schedule=2),
  "apply_if_finite": lambda: optax.apply_if_finite(srigl(SGD), max_consecutive_errors=5),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped(name):
  params = helpers.params()
  if name in ("multi_transform", "masked_outside"):
    del params["head"]  # out of the transformation's sight
  budgets = sx.allocate(params, 0.6).budgets
  training = Training(WRAPPED[name]())
  assert set(training.masks) == set(budgets)
  before, masks, updates = helpers.signature(training.state), training.masks, []
  for now in training.run(7):
    assert helpers.signature(now.state) == before
    helpers.assert_zero_off_mask(now.params, now.masks)
    helpers.assert_constant_fan_in(now.masks, budgets, {"conv/kernel"})
    if changed(masks, now.masks):
      updates.append(now.step)
      masks = now.masks
    inner_state = leaf_dict(sx.get_state(now.state).inner_state)
    moments = [(p, x) for p, x in inner_state.items() if p.endswith(tuple(now.masks)) and x.ndim]
    assert moments
    for path, moment in moments:
      (mask,) = (mask for layer, mask in now.masks.items() if path.endswith(layer))
      assert not np.asarray(moment, np.float32)[~mask].any()
  assert training.traces == 1
  assert updates == ([6] if name == "multi_steps" else [3, 6])


def test_injected_drop_fraction_is_traced_and_obeyed():
  tx = with_injected_drop_fraction()
  params = sx.apply_masks(helpers.params(), sx.get_masks(tx.init(helpers.params())))
  traces = []

  @jax.jit
  def three_steps(state, params):
    traces.append(1)
    for step in range(3):
      updates, state = tx.update(helpers.gradients(params, step), state, params)
      params = optax.apply_updates(params, updates)
    return sx.get_masks(state)

  state = tx.init(params)
  masks = {}
  for fraction in (0.0, 0.3, 0.9):
    state.hyperparams["drop_fraction"] = jnp.float32(fraction)
    masks[fraction] = jax.tree.map(np.asarray, three_steps(state, params))
  assert len(traces) == 1
  assert changed(masks[0.0], masks[0.9]) and changed(masks[0.3], masks[0.9])
  # Up to the rounding of the traced cosine, as with a Python number.
  (*_, end) = Training(srigl(SGD, drop_fraction=0.3)).run(3)
  assert not changed(masks[0.3], end.masks)


def test_injecting_what_must_be_static_says_so():
  make = optax.inject_hyperparams(lambda sparsity: sx.srigl(SGD, sparsity=sparsity, update_until=8))
  with pytest.raises(ValueError, match=r"sparsity is a jax array .*inject_hyperparams"):
    make(sparsity=0.5).init(helpers.params())
  make = optax.inject_hyperparams(lambda until: sx.srigl(SGD, sparsity=0.5, update_until=until))
  with pytest.raises(ValueError, match=r"update_until .*inject_hyperparams"):
    make(until=8).init(helpers.params())


def test_skipped_steps_leave_the_topology_alone():
  training = Training(optax.apply_if_finite(srigl(SGD), max_consecutive_errors=5))
  for _ in training.run(2):
    pass
  bad = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), training.params)
  before = training.masks
  updates, state = jax.jit(training.tx.update)(bad, training.state, training.params)
  assert not any(np.asarray(u, np.float32).any() for u in jax.tree.leaves(updates))
  assert int(sx.get_state(state).step) == 2
  assert not changed(before, jax.tree.map(np.asarray, sx.get_masks(state)))


# ---------------------------------------------------------------- under jax's transformations


@functools.cache
def plain_run():
  """Six steps, one jitted call each: what other ways of running must reproduce."""
  (*_, end) = Training(srigl(SGD)).run(6)
  return end


def assert_same_as_plain_run(params, masks):
  expected = plain_run()
  for path, mask in masks.items():
    np.testing.assert_array_equal(mask, expected.masks[path])
  assert len(masks) == 2
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(
      np.asarray(x, np.float32), np.asarray(y, np.float32), rtol=1e-5
    ),
    params,
    expected.params,
  )


def stacked_gradients(num_steps=6):
  params = helpers.params()
  steps = [helpers.gradients(params, step) for step in range(num_steps)]
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)


def start(tx):
  params = helpers.params()
  state = tx.init(params)
  return sx.apply_masks(params, sx.get_masks(state)), state


def step_of(tx):
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return step


def test_init_and_scan_under_jit():
  tx = srigl(SGD)

  @jax.jit
  def run(grads):
    carry = start(tx)
    step = lambda carry, grads: (step_of(tx)(*carry, grads), None)
    return jax.lax.scan(step, carry, grads)[0]

  params, state = run(stacked_gradients())
  assert_same_as_plain_run(params, sx.get_masks(state))


@pytest.mark.parametrize("init", [start, lambda tx: jax.jit(lambda: start(tx))()])
def test_donated_buffers(init):
  tx = srigl(SGD)
  params, state = init(tx)
  step = jax.jit(step_of(tx), donate_argnums=(0, 1))
  first = params["conv"]["kernel"]
  for i in range(6):
    params, state = jax.block_until_ready(step(params, state, helpers.gradients(params, i)))
  assert first.is_deleted()
  assert_same_as_plain_run(params, sx.get_masks(state))


def test_state_survives_a_trip_to_the_host():
  tx = srigl(SGD, grad_accumulation_steps=2)
  step = jax.jit(step_of(tx))
  params, state = start(tx)
  there_and_back = lambda tree: jax.tree.map(jnp.asarray, jax.tree.map(np.array, tree))
  resumed = None
  for i in range(6):
    grads = helpers.gradients(params, i)
    params, state = jax.block_until_ready(step(params, state, grads))
    if resumed:
      resumed = jax.block_until_ready(step(*there_and_back(resumed), grads))
    elif i == 1:
      resumed = there_and_back((params, state))
  jax.tree.map(np.testing.assert_array_equal, resumed, (params, state))


def test_pmap_keeps_masks_identical():
  num_devices = jax.local_device_count()
  assert num_devices == 8
  tx = srigl(SGD)
  mesh = Mesh(jax.local_devices(), ("devices",))
  params, state = jax.device_put(start(tx), NamedSharding(mesh, PartitionSpec()))

  @functools.partial(jax.pmap, axis_name="devices", in_axes=(None, None, 0))
  def step(params, state, grads):
    return step_of(tx)(params, state, jax.lax.pmean(grads, "devices"))

  # Each device has gradients of its own, whose mean are the plain run's.
  noise = lambda x: jnp.arange(num_devices) - (num_devices - 1) / 2
  for i in range(6):
    grads = helpers.gradients(params, i)
    spread = jax.tree.map(
      lambda g: (
        g[None].astype(jnp.float32)
        + noise(g).reshape(-1, *[1] * g.ndim) * jnp.abs(g[None]).astype(jnp.float32)
      ).astype(g.dtype),
      grads,
    )
    replicas = jax.block_until_ready(step(params, state, spread))
    for leaf in jax.tree.leaves(replicas):
      for replica in np.asarray(leaf)[1:]:
        np.testing.assert_array_equal(replica, leaf[0])
    params, state = jax.tree.map(lambda x: x[0], replicas)
  helpers.assert_zero_off_mask(params, jax.tree.map(np.asarray, sx.get_masks(state)))
  assert int(state.step) == 6


# ---------------------------------------------------------------- trees and trainers


class Model(nnx.Module):
  def __init__(self, rngs):
    self.hidden = nnx.Linear(8, 16, rngs=rngs)
    self.head = nnx.Linear(16, 4, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.relu(self.hidden(x)))


X = np.random.default_rng(0).normal(size=(32, 8)).astype(np.float32)
Y = np.sin(3 * X[:, :4])


def test_nnx_optimizer():
  model = Model(nnx.Rngs(0))
  budgets = sx.allocate(nnx.state(model, nnx.Param), 0.6).budgets
  tx = srigl(optax.adam(0.01), drop_fraction=lambda step: 0.3)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  nnx.update(model, sx.apply_masks(nnx.state(model, nnx.Param), sx.get_masks(optimizer.opt_state)))

  @nnx.jit
  def step(model, optimizer):
    loss, grads = nnx.value_and_grad(lambda model: jnp.mean((model(X) - Y) ** 2))(model)
    optimizer.update(model, grads)
    return loss

  losses, masks = [], sx.get_masks(optimizer.opt_state)
  for i in range(1, 8):
    losses.append(float(step(model, optimizer)))
    now = sx.get_masks(optimizer.opt_state)
    assert all(isinstance(mask, jax.Array) for mask in now.values())
    params = nnx.state(model, nnx.Param)
    helpers.assert_zero_off_mask(params, jax.tree.map(np.asarray, now))
    helpers.assert_constant_fan_in(jax.tree.map(np.asarray, now), budgets, {"hidden/kernel"})
    state = sx.get_state(optimizer.opt_state)
    moments = leaf_dict(state.inner_state)
    assert not np.asarray(moments["0/mu/hidden/kernel"])[~np.asarray(now["hidden/kernel"])].any()
    assert changed(masks, now) == (i in (3, 6))
    masks = now
    assert int(state.step) == i
  assert losses[-1] < losses[0]


def test_linen_train_state():
  model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
  params = model.init(jax.random.key(0), X)["params"]
  state = TrainState.create(apply_fn=model.apply, params=params, tx=srigl(optax.adam(0.01)))
  state = state.replace(params=sx.apply_masks(state.params, sx.get_masks(state.opt_state)))

  @jax.jit
  def step(state):
    loss = lambda params: jnp.mean((state.apply_fn({"params": params}, X) - Y) ** 2)
    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  for _ in range(6):
    state = jax.block_until_ready(step(state))
    masks = jax.tree.map(np.asarray, sx.get_masks(state))  # in any nesting: the whole TrainState
    helpers.assert_zero_off_mask(state.params, masks)
  assert set(masks) == {"layers_0/kernel", "layers_2/kernel"}


def test_list_of_arrays():
  rng = np.random.default_rng(0)
  params = [jnp.asarray(rng.normal(size=(6, 6)), jnp.float32) for _ in range(12)]
  training = Training(srigl(SGD, ablate=False), params)
  assert list(training.masks) == [str(i) for i in range(12)]
  for now in training.run(3):
    helpers.assert_zero_off_mask(now.params, now.masks)
    trace = now.state.inner_state[0].trace
    for i, moment in enumerate(trace):
      assert not np.asarray(moment)[~now.masks[str(i)]].any()
  # Each layer got its own path's treatment: masks drawn and updated apart.
  assert len({mask.tobytes() for mask in training.masks.values()}) == 12
