"""Any optimizer inside, anything around: what weights that grow start with, and what is noticed."""

import functools
import logging
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import srigl_jax as sx

SCHEDULE = {"update_every": 1, "update_until": 99, "distribution": "uniform"}


def parameters():
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape)
  return {"a": draw(0, 6, 5), "b": draw(1, 5, 4)}


def gradients(i):
  return jax.tree.map(lambda x: jnp.cos(7.0 * x + i), parameters())


@functools.cache
def plain():
  return sx.rigl(optax.sgd(0.1), sparsity=0.5, **SCHEDULE)


def start(tx, params=None):
  params = parameters() if params is None else params
  state = tx.init(params)
  return sx.apply_masks(params, sx.get_masks(state)), state


def run(tx, steps, params, state, grads=gradients):
  for i in range(steps):
    updates, state = tx.update(grads(i), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def off_the_mask(params, state):
  masks = sx.get_masks(state)
  return {path: np.asarray(params[path])[~np.asarray(masks[path])] for path in masks}


@pytest.mark.parametrize(
  "inner",
  [
    pytest.param(optax.adagrad(0.1), marks=pytest.mark.slow),
    optax.rmsprop(0.1, initial_scale=1.0),
    contrib.cocob(),
  ],
)
def test_a_grown_weight_has_the_state_of_the_start(inner):
  """What `init` gives to a weight of 0, and not zeros."""
  tx = sx.rigl(inner, sparsity=0.5, drop_fraction=1.0, **SCHEDULE)
  params, state = start(tx)
  old = state.masks
  params, state = run(tx, 3, params, state)
  before = state.masks
  updates, state = tx.update(gradients(3), state, params)
  params = optax.apply_updates(params, updates)
  grown = state.masks["a"] & ~before["a"]
  assert grown.any() and (grown != old["a"]).any()
  updates, new = tx.update(gradients(4), state, params)
  zeros = jax.tree.map(jnp.zeros_like, params)
  first = jax.jit(lambda grads: inner.update(grads, inner.init(zeros), zeros)[0])(gradients(4))
  still = np.asarray(new.masks["a"] & grown)
  # Of RMSprop the mean of squares has decayed once, in the step in which the weight grew.
  np.testing.assert_allclose(updates["a"][still], first["a"][still], rtol=0.06)


def test_weights_drawn_after_init():
  """Prodigy remembers where the weights started: at those of the first step, not of `init`."""
  tx = sx.static_sparse(contrib.prodigy(), sparsity=0.5)
  _, state = start(tx)
  drawn = sx.init_sparse_weights(jax.random.key(3), parameters(), sx.get_masks(state))
  once, again = run(tx, 3, drawn, state), run(tx, 3, drawn, tx.init(drawn))
  jax.tree.map(np.testing.assert_array_equal, once, again)
  assert not (once[0]["a"] == drawn["a"]).all()


def test_optimizers_without_memory_of_weights_get_nothing_added():
  from srigl_jax.moments import start_from

  for inner in (optax.adam(0.1), optax.sgd(0.1, momentum=0.9), optax.MultiSteps(optax.lion(1), 2)):
    state = inner.init(parameters())
    assert start_from(inner, state, parameters(), jnp.int32(0)) is state


def test_a_gradient_that_the_guard_skips_leaves_no_trace():
  tx = sx.snfs(optax.apply_if_finite(optax.sgd(0.1), 5), sparsity=0.5, **SCHEDULE)
  params, state = run(tx, 2, *start(tx))
  nan = jax.tree.map(lambda x: x.at[0, 0].set(jnp.nan), gradients(2))
  updates, new = tx.update(nan, state, params)
  jax.tree.map(np.testing.assert_array_equal, new.grad_mean, state.grad_mean)
  assert all((u == 0).all() or path in new.masks for path, u in updates.items())
  assert all(jnp.isfinite(x).all() for x in optax.apply_updates(params, updates).values())
  assert new.noticed["skipped"] == 0  # its scores are sound


def test_weights_that_are_not_finite_are_not_pruned():
  """Nothing that one adds to NaN makes it 0; what is off the masks is 0 whatever happens."""
  params, state = run(plain(), 1, *start(plain()))
  nan = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), params)
  updates, new = plain().update(nan, state, params)
  params = optax.apply_updates(params, updates)
  params, new = run(plain(), 2, params, new)
  jax.tree.map(np.testing.assert_array_equal, dict(new.masks), dict(state.masks))
  assert all(jnp.isnan(params[p][mask]).all() for p, mask in state.masks.items())
  with pytest.warns(UserWarning, match="updates were left out"):
    assert all((x == 0).all() for x in off_the_mask(params, new).values())


@pytest.mark.parametrize(
  "frozen", [optax.set_to_zero(), pytest.param(optax.sgd(0.0), marks=pytest.mark.slow)]
)
def test_a_frozen_layer_keeps_its_weights(frozen):
  inner = optax.partition(
    {"train": optax.sgd(0.1), "frozen": frozen}, {"a": "frozen", "b": "train"}
  )
  tx = sx.snfs(inner, sparsity=0.5, **SCHEDULE)
  first, before = start(tx)
  params, state = run(tx, 4, first, before)
  np.testing.assert_array_equal(state.masks["a"], before.masks["a"])
  np.testing.assert_array_equal(params["a"], first["a"])
  assert (state.masks["b"] != before.masks["b"]).any()
  assert state.masks["b"].sum() == before.masks["b"].sum()


def test_what_moves_masked_weights_from_outside_is_noticed():
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    sx.get_masks(run(plain(), 4, *start(plain()))[1])
  params, state = start(plain())
  for i in range(2):  # as optax.scale(0.5) behind it
    updates, state = plain().update(gradients(i), state, params)
    params = optax.apply_updates(params, jax.tree.map(lambda u: u / 2, updates))
  with pytest.warns(UserWarning, match=r"optax\.lookahead"):
    sx.get_masks(state)


def test_a_state_of_other_settings_is_noticed():
  _, state = start(sx.rigl(optax.sgd(0.1), sparsity=0.7, **SCHEDULE))
  _, state = run(plain(), 2, parameters(), state)
  with pytest.warns(UserWarning, match="other sparsities"):
    sx.get_state(state)
  slower = {**SCHEDULE, "update_every": 3}
  averaging = sx.rigl(optax.sgd(0.1), sparsity=0.5, grad_accumulation_steps=3, **slower)
  with pytest.warns(UserWarning, match="last gradient alone"):
    jax.eval_shape(averaging.update, parameters(), state, parameters())
  with pytest.raises(ValueError, match="no mean of dense gradients"):
    jax.eval_shape(
      sx.snfs(optax.sgd(0.1), sparsity=0.5, **SCHEDULE).update, parameters(), state, parameters()
    )


def test_keys_survive_flat_names():
  from flax import serialization, traverse_util

  nested = {"block": {"a": parameters()["a"]}, "b": parameters()["b"]}
  for tx in (plain(), sx.lottery_ticket(optax.sgd(1), steps_per_round=2, rounds=1, sparsity=0.5)):
    state = tx.init(nested)
    flat = traverse_util.flatten_dict(
      serialization.to_state_dict(state), sep="/", keep_empty_nodes=True
    )
    assert "masks/block/a" in flat
    back = traverse_util.unflatten_dict(flat, sep="/")
    restored = serialization.from_state_dict(tx.init(nested), back)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
  former = serialization.to_state_dict(state) | {"masks": dict(state.masks)}  # flat, as once
  restored = serialization.from_state_dict(state, former)
  jax.tree.map(np.testing.assert_array_equal, restored, state)
  with pytest.raises(ValueError, match="another model"):
    serialization.from_state_dict(state, former | {"masks": {}})


def test_eager_steps_compile_once():
  params, state = run(plain(), 1, *start(plain()))
  records = []
  handler = logging.Handler()
  handler.emit = lambda record: records.append(record.getMessage())
  logger = logging.getLogger("jax")
  logger.addHandler(handler)
  try:
    with jax.log_compiles():
      _, state = plain().update(params, state, params)
      plain().update(params, state, params)
  finally:
    logger.removeHandler(handler)
  assert not [message for message in records if "Finished XLA compilation" in message]


def test_a_transformation_travels():
  cloudpickle = pytest.importorskip("cloudpickle")
  there = cloudpickle.loads(cloudpickle.dumps(plain()))
  state = there.init(parameters())
  jax.tree.map(np.testing.assert_array_equal, state, plain().init(parameters()))
  jax.eval_shape(there.update, parameters(), state, parameters())


def test_a_layer_too_large_to_count():
  params = {
    "up": jax.ShapeDtypeStruct((65536, 65536), jnp.bfloat16),
    "b": jax.ShapeDtypeStruct((65536, 32), jnp.bfloat16),
  }
  assert math.prod(params["up"].shape) > 2**31
  for tx in (plain(), sx.sr_ste(optax.sgd(0.1))):
    with pytest.raises(ValueError, match=r"Layer 'up' has 4,294,967,296 weights.*sparse=all_but"):
      jax.eval_shape(tx.init, params)
