"""A stack of layers is its layers: the network with stacked leaves is the network unrolled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax import stacks
from srigl_jax.layers import leaf_dict
from tests.helpers import SCHEDULE, gradients

NUM_LAYERS = 2
# leaf -> shape in the network unrolled, and where the stacked leaf has its stack axis
LEAVES = {
  "attn/out": ((2, 4, 6), 1),
  "mlp/up": ((8, 12), 2),
}
HEAD = (8, 5)
METHODS = {
  "srigl": functools.partial(sx.srigl, sparsity=0.6, gamma_sal=0.95, seed=3, **SCHEDULE),
  "srigl in groups": functools.partial(
    sx.srigl, sparsity=0.6, structure="constant_fan_in:group_size=2", **SCHEDULE
  ),
  "nm_srigl": functools.partial(sx.nm_srigl, n=1, m=4, **SCHEDULE),
  "rigl": functools.partial(sx.rigl, sparsity=0.6, grad_accumulation_steps=2, **SCHEDULE),
  "set": functools.partial(sx.set_, sparsity=0.6, **SCHEDULE),
  "snfs": functools.partial(sx.snfs, sparsity=0.6, **SCHEDULE),
  "sr_ste": functools.partial(sx.sr_ste, n=1, m=4),
  "gradual": functools.partial(
    sx.gradual_magnitude_pruning, sparsity=0.6, begin_step=0, end_step=6, update_every=3
  ),
  "global": functools.partial(sx.one_shot_pruning, sparsity=0.6, prune_step=3, ranking="global"),
  "static": functools.partial(sx.static_sparse, sparsity=0.6),
  "lottery": functools.partial(sx.lottery_ticket, sparsity=0.6, steps_per_round=3, rounds=1),
}


def axes(path, shape):
  """Of the network unrolled and of the stacked one."""
  if path == "head/kernel" or not path.startswith("blocks/"):
    return sx.flax_axes(path, shape)
  leaf = path.removeprefix("blocks/").removesuffix("/kernel")
  one, stack = LEAVES[leaf]
  left = [a for a in range(len(shape)) if a != stack]
  neurons, spatial, _ = sx.flax_axes(path, one)
  return sx.Axes(tuple(left[a] for a in neurons), tuple(left[a] for a in spatial), (stack,))


def nest(by_path):
  tree = {}
  for path, leaf in by_path.items():
    *parents, last = path.split("/")
    functools.reduce(lambda node, key: node.setdefault(key, {}), parents, tree)[last] = leaf
  return tree


def stack(unrolled):
  """The tree with stacked leaves, from `{path: array}` of the network unrolled."""
  return {"head/kernel": unrolled["head/kernel"]} | {
    f"blocks/{leaf}/kernel": jnp.stack(
      [unrolled[f"blocks_{i}/{leaf}/kernel"] for i in range(NUM_LAYERS)], axis
    )
    for leaf, (_, axis) in LEAVES.items()
    if f"blocks_0/{leaf}/kernel" in unrolled
  }


@pytest.fixture(scope="module")
def params():
  shapes = {
    f"blocks_{i}/{leaf}/kernel": shape
    for i in range(NUM_LAYERS)
    for leaf, (shape, _) in LEAVES.items()
  }
  shapes["head/kernel"] = HEAD
  rng = np.random.default_rng(0)
  scales = lambda shape: np.exp(2 * rng.normal(size=shape[-1]))
  return {p: jnp.asarray(rng.normal(size=s) * scales(s), jnp.float32) for p, s in shapes.items()}


def assert_same(stacked, unrolled, exact=True):
  """Of `{path: array}` of both networks."""
  expected = stack(unrolled)
  assert stacked.keys() == expected.keys()
  for path, x in stacked.items():
    if exact:
      np.testing.assert_array_equal(x, expected[path], err_msg=path)
    else:
      np.testing.assert_allclose(x, expected[path], rtol=1e-6, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
  "method",
  [m if m == "srigl" else pytest.param(m, marks=pytest.mark.slow) for m in METHODS],
)
def test_stacked_layers_train_as_unrolled_ones_do(params, method):
  tx = METHODS[method](optax.sgd(0.1, momentum=0.9), axes=axes)
  trees = {"unrolled": nest(params), "stacked": nest(stack(params))}
  states = {name: tx.init(tree) for name, tree in trees.items()}
  initial = sx.get_masks(states["stacked"])
  update = jax.jit(tx.update)
  for step in range(8):
    flat = gradients(params, step)
    grads = {"unrolled": nest(flat), "stacked": nest(stack(flat))}
    for name, tree in trees.items():
      updates, states[name] = update(grads[name], states[name], tree)
      trees[name] = optax.apply_updates(tree, updates)
    ours, theirs = states["stacked"], states["unrolled"]
    assert_same(ours.masks, theirs.masks)
    assert_same(ours.explored, theirs.explored)
    assert_same(leaf_dict(trees["stacked"]), leaf_dict(trees["unrolled"]), exact=False)
  assert ours.masks.keys() == {"head/kernel", *(f"blocks/{leaf}/kernel" for leaf in LEAVES)}
  budgets = {path: np.asarray(n) for path, n in ours.budgets.items()}
  for leaf in LEAVES:
    expected = [theirs.budgets[f"blocks_{i}/{leaf}/kernel"] for i in range(NUM_LAYERS)]
    np.testing.assert_array_equal(budgets[f"blocks/{leaf}/kernel"], expected)
  if method != "static":
    assert any((ours.masks[p] != initial[p]).any() for p in initial)


def test_experts_in_scanned_layers_have_the_budgets_and_masks_of_the_network_unrolled():
  """Two stack axes, and a stack of which one layer is dense."""
  shapes = {"experts/gate": (6, 8), "experts/up": (8, 6), "proj": (30, 30)}
  stacks_of = lambda leaf: (2, 3) if leaf.startswith("experts") else (2,)
  stacked = {f"layers/{n}/kernel": jnp.ones((*stacks_of(n), *s)) for n, s in shapes.items()}
  unrolled = {
    f"layers_{i}/{leaf.replace('/', f'_{j}/')}/kernel": jnp.ones(shape)
    for leaf, shape in shapes.items()
    for i in range(2)
    for j in range(3)
  }
  stacked_axes = lambda path, shape: sx.Axes((-1,), stack=tuple(range(len(shape) - 2)))

  def compare(unrolled_kwargs, stacked_kwargs, with_masks=False):
    want = sx.allocate(unrolled, **unrolled_kwargs)
    found = sx.allocate(stacked, axes=stacked_axes, **stacked_kwargs)
    init_masks = functools.partial(sx.init_masks, jax.random.key(1))
    masks, expected = (init_masks(x) if with_masks else {} for x in (found, want))
    for path, layer in found.layers.items():
      for name, i in zip(stacks.layer_names(layer), np.ndindex(layer.stack_shape), strict=True):
        leaf = path.removeprefix("layers/").replace("/", f"_{i[-1]}/", len(i) - 1)
        theirs = f"layers_{i[0]}/{leaf}"
        assert stacks.leaf_of(name) == path and name == f"{path}[{','.join(map(str, i))}]"
        if path not in found.budgets:
          assert theirs not in want.budgets
          continue
        assert found.budgets[path][i] == want.budgets.get(theirs, layer.size)
        assert found.densities[path][i] == want.densities.get(theirs, 1.0)
        if with_masks:
          of_layer = expected.get(theirs, np.ones(layer.shape[-2:], bool))
          np.testing.assert_array_equal(masks[path][i], of_layer)

  for kwargs in ({"sparsity": 0.8}, {"sparsity": 0.3}, {"fan_in": 2}):
    compare(kwargs, kwargs)
  given = {"layers_1/proj/kernel": 0.5, "layers_1/experts_2/up/kernel": 0.7}
  names = {"layers/proj/kernel[1]": 0.5, "layers/experts/up/kernel[1,2]": 0.7}
  compare({"distribution": given}, {"distribution": names}, with_masks=True)
  with pytest.raises(ValueError, match=r"fan_in names 'layers/proj/kernel\[2\]', which is no"):
    sx.allocate(stacked, axes=stacked_axes, fan_in={"layers/proj/kernel[2]": 3})


@pytest.mark.parametrize("update", ["per_layer", "network"])
def test_a_dense_layer_among_sparse_ones_stays_dense(update):
  def swap(view):
    assert view.mask.shape == (6, 4)
    return ~view.mask

  params = {"w": jnp.ones((3, 6, 4))}
  tx = sx.sparse_training(
    optax.sgd(0.1),
    sx.MaskUpdater(
      sx.per_layer(swap) if update == "per_layer" else lambda v: {p: swap(x) for p, x in v.items()},
      update_every=1,
      update_until=9,
    ),
    distribution={"w[0]": 0.5, "w[2]": 0.25},
    axes=lambda *_: sx.Axes((2,), stack=(0,)),
  )
  state = tx.init(params)
  np.testing.assert_array_equal(state.budgets["w"], [12, 24, 6])
  before = np.asarray(state.masks["w"])
  _, state = tx.update(params, state, params)
  np.testing.assert_array_equal(state.masks["w"][1], True)
  np.testing.assert_array_equal(state.masks["w"][::2], ~before[::2])


def test_weights_are_drawn_as_in_the_network_unrolled(params):
  masks = [{p: x > 0.3 for p, x in sorted(tree.items())} for tree in (params, stack(params))]
  key = jax.random.key(5)
  draw = functools.partial(sx.init_sparse_weights, key, axes=axes)
  unrolled, stacked = (
    leaf_dict(draw(nest(tree), m)) for tree, m in zip((params, stack(params)), masks, strict=True)
  )
  assert_same(stacked, unrolled, exact=False)


def test_an_update_of_one_layer_refuses_a_stack():
  w = jnp.ones((2, 4, 4))
  with pytest.raises(ValueError, match="an update is one layer's: map it over the stack"):
    sx.srigl_update(
      w, w, w > 0, budget=8, drop_fraction=0.3, axes=lambda *_: sx.Axes((2,), stack=(0,))
    )


def test_statistics_and_condensed_forms_are_each_layer_s_own(params):
  fan_in = {"head/kernel": 2, "blocks/mlp/up/kernel[0]": 3, "blocks/mlp/up/kernel[1]": 5}
  stacked = nest(stack(params))
  masks = sx.get_masks(
    sx.static_sparse(
      optax.sgd(0.1), fan_in=fan_in, structure="constant_fan_in", axes=axes
    ).init(stacked)
  )  # fmt: skip
  macs = {"blocks/mlp/up/kernel": 2 * 96, "head/kernel": 40}
  summary = sx.summarize(stacked, masks, explored=masks, macs=macs, axes=axes)
  of_layer = {x.path: x for x in summary.layers}
  assert list(of_layer) == [
    *(f"blocks/{leaf}/kernel[{i}]" for leaf in LEAVES for i in range(2)), "head/kernel"
  ]  # fmt: skip
  for i, k in enumerate((3, 5)):
    x = of_layer[f"blocks/mlp/up/kernel[{i}]"]
    assert (x.shape, x.num_neurons, x.min_fan_in, x.max_fan_in, x.active_neurons, x.macs) == (
      (8, 12), 12, k, k, 12, 96
    )  # fmt: skip
    assert x.density == x.itop_rate == k / 8
  assert summary.inference_flops == (96 * 3 / 8 + 96 * 5 / 8 + 40 * 2 / 8) / (2 * 96 + 40)

  path = "blocks/mlp/up/kernel"
  kernel, mask = sx.apply_masks(leaf_dict(stacked), masks)[path], masks[path]
  bias = np.arange(24, dtype=np.float32).reshape(2, 12)
  layers = sx.condense(kernel, mask, bias, axes=axes(path, kernel.shape))
  assert [x.fan_in for x in layers] == [3, 5]
  for i, layer in enumerate(layers):
    again = sx.expand(layer)
    for x, expected in zip(again, (kernel[..., i], mask[..., i], bias[i]), strict=True):
      np.testing.assert_array_equal(x, expected)
  with pytest.raises(ValueError, match=r"Layer 1 of the stack cannot be condensed: .* one fan-in"):
    sx.condense(kernel, mask.at[0, :3, 1].set(True), axes=axes(path, kernel.shape))
  with pytest.raises(ValueError, match="is a stack of layers, which do not train in condensed"):
    sx.init_patterns(jax.random.key(0), sx.allocate(stacked, 0.6, axes=axes))
