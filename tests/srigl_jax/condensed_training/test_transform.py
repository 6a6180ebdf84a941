"""Whole trajectories of the two engines: the same masks, weights and moments to rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax.condensed_training import init, methods
from srigl_jax.condensed_training.tree import pattern_mask, to_condensed
from srigl_jax.layers import leaf_dict
from srigl_jax.schedule import cosine_drop_fraction
from srigl_kernels.training import sparse_linear

SIZES = (24, 24, 24, 8)  # the first two layers are alike, and compiled as one
LAYERS = ("fc1", "fc2", "head")
BLOCK_BYTES = 4 * 24 * 12  # two blocks of neurons for them
SCHEDULE = {"update_every": 3, "update_until": 20}
FAN_IN = {f"{name}/kernel": k for name, k in zip(LAYERS, (4, 4, 5), strict=True)}


def shapes():
  sizes = zip(LAYERS, SIZES[:-1], SIZES[1:], strict=True)
  return {name: {"kernel": jnp.zeros((i, n)), "bias": jnp.zeros(n)} for name, i, n in sizes}


def batch(step):
  rng = np.random.default_rng(step)
  return jnp.asarray(rng.normal(size=(16, 24)), jnp.float32), jnp.asarray(rng.integers(0, 8, 16))


def loss_of(linear, params, x, labels):
  for name in LAYERS[:-1]:
    x = jnp.tanh(linear(name, params[name], x))
  logits = linear(LAYERS[-1], params[LAYERS[-1]], x)
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def masked_run(tx, num_steps):
  """After each step: masks and parameters, by path."""
  params, key = shapes(), jax.random.key(0)
  masks = sx.init_masks(key, sx.allocate(params, fan_in=FAN_IN))
  params = sx.init_sparse_weights(jax.random.key(1), params, masks)
  state = tx.init(params)
  linear = lambda _, layer, x: x @ layer["kernel"] + layer["bias"][None]

  @jax.jit
  def step(params, state, x, labels):
    grads = jax.grad(lambda p: loss_of(linear, p, x, labels))(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for i in range(num_steps):
    params, state = step(params, state, *batch(i))
    yield sx.get_masks(state), leaf_dict(params), sx.get_state(state).inner_state


def start():
  params, key = shapes(), jax.random.key(0)
  patterns = init.init_patterns(key, sx.allocate(params, fan_in=FAN_IN))
  values = init.init_condensed_weights(jax.random.key(1), patterns)
  for path, layer_values in values.items():
    params[path.split("/")[0]]["kernel"] = layer_values
  return params, patterns


def step_of(tx, rows, axis_name=None):
  """A training step on batches of so many rows."""

  def step(params, patterns, state, x, labels):
    probes = {
      path: (jnp.zeros((rows, p.in_features)), jnp.zeros((rows, p.out_features)))
      for path, p in patterns.items()
    }

    def loss(params, probes):
      def linear(name, layer, x):
        path = f"{name}/kernel"
        return sparse_linear(x, layer["kernel"], patterns[path], layer["bias"], probe=probes[path])

      return loss_of(linear, params, x, labels)

    grads, signals = jax.grad(loss, argnums=(0, 1))(params, probes)
    grads = grads if axis_name is None else jax.lax.pmean(grads, axis_name)
    return tx.update(grads, signals, state, params, patterns)

  return step


def condensed_run(tx, num_steps):
  params, patterns = start()
  state = tx.init(params, patterns)
  step = jax.jit(step_of(tx, 16))
  for i in range(num_steps):
    params, patterns, state = step(params, patterns, state, *batch(i))
    yield patterns, leaf_dict(params), state.inner_state
  assert step._cache_size() == 1  # ablation recompiles nothing


def expand(values, pattern):
  kernel, mask, _ = sx.expand(to_condensed(values, pattern))
  return np.asarray(kernel), np.asarray(mask)


CLIPPED = optax.chain(optax.clip_by_global_norm(0.5), optax.adamw(0.03, weight_decay=0.1))
MOMENTUM = optax.sgd(0.2, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
  ("inner", "options"),
  [
    (CLIPPED, {"gamma_sal": 0.95, "drop_fraction": 0.6, "ablate": True}),
    (MOMENTUM, {"gamma_sal": 0}),
  ],
)
def test_masks_and_weights_agree_over_the_whole_run(inner, options):
  options = {**SCHEDULE, **options}
  masked = masked_run(sx.srigl(inner, fan_in=FAN_IN, **options), 24)
  condensed = condensed_run(methods.condensed_srigl(inner, block_bytes=BLOCK_BYTES, **options), 24)
  ablated, revived, before = 0, 0, None
  for i, ((masks, weights, moments), (patterns, params, moved)) in enumerate(
    zip(masked, condensed, strict=True)
  ):
    for path, pattern in patterns.items():
      kernel, mask = expand(params[path], pattern)
      np.testing.assert_array_equal(mask, masks[path], err_msg=f"{path} after step {i + 1}")
      np.testing.assert_array_equal(pattern_mask(pattern), mask)
      np.testing.assert_allclose(kernel, weights[path], rtol=1e-4, atol=1e-5)
      for (where, a), (_, b) in zip(
        sorted(leaf_dict(moments).items()), sorted(leaf_dict(moved).items()), strict=True
      ):
        if where.endswith(path):
          np.testing.assert_allclose(expand(b, pattern)[0], a, rtol=1e-3, atol=1e-6)
    now = {path: np.asarray(mask).any(0) for path, mask in masks.items()}
    if before:
      ablated += sum(int((before[p] & ~now[p]).sum()) for p in now)
      revived += sum(int((now[p] & ~before[p]).sum()) for p in now)
    before = now
  assert (ablated and revived) or not options["gamma_sal"]


def test_devices_and_a_scan_find_the_patterns_of_one_device_and_a_loop():
  """Two devices with half of a batch each, and three steps scanned in donated memory."""
  options = {"gamma_sal": 0.95, "ablate": True, "block_bytes": BLOCK_BYTES, **SCHEDULE}
  params, patterns = start()
  tx = methods.condensed_srigl(MOMENTUM, axis_name="batch", **options)
  state = tx.init(params, patterns)
  batches = jax.tree.map(lambda *xs: jnp.stack(xs), *map(batch, range(3)))
  step = step_of(tx, 8, "batch")

  def scanned(params, patterns, state, batches):
    return jax.lax.scan(
      lambda carry, b: (step(*carry, *b), None), (params, patterns, state), batches
    )[0]

  halves = jax.tree.map(lambda x: x.reshape(3, 2, 8, *x.shape[2:]).swapaxes(0, 1), batches)
  run = jax.pmap(
    scanned, axis_name="batch", in_axes=(None, None, None, 0), out_axes=None, donate_argnums=(0, 2)
  )
  *_, (expected, *_) = condensed_run(methods.condensed_srigl(MOMENTUM, **options), 3)
  _, found, state = run(params, patterns, state, halves)
  assert int(state.step) == 3
  for path, pattern in found.items():
    np.testing.assert_array_equal(pattern_mask(pattern), pattern_mask(expected[path]))
    assert not np.array_equal(pattern_mask(pattern), pattern_mask(patterns[path]))


def test_a_step_without_signals_leaves_the_patterns():
  tx = methods.condensed_srigl(optax.adam(0.1), **SCHEDULE)
  params, patterns = start()
  state = tx.init(params, patterns)
  assert [i + 1 for i in range(22) if tx.needs_signals(i)] == [3, 6, 9, 12, 15, 18]
  for _ in range(3):
    grads = jax.tree.map(jnp.ones_like, params)
    params, after, state = tx.update(grads, None, state, params, patterns)
  assert jax.tree.all(jax.tree.map(jnp.array_equal, after, dict(patterns)))


def test_set_is_the_update_of_masks_with_random_scores():
  tx = methods.condensed_set(optax.sgd(0.1), update_every=1, update_until=4, seed=5)
  params, patterns = start()
  state = tx.init(params, patterns)
  grads = jax.tree.map(jnp.zeros_like, params)
  _, after, state = jax.jit(tx.update)(grads, {}, state, params, patterns)
  key = jax.random.fold_in(jax.random.key(5), 1)
  for i, (path, pattern) in enumerate(after.items()):
    kernel, mask = expand(leaf_dict(params)[path], patterns[path])
    expected = sx.srigl_update(
      jnp.asarray(kernel),
      jax.random.uniform(jax.random.fold_in(key, i), mask.shape),
      jnp.asarray(mask),
      budget=pattern.capacity,
      drop_fraction=cosine_drop_fraction(1, 0.3, 4),
      gamma_sal=0,
    )
    np.testing.assert_array_equal(pattern_mask(pattern), expected)
    assert not np.array_equal(mask, expected)


def test_static_patterns_never_change():
  tx = methods.condensed_static(optax.sgd(0.1))
  params, patterns = start()
  grads = jax.tree.map(jnp.ones_like, params)
  _, after, state = tx.update(grads, {}, tx.init(params, patterns), params, patterns)
  assert int(state.step) == 1
  assert jax.tree.all(jax.tree.map(jnp.array_equal, after, dict(patterns)))


@pytest.mark.parametrize(
  "inner",
  [optax.adafactor(0.1, min_dim_size_to_factor=1), optax.contrib.muon(0.1), optax.sm3(0.1)],
)
def test_optimizers_that_see_matrices_are_refused(inner):
  with pytest.raises(ValueError, match="each weight by itself"):
    methods.condensed_static(inner).init(*start())


def test_dense_kernels_are_refused():
  _, patterns = start()
  with pytest.raises(ValueError, match="not the dense kernel"):
    methods.condensed_static(optax.sgd(0.1)).init(shapes(), patterns)
