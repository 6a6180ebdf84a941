"""The streamed update makes the patterns that `srigl_update` makes of dense arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_jax.condensed_training.ranking import DenseGradient
from srigl_jax.condensed_training.update import streamed_update
from tests.srigl_jax.condensed_training.layers import dense, random_layer

NUM_INPUTS, NUM_NEURONS, BUDGET = 24, 14, 85


@functools.cache
def updates(gamma_sal, salient_base, block_bytes):
  """Both updates, jitted: of (values, pattern, gradient) and of (weights, gradient, mask).

  Without `block_bytes`, the gradient is one that the native update takes, and has its exact values.
  """
  options = {"gamma_sal": gamma_sal, "salient_base": salient_base}

  def streamed(values, pattern, grads, fraction):
    block = lambda first, size: jax.lax.dynamic_slice_in_dim(grads, first, size, axis=1)
    given = {"block_bytes": block_bytes, **options} if block_bytes else options
    gradients = block if block_bytes else DenseGradient((jnp.eye(NUM_INPUTS), grads))
    moves = streamed_update(values, pattern, gradients, drop_fraction=fraction, **given)
    return moves.apply(values), moves.pattern, moves.source, moves.stays

  def masked(weights, grads, mask, fraction):
    return sx.srigl_update(weights, grads, mask, budget=BUDGET, drop_fraction=fraction, **options)

  return jax.jit(streamed), jax.jit(masked)


@pytest.mark.parametrize(
  ("gamma_sal", "salient_base", "block_bytes"),
  [
    (0, "constant_fan_in", 4 * NUM_INPUTS * 5),
    pytest.param(0.9, "constant_fan_in", 4 * NUM_INPUTS * 5, marks=pytest.mark.slow),
    (0.3, "dense_fan_in", 4 * NUM_INPUTS * NUM_NEURONS),
    (3, "constant_fan_in", 4 * NUM_INPUTS * 7),
    pytest.param(0, "constant_fan_in", None, marks=pytest.mark.slow),
    (0.9, "constant_fan_in", None),
    pytest.param(3, "constant_fan_in", None, marks=pytest.mark.slow),
  ],
)
def test_equals_the_update_of_masks(gamma_sal, salient_base, block_bytes):
  streamed, masked = updates(gamma_sal, salient_base, block_bytes)
  ablated = revived = overfull = 0
  for seed in range(60):
    rng = np.random.default_rng(seed)
    # Few levels and many zeros, so that keys tie within a neuron, in a row and over the layer.
    levels = [None, lambda rng, shape: rng.integers(-2, 3, shape)][seed % 2]
    num_active = [None, 5, 9, 12][seed % 4]
    values, pattern, weights, mask = random_layer(
      rng, NUM_INPUTS, NUM_NEURONS, BUDGET, num_active, levels
    )
    grads = rng.normal(size=weights.shape) * np.exp(2 * rng.normal(size=NUM_NEURONS))
    if seed % 3 == 1:
      grads = rng.integers(-1, 2, weights.shape) * (rng.random(NUM_NEURONS) < 0.5)
    grads = jnp.asarray(grads, jnp.float32)
    fraction = jnp.float32([0.3, 0.0, 1.0, 0.05, 0.7][seed % 5])
    moved, new, source, stays = streamed(values, pattern, grads, fraction)
    after = np.asarray(masked(weights, grads, mask, fraction))
    new_weights, new_mask = dense(moved, new)
    np.testing.assert_array_equal(new_mask, after, err_msg=str(seed))
    np.testing.assert_array_equal(new_weights, np.where(after & mask, weights, 0))
    assert int(stays.sum()) == np.sum(after & mask) == np.sum(np.asarray(source) >= 0)
    before, now = mask.any(0), after.any(0)
    ablated, revived = ablated + np.sum(before & ~now), revived + np.sum(now & ~before)
    overfull += int(pattern.fan_in) > int(new.fan_in)
  assert overfull and revived
  assert gamma_sal == 0 or ablated


def test_an_axis_of_one_device_costs_nothing():
  """As in the training loop, which is under `pmap` on any machine."""
  values, pattern, _, _ = random_layer(np.random.default_rng(0), NUM_INPUTS, NUM_NEURONS, BUDGET)

  def update(values, pattern, x, g, axis_name):
    gradients = DenseGradient((x, g), axis_name)
    options = {"drop_fraction": jnp.float32(0.3), "block_bytes": 4 * NUM_INPUTS}
    return streamed_update(values, pattern, gradients, **options)

  arrays = values, pattern, jnp.ones((3, NUM_INPUTS)), jnp.ones((3, NUM_NEURONS))
  with_axis = jax.pmap(functools.partial(update, axis_name="devices"), axis_name="devices")
  stacked = jax.tree.map(lambda x: jnp.asarray(x)[None], arrays)
  loops = lambda program, arrays: program.lower(*arrays).as_text().count("stablehlo.while")
  without = loops(jax.jit(functools.partial(update, axis_name=None)), arrays)
  assert loops(with_axis, stacked) == without
