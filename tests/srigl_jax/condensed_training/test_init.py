"""Patterns and weights start as masks with the same seed do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_jax.condensed_training import init
from srigl_jax.layers import make_layer
from srigl_jax.masks import random_mask
from srigl_jax.structures import ConstantFanIn
from tests.srigl_jax.condensed_training.layers import dense

SHAPE = (37, 53)


@pytest.mark.parametrize("block_bytes", [8 * 2**20, 4 * 37 * 20])
def test_patterns_are_the_masks_of_the_same_key(monkeypatch, block_bytes):
  monkeypatch.setattr(init, "_BLOCK_BYTES", block_bytes)
  key = jax.random.key(3)
  layer, budget = make_layer("kernel", SHAPE), 53 * 6 + 11
  pattern = init.init_pattern(key, layer, budget)
  mask = random_mask(key, layer, budget, ConstantFanIn())
  np.testing.assert_array_equal(dense(np.zeros(pattern.capacity), pattern)[1], mask)


@pytest.mark.parametrize("scheme", ["he_normal", "torch_uniform"])
def test_weights_are_those_of_init_sparse_weights(scheme):
  key = jax.random.key(5)
  params = {"kernel": jnp.zeros(SHAPE)}
  allocation = sx.allocate(params, fan_in=6)
  masks = sx.init_masks(key, allocation)
  expected = sx.init_sparse_weights(key, params, masks, scheme)["kernel"]
  patterns = init.init_patterns(key, allocation)
  values = init.init_condensed_weights(key, patterns, scheme)
  weights, mask = dense(values["kernel"], patterns["kernel"])
  np.testing.assert_array_equal(mask, masks["kernel"])
  np.testing.assert_array_equal(weights, expected)


def test_random_scores_are_blocks_of_uniform_numbers():
  pattern = init.init_pattern(jax.random.key(0), make_layer("kernel", SHAPE), 53)
  scores = init.random_scores(jax.random.key(7), pattern, 20, 30)
  np.testing.assert_array_equal(scores, jax.random.uniform(jax.random.key(7), SHAPE)[:, 20:50])


def test_positions_beyond_32_bits():
  inputs, neurons = np.array([5, 70_000, 2**31 - 2]), np.array([3, 650_000, 2**31 - 2])
  high, low = init._flat(jnp.uint32(inputs), jnp.uint32(neurons), 2**31 - 1)
  exact = [int(i) * (2**31 - 1) + int(n) for i, n in zip(inputs, neurons, strict=True)]
  assert [(int(h) << 32) | int(x) for h, x in zip(high, low, strict=True)] == exact


def test_other_random_numbers_are_refused():
  with pytest.raises(ValueError, match="threefry2x32"):
    init.init_pattern(jax.random.key(0, impl="rbg"), make_layer("kernel", SHAPE), 53)


def test_rigls_patterns_are_refused():
  allocation = sx.allocate({"kernel": jnp.zeros(SHAPE)}, 0.9, structure="unstructured")
  with pytest.raises(ValueError, match="RigL"):
    init.init_patterns(jax.random.key(0), allocation)
