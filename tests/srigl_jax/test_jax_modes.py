"""JAX's modes: no jit, doubles, strict promotion, other processes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx

SCHEDULE = {"update_every": 1, "update_until": 9}
SGD = optax.sgd(0.1, momentum=0.9)
METHODS = {
  "srigl": lambda: sx.srigl(SGD, sparsity=0.5, **SCHEDULE),
  "rigl": lambda: sx.rigl(SGD, sparsity=0.5, **SCHEDULE),
  "set_": lambda: sx.set_(SGD, sparsity=0.5, **SCHEDULE),
  "snfs": lambda: sx.snfs(SGD, sparsity=0.5, **SCHEDULE),
  "nm_srigl": lambda: sx.nm_srigl(SGD, 2, 4, **SCHEDULE),
  "sr_ste": lambda: sx.sr_ste(SGD, 2, 4),
  "static_sparse": lambda: sx.static_sparse(SGD, sparsity=0.5),
  "gradual": lambda: sx.gradual_magnitude_pruning(
    SGD, sparsity=0.5, begin_step=0, end_step=4, update_every=1
  ),
  "global": lambda: sx.one_shot_pruning(SGD, sparsity=0.5, prune_step=1, ranking="global"),
  "lottery": lambda: sx.lottery_ticket(SGD, steps_per_round=1, rounds=1, sparsity=0.5),
}


def parameters(dtype=jnp.float32):
  draw = lambda i, *shape: jax.random.normal(jax.random.key(i), shape, dtype)
  return {"a": {"kernel": draw(0, 8, 6)}, "head": {"kernel": draw(1, 4, 6)}}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", METHODS)
def test_strict_promotion(name, dtype):
  params = parameters(dtype)
  with jax.numpy_dtype_promotion("strict"):
    tx = METHODS[name]()
    state = jax.eval_shape(tx.init, params)
    jax.eval_shape(tx.update, params, state, params)


@pytest.mark.parametrize("name", METHODS)
def test_doubles(name):
  with jax.enable_x64(True):
    for dtype in (jnp.float32, jnp.float64):
      params = parameters(dtype)
      tx = METHODS[name]()
      state = jax.eval_shape(tx.init, params)
      updates, new = jax.eval_shape(tx.update, params, state, params)
      assert new == state and {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("name", ["srigl", "snfs"])
def test_without_jit(name):
  params, tx = {"a": parameters()["a"]}, METHODS[name]()  # one layer: it takes seconds
  state = jax.jit(tx.init)(params)
  grads = jax.tree.map(jnp.cos, params)
  _, want = jax.jit(tx.update)(grads, state, params)
  with jax.disable_jit():
    _, got = tx.update(grads, state, params)
  jax.tree.map(np.testing.assert_array_equal, got.masks, want.masks)
  assert any((got.masks[path] != state.masks[path]).any() for path in got.masks)
