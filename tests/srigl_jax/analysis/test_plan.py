import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import srigl_jax as sx

GPT = {
  "wte": (97, 16),
  "wpe": (32, 16),
  "h/0/up/kernel": (16, 64),
  "h/0/down/kernel": (64, 16),
  "h/1/up/kernel": (16, 64),
  "h/1/down/kernel": (64, 16),
  "unembed/kernel": (16, 97),
}


def params_of(shapes):
  return {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}


def quietly(call):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    return call()


def test_the_plan_says_what_will_be_done(capsys):
  plan = quietly(lambda: sx.plan(params_of(GPT), sparsity=0.8))
  assert [leaf.path for leaf in plan.layers] == [path for path in sorted(GPT) if "kernel" in path]
  up, head = plan["h/0/up/kernel"], plan["unembed/kernel"]
  allocation = sx.allocate(params_of(GPT), 0.8)
  assert up.fan_in == allocation.budgets["h/0/up/kernel"] // 64
  assert (up.kind, up.num_neurons, up.dense_fan_in, up.may_ablate) == ("dense", 64, 16, True)
  assert head.is_head and not head.may_ablate and head.is_sparse
  assert plan.warnings == () and plan["wpe"].kind == "position table"
  assert capsys.readouterr().out == f"{plan}\n"
  assert "unembed/kernel" in str(plan) and "head: unembed/kernel (named 'unembed')" in str(plan)
  # One row for layers that are alike.
  assert "h/#/up/kernel (2)" in plan.table(compact=True) and "wte" not in plan.table(compact=True)


@pytest.mark.parametrize(
  "wrap", [lambda tx: tx, lambda tx: optax.chain(optax.clip(1.0), optax.MultiSteps(tx, 2))]
)
def test_the_plan_of_a_transformation(wrap):
  tx = wrap(sx.srigl(optax.adam(0.1), fan_in=4, update_until=9, ablate=sx.only("up")))
  plan = sx.plan(params_of(GPT), tx, show=False)
  assert {leaf.path for leaf in plan.layers if leaf.may_ablate} == {
    f"h/{i}/up/kernel" for i in (0, 1)
  }
  assert {leaf.fan_in for leaf in plan.layers} == {4}
  with pytest.raises(ValueError, match="Found 0 sparse training transformations"):
    sx.plan(params_of(GPT), optax.adam(0.1))
  with pytest.raises(ValueError, match="tx has arguments of its own"):
    sx.plan(params_of(GPT), tx, sparsity=0.5)
  with pytest.raises(ValueError, match=r"tx is a dict.*plan\(params, tx\)"):
    sx.plan(tx, params_of(GPT))


def test_what_looks_wrong_is_said_by_init_and_plan_alike():
  params = params_of({"a/kernel": (5, 64, 64), "head/kernel": (64, 10)})
  with pytest.warns(UserWarning, match=r"'a/kernel' .*window of 5.*stack of 5 layers") as warned:
    plan = sx.plan(params, sparsity=0.5, show=False)
  assert plan.warnings == (str(warned[0].message),)
  with pytest.warns(UserWarning, match="stack of 5 layers"):
    sx.srigl(optax.sgd(0.1), sparsity=0.5, update_until=9).init(
      jax.tree.map(jnp.zeros_like, params)
    )
  declared = lambda: sx.plan(params, sparsity=0.5, axes=sx.axes.stacked("^a/"), show=False)
  assert quietly(declared)["a/kernel"].num_stacked == 5


HEADS = [
  # shapes, heads, part of the warning
  (
    {**GPT, "a_head/kernel": (16, 4), "b_head/kernel": (16, 1)},
    {"unembed/kernel", "a_head/kernel", "b_head/kernel"},
    None,
  ),
  ({"policy_head/w": (16, 4), "value_head/w": (16, 1)}, {"policy_head/w", "value_head/w"}, None),
  (
    {"fc/w": (16, 32), "to_classes/w": (32, 10)},
    {"fc/w", "to_classes/w"},
    "'fc/w' is named like the head, but",
  ),
  (
    {"enc/w": (16, 32), "zmix/w": (32, 32), "classes/w": (32, 10)},
    {"classes/w"},
    r"'classes/w', the last of \['classes/w'\], whose outputs are no other",
  ),
  ({f"model/{path}": shape for path, shape in GPT.items()}, {"model/unembed/kernel"}, None),
  ({"body/0/w": (16, 16), "readout/w": (16, 10)}, {"readout/w"}, None),
]


@pytest.mark.parametrize(("shapes", "heads", "warning"), HEADS)
def test_heads(shapes, heads, warning):
  params = params_of(shapes)
  plan = sx.plan(params, show=False)
  assert {leaf.path for leaf in plan.layers if leaf.is_head} == heads
  tx = sx.srigl(optax.sgd(0.1), fan_in=2, update_until=9)
  init = lambda: jax.eval_shape(tx.init, params)
  if warning is None:
    quietly(init)
  else:
    with pytest.warns(UserWarning, match=warning):
      init()


def test_a_guessed_head_is_said_to_be_safe_only_where_it_is():
  params = params_of({"enc/w": (16, 32), "zmix/w": (32, 32), "classes/w": (32, 10)})
  of = lambda **kwargs: sx.plan(params, show=False, **kwargs).warnings
  assert "taken for it and never ablated" in of()[0]
  assert of(sparsity=0.5, ablate=True) == (
    "Neurons of 'classes/w' may be ablated: leave out of `ablate` what makes the outputs.",
  )
  assert of(tx=sx.rigl(optax.sgd(0.1), sparsity=0.5, update_until=9)) == ()


def test_masks_carry_the_layout():
  params = {"a": {"kernel": jnp.ones((12, 8))}, "head": {"kernel": jnp.ones((4, 12))}}
  tx = sx.srigl(optax.sgd(0.1), fan_in=2, update_every=1, update_until=9, axes=sx.axes.equinox)
  state = pickle.loads(pickle.dumps(tx.init(params)))
  params = sx.apply_masks(params, sx.get_masks(state))
  _, state = jax.jit(tx.update)(params, state, params)
  masks = sx.get_masks(state)
  a = sx.summarize(params, masks).layers[0]
  assert (a.num_neurons, a.dense_fan_in, a.max_fan_in) == (12, 8, a.min_fan_in)
  drawn = sx.init_sparse_weights(jax.random.key(0), params, masks, "torch_uniform")
  assert np.abs(drawn["a"]["kernel"]).max() <= 1 / np.sqrt(a.max_fan_in)
  again = sx.fixed_masks(optax.sgd(0.1), masks).init(params)
  assert next(iter(again.masks)).axes == sx.Axes((0,))
  doubled = jax.tree.map(jnp.logical_not, dict(masks.items()))
  assert next(iter(doubled)).axes == sx.Axes((0,))


def test_the_layout_survives_an_nnx_optimizer():
  model = nnx.LinearGeneral(4, (3, 2, 4), rngs=nnx.Rngs(0))
  tx = sx.static_sparse(optax.sgd(0.1), fan_in=2, structure="constant_fan_in")
  masks = sx.get_masks(nnx.Optimizer(model, tx, wrt=nnx.Param).opt_state)
  np.testing.assert_array_equal(masks["kernel"].sum(0), 2)
  assert next(iter(masks)).axes == sx.Axes((1, 2, 3))


def test_masks_without_a_path_are_reported():
  layers = {"hidden/0/w": (6, 6), "hidden/1/w": (6, 6), "head/w": (6, 2)}
  params = params_of(layers)
  masks = {path: np.zeros(shape, bool) for path, shape in layers.items()}
  masks["hidden/0/w"][0, 0] = masks["hidden/1/w"][1, 1] = masks["head/w"][1, :] = True
  with pytest.warns(UserWarning, match=r"2 of the 2 outputs of 'head/w' are reached by no path"):
    sx.summarize(params, masks)
  masks["hidden/1/w"][0, 1] = True
  quietly(lambda: sx.summarize(params, masks))
  masks["head/w"][:, 1] = False
  with pytest.warns(UserWarning, match=r"1 of the 2 outputs of 'head/w' have no weight left"):
    sx.summarize(params, masks)
  masks["hidden/1/w"][:] = False
  with pytest.warns(UserWarning, match=r"'hidden/1/w' has no weight left"):
    sx.summarize(params, masks)


def test_what_no_exporter_takes_is_said_before_training():
  eqx = pytest.importorskip("equinox")

  class Net(eqx.Module):
    own: jax.Array
    cell: eqx.nn.GRUCell
    layer: eqx.nn.Linear

  key = jax.random.key(0)
  net = Net(jnp.ones((8, 6)), eqx.nn.GRUCell(8, 8, key=key), eqx.nn.Linear(8, 8, key=key))
  notes = lambda params: [
    text
    for text in sx.plan(params, sparsity=0.5, axes=sx.axes.equinox, show=False).warnings
    if "cannot be exported" in text
  ]
  cell, own = notes(net)
  assert "'cell/weight_hh', 'cell/weight_ih'" in cell and "equinox.nn.GRUCell" in cell
  assert "'own'" in own and "a module of your own" in own
  (half,) = notes({"a/kernel": jnp.ones((8, 8), jnp.float16), "head/kernel": jnp.ones((8, 8))})
  assert "'a/kernel'" in half and "not float16" in half
