import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from srigl_jax.layers import leaf_dict
from srigl_jax.moments import mask_moments

MASKS = {
  "block/kernel": jnp.asarray([[True, False], [False, True], [True, True]]),
  "head/kernel": jnp.asarray([[False, True, True], [True, False, True]]),
}


def params():
  return {
    "block": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(2)},
    "head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)},
  }


def filled(state, value=7):
  """The state with every array filled, so that what masking leaves alone is seen."""
  return jax.tree.map(lambda x: jnp.full_like(x, value), state)


def check(tx, tree=None, masks=MASKS):
  """Masks a filled state; returns how many leaves it changed, all of them rightly."""
  tree = params() if tree is None else tree
  state = filled(tx.init(tree))
  masked = mask_moments(state, tree, masks)
  assert jax.tree.structure(masked) == jax.tree.structure(state)
  changed = 0
  for path, leaf in leaf_dict(masked).items():
    assert leaf.dtype == leaf_dict(state)[path].dtype
    mask = next((m for p, m in masks.items() if f"/{path}".endswith(f"/{p}")), None)
    if mask is None or leaf.shape != mask.shape:
      np.testing.assert_array_equal(leaf, leaf_dict(state)[path])
    else:
      changed += 1
      np.testing.assert_array_equal(leaf, np.where(mask, 7, 0), err_msg=path)
  return changed


@pytest.mark.parametrize(
  ("tx", "num_masked"),
  [
    (optax.sgd(0.1), 0),
    (optax.sgd(0.1, momentum=0.9), 2),
    (optax.adam(0.1), 4),
    (optax.amsgrad(0.1), 6),
    (optax.rmsprop(0.1, centered=True, momentum=0.9), 6),
    (optax.lion(0.1), 2),
    (optax.adagrad(0.1), 2),
    (optax.ema(0.9), 2),
    (optax.chain(optax.clip(1.0), optax.chain(optax.trace(0.9), optax.scale_by_adam())), 6),
    (optax.inject_hyperparams(optax.adamw)(learning_rate=0.1), 4),
    (optax.MultiSteps(optax.adam(0.1), 2), 6),
    (optax.masked(optax.adam(0.1), {"block": True, "head": {"kernel": False, "bias": True}}), 2),
    (
      optax.multi_transform(
        {"a": optax.adam(0.1), "b": optax.trace(0.9)}, {"block": "a", "head": "b"}
      ),
      3,
    ),
    (optax.apply_if_finite(optax.adam(0.1), 3), 4),
    (optax.flatten(optax.adam(0.1)), 0),  # one vector for all parameters: no longer theirs
  ],
)
def test_every_param_shaped_leaf_is_masked(tx, num_masked):
  assert check(tx) == num_masked


def test_factored_moments_stay_as_they_are():
  tx = optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9)
  assert check(tx) == 2  # the momenta
  assert check(optax.adafactor(0.1, momentum=0.9)) == 4  # too small to be factored


def test_dtypes_are_kept():
  assert check(optax.adam(0.1, mu_dtype=jnp.bfloat16)) == 4


def test_list_of_arrays():
  tree = [jnp.ones((2, 2)) for _ in range(12)]
  eye = jnp.eye(2, dtype=bool)
  state = filled(optax.adam(0.1).init(tree))
  masked = mask_moments(state, tree, {"1": eye, "10": ~eye})
  for moments in (masked[0].mu, masked[0].nu):
    np.testing.assert_array_equal(moments[1], 7 * np.eye(2))
    np.testing.assert_array_equal(moments[10], 7 * (1 - np.eye(2)))
    assert all((moments[i] == 7).all() for i in range(12) if i not in (1, 10))


def test_single_array():
  eye = jnp.eye(2, dtype=bool)
  masked = mask_moments(filled(optax.adam(0.1).init(jnp.ones((2, 2)))), jnp.ones((2, 2)), {"": eye})
  np.testing.assert_array_equal(masked[0].mu, 7 * np.eye(2))
  assert masked[0].count == 7


def test_nnx_state():
  tree = nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), nnx.Param)
  masks = {"kernel": MASKS["block/kernel"]}
  assert check(optax.adam(0.1), tree, masks) == 2


def test_one_parameters_path_may_end_another():
  """The longest parameter path that a state leaf's path ends in is meant."""
  tree = {"kernel": jnp.ones((2, 2)), "deep": {"kernel": jnp.ones((2, 2))}}
  eye = jnp.eye(2, dtype=bool)
  (state, *_) = mask_moments(filled(optax.adam(0.1).init(tree)), tree, {"kernel": eye})
  np.testing.assert_array_equal(state.mu["kernel"], 7 * np.eye(2))
  assert (state.mu["deep"]["kernel"] == 7).all()
  (state, *_) = mask_moments(filled(optax.adam(0.1).init(tree)), tree, {"deep/kernel": eye})
  np.testing.assert_array_equal(state.mu["deep"]["kernel"], 7 * np.eye(2))
  assert (state.mu["kernel"] == 7).all()


def test_parameters_named_like_moments():
  """A variational encoder's `mu` beside Adam's."""
  tree = {"mu": {"kernel": jnp.ones((2, 2))}, "nu": {"kernel": jnp.ones((2, 2))}}
  eye = jnp.eye(2, dtype=bool)
  (state, *_) = mask_moments(filled(optax.adam(0.1).init(tree)), tree, {"mu/kernel": eye})
  for moments in (state.mu, state.nu):
    np.testing.assert_array_equal(moments["mu"]["kernel"], 7 * np.eye(2))
    assert (moments["nu"]["kernel"] == 7).all()


def test_nan_moments_of_masked_weights_go_too():
  tx = optax.trace(0.9)
  state = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), tx.init(params()))
  masked = mask_moments(state, params(), MASKS)
  trace = masked.trace["block"]["kernel"]
  assert (trace[~MASKS["block/kernel"]] == 0).all()
