"""Parameters too large for one device: the transformation under `jit` with sharded arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import srigl_jax as sx
from tests.helpers import mostly_slow

SHAPES = {"up/kernel": (16, 32), "down/kernel": (32, 16), "conv/kernel": (3, 3, 8, 16)}
SPECS = {
  "up/kernel": PartitionSpec(None, "model"),  # neurons on different devices
  "down/kernel": PartitionSpec("model", None),  # inputs on different devices
  "conv/kernel": PartitionSpec(None, None, "data", "model"),
}
METHODS = {
  "srigl": lambda inner: sx.srigl(
    inner, sparsity=0.7, update_every=2, update_until=9, gamma_sal=0.9, seed=1
  ),
  "rigl": lambda inner: sx.rigl(inner, sparsity=0.7, update_every=2, update_until=9, seed=1),
  "set": lambda inner: sx.set_(inner, sparsity=0.7, update_every=2, update_until=9, seed=1),
}


def params():
  rng = np.random.default_rng(0)
  return {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in SHAPES.items()}


def grads(step):
  """Some gradients; the same in every run, so that only the topology update can differ."""
  rng = np.random.default_rng(step + 1)
  return {path: jnp.asarray(rng.normal(size=s), jnp.float32) for path, s in SHAPES.items()}


def run(tx, place, num_steps=8):
  """Parameters and masks after every step, arrays placed as they should lie."""
  init = jax.jit(lambda p: (lambda s: (sx.apply_masks(p, sx.get_masks(s)), s))(tx.init(p)))
  current, state = init(place(params()))

  @jax.jit
  def step(current, state, gradients):
    updates, state = tx.update(gradients, state, current)
    return optax.apply_updates(current, updates), state

  history = []
  for i in range(num_steps):
    current, state = step(current, state, place(grads(i)))
    history.append((current, sx.get_masks(state)))
  return history


@pytest.mark.parametrize("method", mostly_slow(METHODS, {"srigl"}))
def test_sharded_equals_unsharded(method):
  tx = METHODS[method](optax.adam(1e-2))
  mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
  sharded = {path: NamedSharding(mesh, spec) for path, spec in SPECS.items()}
  with_mesh = run(tx, lambda tree: jax.device_put(tree, sharded))
  whole = run(tx, lambda tree: tree)
  changed = 0
  for i, ((actual, masks), (expected, expected_masks)) in enumerate(
    zip(with_mesh, whole, strict=True)
  ):
    for path in SHAPES:
      np.testing.assert_array_equal(masks[path], expected_masks[path], err_msg=path)
      np.testing.assert_allclose(actual[path], expected[path], rtol=1e-6, atol=1e-7, err_msg=path)
      assert not np.asarray(actual[path])[~np.asarray(masks[path])].any()
      if i:
        changed += (np.asarray(masks[path]) != np.asarray(whole[i - 1][1][path])).any()
  assert changed >= 3
  # Nothing was gathered on the way: parameters lie as they were put.
  final = with_mesh[-1][0]
  assert final["up/kernel"].sharding.shard_shape((16, 32)) == (16, 8)
  assert final["down/kernel"].sharding.shard_shape((32, 16)) == (8, 16)
