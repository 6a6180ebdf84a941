import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax.layers import Axes
from tests import helpers
from tests.helpers import SCHEDULE, SGD, Training, changed, num_weights, rigl, srigl


def test_seed():
  masks = [sx.get_masks(srigl(SGD, seed=seed).init(helpers.params())) for seed in (0, 0, 1)]
  assert not changed(masks[0], masks[1])
  assert changed(masks[0], masks[2])


def test_random_growth_differs_from_update_to_update_and_layer_to_layer():
  params = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 16))}
  tx = sx.set_(
    optax.sgd(0.0),
    distribution={"a": 0.5, "b": 0.5},
    update_every=1,
    update_until=9,
    drop_fraction=lambda step: 1.0,  # all grow anew
  )
  state = tx.init(params)
  masks = []
  update = jax.jit(tx.update)
  for _ in range(2):
    _, state = update(params, state, params)
    masks += [state.masks["a"], state.masks["b"]]
  for i in range(4):
    for j in range(i):
      assert 0.3 < np.mean(masks[i] == masks[j]) < 0.7


# ---------------------------------------------------------------- layers, layouts, arguments


def test_layers_that_are_not_ablated_and_not_sparse():
  params = {"a": helpers.params()["conv"], "b": helpers.params()["conv"], "c": jnp.ones((8, 8))}
  training = Training(srigl(SGD, sparse=sx.all_but("c"), ablate=sx.only("^a/")), params)
  (*_, end) = training.run(6)
  assert set(end.masks) == {"a/kernel", "b/kernel"}
  assert (helpers.neuron_fan_ins(end.masks["a/kernel"], "a/kernel") == 0).any()
  assert (helpers.neuron_fan_ins(end.masks["b/kernel"], "b/kernel") > 0).all()
  assert np.asarray(end.params["c"]).all()


def test_attention_projections_keep_a_fan_in_for_every_head_and_dim():
  """The layout that a layer's path decides holds in topology updates too."""
  rng = np.random.default_rng(0)
  shapes = {"query": (12, 3, 4), "value": (12, 3, 4), "out": (3, 4, 12)}
  scales = {"query": (3, 4), "value": (3, 4), "out": (12,)}
  params = {
    "attn": {
      name: {
        "kernel": jnp.asarray(
          rng.normal(size=shape) * np.exp(rng.normal(size=scales[name])), jnp.float32
        )
      }
      for name, shape in shapes.items()
    },
    "head": {"kernel": jnp.asarray(rng.normal(size=(12, 5)), jnp.float32)},
  }
  budgets = sx.allocate(params, 0.7).budgets
  training = Training(srigl(SGD, sparsity=0.7, drop_fraction=0.5), params)
  attention = {path for path in budgets if path != "head/kernel"}
  masks = training.masks
  for now in training.run(6):
    helpers.assert_constant_fan_in(now.masks, budgets, attention)
  assert all((masks[path] != training.masks[path]).any() for path in attention)


def test_own_axes_for_another_layout():
  params = jax.tree.map(lambda x: jnp.transpose(x), helpers.params())  # (out, in, ...)
  axes = lambda path, shape: Axes((0,), tuple(range(2, len(shape))))
  tx = srigl(SGD, axes=axes)
  training = Training(tx, params)
  for now in training.run(6):
    for path, mask in now.masks.items():
      fan_ins = mask.reshape(len(mask), -1).sum(1)
      assert len(set(fan_ins.tolist()) - {0}) == 1, path


def test_fan_in_and_densities_by_path():
  params = helpers.params()
  masks = sx.get_masks(srigl(SGD, sparsity=None, fan_in=3).init(params))
  for path, mask in masks.items():
    assert (helpers.neuron_fan_ins(mask, path) == 3).all()
  tx = srigl(SGD, sparsity=None, distribution={"head/kernel": 0.25})
  masks = sx.get_masks(tx.init(params))
  assert num_weights(masks) == {"head/kernel": 12}
  assert num_weights(sx.get_masks(srigl(SGD, sparsity=None, density=0.4).init(params))) == (
    num_weights(sx.get_masks(srigl(SGD).init(params)))
  )


@pytest.mark.parametrize(
  "make",
  [
    srigl,
    functools.partial(sx.snfs, **SCHEDULE),
    functools.partial(sx.one_shot_pruning, prune_step=2, ranking="global"),
    functools.partial(sx.lottery_ticket, steps_per_round=2, rounds=1),
  ],
)
def test_nothing_is_sparse_at_sparsity_zero(make):
  training = Training(make(SGD, sparsity=0.0), {"w": jnp.ones((4, 4))})
  (*_, end) = training.run(3)
  assert end.masks == {}


def test_masks_that_are_given():
  params = helpers.params() | {"embedding": jnp.ones((5, 3))}
  masks = {
    "embedding": jnp.arange(15).reshape(5, 3) % 2 == 0,
    "head/kernel": jnp.ones((8, 6), bool),
  }
  training = Training(sx.fixed_masks(SGD, masks), params)
  for now in training.run(4):
    assert not changed(now.masks, masks) and now.masks.keys() == masks.keys()
  assert {p: int(n) for p, n in training.state.budgets.items()} == {
    "embedding": 8, "head/kernel": 48
  }  # fmt: skip
  for bad, message in (
    ({"head/kernal": masks["head/kernel"]}, "Did you mean 'head/kernel'"),
    ({"head/kernel": masks["embedding"]}, "belong to another model"),
    ({"head/bias": jnp.ones(6, bool)}, "initial names 'head/bias', which is no layer"),
  ):
    with pytest.raises(ValueError, match=message):
      sx.fixed_masks(SGD, bad).init(params)
  with pytest.raises(ValueError, match="leave out sparsity"):
    sx.sparse_training(SGD, None, initial=masks, sparsity=0.5)


def test_an_update_must_return_a_mask_for_each_layer():
  updater = sx.MaskUpdater(lambda layers: {}, update_every=1, update_until=5)
  with pytest.raises(ValueError, match=r"returned masks for \[\], but was given \['conv/kernel'"):
    next(Training(sx.sparse_training(SGD, updater, sparsity=0.5)).run(1))


@pytest.mark.parametrize("structure", ["unstructured", "constant_fan_in"])
def test_static_masks_have_the_structure_asked_for(structure):
  params = helpers.params()
  masks = sx.get_masks(sx.static_sparse(SGD, sparsity=0.6, structure=structure).init(params))
  fan_ins = {path: set(helpers.neuron_fan_ins(mask, path)) for path, mask in masks.items()}
  assert all(len(found) == 1 for found in fan_ins.values()) == (structure == "constant_fan_in")


def test_extra_arguments_reach_the_inner_optimizer():
  def update(updates, state, params=None, *, factor, **extra_args):
    del params, extra_args
    return jax.tree.map(lambda u: -factor * u, updates), state

  inner = optax.GradientTransformationExtraArgs(lambda _: optax.EmptyState(), update)
  params = {"w": jnp.ones((8, 8))}
  tx = rigl(inner)
  state = tx.init(params)
  updates, _ = tx.update(params, state, params, factor=7.0, other=None)
  assert (updates["w"][state.masks["w"]] == -7).all()


def test_state_of_another_model_is_refused():
  tx = srigl(SGD)
  params = helpers.params()
  state = tx.init(params)
  with pytest.raises(ValueError, match=r"masks for \['conv/kernel', .* `params` has changed"):
    tx.update({"other": jnp.ones((8, 8))}, state, {"other": jnp.ones((8, 8))})


def test_params_are_needed():
  tx = srigl(SGD)
  state = tx.init(helpers.params())
  with pytest.raises(ValueError, match=r"call update\(grads, state, params\)"):
    tx.update(helpers.params(), state)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"update_every": 0}, r"update_every is 0; .*1 or more"),
    ({"update_every": 2.5}, r"update_every is 2\.5; it must be a Python int"),
    ({"update_every": 2.0}, r"update_every is 2\.0"),
    ({"update_until": -1}, r"update_until is -1"),
    ({"update_until": 7.5}, r"update_until is 7\.5"),
    ({"update_until": None}, r"update_until is None"),
    ({"update_until": jnp.int32(7)}, r"update_until is 7; .*inject_hyperparams"),
    ({"grad_accumulation_steps": 0}, r"grad_accumulation_steps is 0"),
    ({"grad_accumulation_steps": 4}, r"is 4, more than update_every \(3\)"),
    ({"drop_fraction": -0.1}, r"drop_fraction is -0\.1; .*\[0, 1\]"),
    ({"drop_fraction": 1.1}, r"drop_fraction is 1\.1"),
    ({"gamma_sal": -0.3}, r"gamma_sal is -0\.3"),
    ({"gamma_sal": jnp.float32(0.3)}, "gamma_sal is .*Python number"),
    ({"salient_base": "dense"}, "salient_base is 'dense'"),
  ],
)
def test_bad_arguments_are_refused_when_the_optimizer_is_made(kwargs, message):
  with pytest.raises(ValueError, match=message):
    srigl(SGD, **kwargs)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"sparsity": 1.5}, r"sparsity is 1\.5"),
    ({"sparsity": 0.99}, "may keep"),
    ({"sparse": "head"}, "sparse is 'head'"),
    ({"ablate": sx.only("typo")}, "ablate names 'typo'"),
    ({"distribution": "ERK"}, "distribution is 'ERK'"),
  ],
)
def test_bad_arguments_are_refused_when_the_params_are_known(kwargs, message):
  with pytest.raises(ValueError, match=message):
    srigl(SGD, **kwargs).init(helpers.params())
