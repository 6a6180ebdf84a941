"""SNFS: what moves between layers, against a reference in doubles."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import strategies as st

import srigl_jax as sx
from srigl_jax.layer_views import LayerView
from srigl_jax.layers import flax_axes
from srigl_jax.methods.snfs import divide
from tests.helpers import SGD
from tests.srigl_jax import reference
from tests.srigl_jax.methods.test_topology import exact, jit

SHAPES = {"a": (4, 5), "b": (2, 2, 2, 3), "c": (3, 4)}


@jit
def update(weights, scores, masks, fraction):
  return sx.snfs_update(
    {
      path: LayerView(
        path, flax_axes(path, w.shape), False, jnp.int32(0), w, scores[path], masks[path],
        jax.random.key(0), fraction, jnp.int32(1),
      )
      for path, w in weights.items()
    }
  )  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_agrees_with_the_reference(seed):
  rng = np.random.default_rng(seed)
  fraction = rng.choice([0.0, 0.3, 0.7, 1.0])
  scales = np.exp(2 * rng.normal(size=3)) * (rng.random(3) > 0.15)  # a layer may have no momentum
  draw = lambda shape: rng.normal(size=shape).astype(np.float32)
  weights = {path: draw(shape) for path, shape in SHAPES.items()}
  scores = {p: draw(s) * np.float32(x) for (p, s), x in zip(SHAPES.items(), scales, strict=True)}
  masks = {p: rng.random(shape) < rng.choice([0.2, 0.6, 0.95]) for p, shape in SHAPES.items()}
  got = update(weights, scores, masks, exact(fraction))
  flat = lambda x: x.reshape(-1, x.shape[-1])
  want = reference.snfs(
    [tuple(flat(x[path]) for x in (weights, scores, masks)) for path in SHAPES],
    drop_fraction=fraction,
  )
  for mask, path in zip(want, SHAPES, strict=True):
    np.testing.assert_array_equal(flat(np.asarray(got[path])), mask)
  assert sum(int(m.sum()) for m in got.values()) == sum(m.sum() for m in masks.values())


def test_by_hand():
  """Layer a has three times b's momentum: of four pruned weights it grows three."""
  weights = {"a": jnp.asarray([[4.0, 3, 2, 1, 0, 0, 0, 0]]), "b": jnp.asarray([[4.0, 3, 2, 1, 0]])}
  scores = {"a": jnp.asarray([[3.0, 3, 3, 3, 9, 8, 0, 0]]), "b": jnp.asarray([[1.0, 1, 1, 1, 7]])}
  new = update(weights, scores, {p: w != 0 for p, w in weights.items()}, exact(0.5))
  assert np.asarray(new["a"]).astype(int).tolist() == [[1, 1, 1, 0, 1, 1, 0, 0]]
  assert np.asarray(new["b"]).astype(int).tolist() == [[1, 1, 0, 0, 1]]


@hypothesis.given(st.data())
def test_parts_add_up_and_fit(data):
  room = data.draw(st.lists(st.integers(0, 50), min_size=4, max_size=4))
  total = data.draw(st.integers(0, sum(room)))
  weights = data.draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 3.0, 1e6]), min_size=4, max_size=4))
  parts = np.asarray(jit(divide)(total, jnp.asarray(weights, jnp.float32), jnp.asarray(room)))
  assert parts.sum() == total
  assert (parts >= 0).all() and (parts <= room).all()
  shares = total * np.asarray(weights) / max(sum(weights), 1e-9)
  if sum(weights) and (shares < np.asarray(room) - 1).all():  # nothing overflows
    assert (abs(parts - shares) < 1 + 1e-3).all()


def test_a_full_layer_passes_on_what_does_not_fit():
  parts = lambda *args: divide(*map(jnp.asarray, args)).tolist()
  assert parts(10, [8.0, 1, 1], [2, 9, 9]) == [2, 4, 4]
  assert parts(6, [1.0, 0, 0], [2, 9, 2]) == [2, 2, 2]


def test_scores_are_the_decaying_mean_of_dense_gradients():
  params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
  tx = sx.snfs(SGD, sparsity=0.5, update_every=10, update_until=20, grad_decay=0.75)
  state, mean = tx.init(params), np.zeros((4, 4))
  rng = np.random.default_rng(0)
  for _ in range(3):
    grad = rng.normal(size=(4, 4))
    _, state = tx.update({"a": jnp.asarray(grad, jnp.float32), "b": params["b"]}, state, params)
    mean = 0.75 * mean + 0.25 * grad
  np.testing.assert_allclose(state.grad_mean["a"], mean, rtol=1e-6, atol=1e-7)


def test_rejects_a_bad_decay():
  with pytest.raises(ValueError, match=r"grad_decay is 1\.0"):
    sx.snfs(optax.sgd(0.1), sparsity=0.5, update_until=9, grad_decay=1.0)
