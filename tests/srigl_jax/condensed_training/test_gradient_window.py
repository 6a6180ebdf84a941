"""The gradients of several batches, kept until a topology update, are those of all batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_jax.condensed_training.gradient_window import GradientWindow, Mean, window_gradient
from srigl_jax.mask_updates import MaskUpdater
from tests.srigl_jax.condensed_training.layers import random_layer

NUM_INPUTS, NUM_NEURONS, DEVICES = 40, 30, 2
UPDATER = MaskUpdater(lambda _: {}, 3, 20, grad_accumulation_steps=2)  # the last 2 of 3 steps


@pytest.mark.parametrize("rows", [1, 8])  # of a device: signals are smaller, then the mean is
def test_window(rows):
  rng = np.random.default_rng(0)
  patterns = {"kernel": random_layer(rng, NUM_INPUTS, NUM_NEURONS, 60)[1]}
  window = GradientWindow(UPDATER, accumulation_steps=2, axis_name="devices")
  assert window.size == 4
  draw = lambda n: jnp.asarray(rng.normal(size=(12, DEVICES, rows, n)), jnp.float32)
  x, g = draw(NUM_INPUTS), draw(NUM_NEURONS)
  whole = {
    "kernel": tuple(jax.ShapeDtypeStruct((DEVICES * rows, a.shape[-1]), a.dtype) for a in (x, g))
  }
  kept = window.empty(whole, patterns)
  assert isinstance(kept["kernel"], Mean) == (rows == 8)
  axes = {"axis_name": "devices", "in_axes": (None, 0, None, None), "out_axes": None}
  add = functools.partial(jax.pmap, **axes, devices=jax.devices()[:DEVICES])(
    lambda kept, signals, step, batch: window.with_batch(kept, signals, step, batch)
  )
  for i in range(12):  # six steps of two batches: two windows
    kept = add(kept, {"kernel": (x[i], g[i])}, jnp.int32(i // 2), jnp.int32(i % 2))
    if i in (5, 11):
      found = window_gradient(kept["kernel"])(0, NUM_NEURONS)
      last = slice(i - 3, i + 1)
      expected = np.einsum("bdri,bdrn->in", x[last], g[last])
      scale = 4 * DEVICES if rows == 8 else 1
      np.testing.assert_allclose(scale * found, expected, rtol=1e-4, atol=1e-4)
