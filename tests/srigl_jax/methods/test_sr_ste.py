"""SR-STE against numpy in doubles, and what tells it from the other methods."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from tests import helpers
from tests.helpers import SGD, Training, changed
from tests.srigl_jax import reference

SHAPES = {"conv/kernel": (1, 2, 4, 3), "head/kernel": (8, 5)}


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (1, 8)])
def test_agrees_with_the_reference(n, m):
  rng = np.random.default_rng(n + m)
  params = {path: rng.normal(size=shape) for path, shape in SHAPES.items()}
  params["bias"] = rng.normal(size=5)
  tx = sx.sr_ste(optax.sgd(0.2, momentum=0.9), n, m, decay=0.1)
  single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
  state, update = tx.init(single(params)), jax.jit(tx.update)
  got = sx.apply_masks(single(params), sx.get_masks(state))

  flat = lambda x: x.reshape(-1, x.shape[-1])
  mask_of = lambda w: reference.n_of_m(flat(w), n, m).reshape(w.shape)
  w, v = dict(params), dict.fromkeys(params, 0.0)
  masks = {path: mask_of(w[path]) for path in SHAPES}
  flips = 0
  for _ in range(6):
    grads = {path: rng.normal(size=x.shape) for path, x in params.items()}
    updates, state = update(single(grads), state, got)
    got = optax.apply_updates(got, updates)
    for path in w:
      hidden = 0.1 * w[path] * ~masks[path] if path in masks else 0
      v[path] = 0.9 * v[path] + grads[path] + hidden
      w[path] = w[path] - 0.2 * v[path]
    new = {path: mask_of(w[path]) for path in SHAPES}
    flips += sum(int((new[path] & ~masks[path]).sum()) for path in SHAPES)
    masks = new
    for path in SHAPES:
      np.testing.assert_array_equal(state.masks[path], masks[path])
      np.testing.assert_allclose(state.extra[path], w[path], rtol=1e-5, atol=1e-6)
      np.testing.assert_allclose(got[path], w[path] * masks[path], rtol=1e-5, atol=1e-6)
      assert not np.asarray(got[path])[~masks[path]].any()
    np.testing.assert_allclose(got["bias"], w["bias"], rtol=1e-5)
  assert flips > 10


@pytest.mark.parametrize("inner", [SGD, optax.adamw(0.01)], ids=["sgd", "adamw"])
def test_invariants(inner):
  training = Training(sx.sr_ste(inner, 2, 4))
  helpers.assert_can_be_donated(training.params, training.state)
  before, explored, masks = helpers.signature(training.state), training.masks, training.masks
  moved = False
  for now in training.run(5):
    assert helpers.signature(now.state) == before
    helpers.assert_zero_off_mask(now.params, now.masks)
    for path, mask in now.masks.items():
      assert (mask.reshape(-1, 4, mask.shape[-1]).sum(1) == 2).all()
      explored[path] = explored[path] | mask
      np.testing.assert_array_equal(now.state.explored[path], explored[path])
    moved |= changed(masks, now.masks)
  assert moved and training.traces == 1 and int(training.state.step) == 5


def test_visible_weights_are_the_truth():
  """What is done to the parameters between steps counts; what is hidden is remembered."""
  params = {"w": jnp.asarray([[4.0], [3], [2], [1]])}
  tx = sx.sr_ste(optax.sgd(1.0), 2, 4, decay=0.0)
  state = tx.init(params)
  changed = {"w": jnp.asarray([[0.5], [3], [0], [0]])}
  updates, state = tx.update({"w": jnp.zeros((4, 1))}, state, changed)
  assert optax.apply_updates(changed, updates)["w"].ravel().tolist() == [0, 3, 2, 0]
  assert state.extra["w"].ravel().tolist() == [0.5, 3, 2, 1]


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: sx.sr_ste(SGD, 5, 4), "n is 5 and m is 4"),
    (lambda: sx.sr_ste(SGD, decay=-1), "decay is -1"),
    (lambda: sx.sr_ste(SGD, 2, 5).init(helpers.params()), "no multiple of block_size=5"),
    (
      lambda: sx.sr_ste(SGD).update(helpers.params(), sx.sr_ste(SGD).init(helpers.params())),
      "needs the parameters",
    ),
  ],
)
def test_rejects(make, message):
  with pytest.raises(ValueError, match=message):
    make()
