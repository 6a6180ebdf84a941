import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_jax import masks
from srigl_jax.layers import make_layer, to_matrix
from srigl_jax.structures import as_structure
from tests import helpers

SHAPES = {
  "conv/kernel": (3, 3, 4, 10),
  "depthwise/kernel": (3, 3, 1, 16),
  "attn/query/kernel": (12, 2, 5),
  "attn/out/kernel": (2, 5, 12),
  "head/kernel": (20, 7),
}
PARAMS = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in SHAPES.items()}


def test_constant_fan_in():
  allocation = sx.allocate(PARAMS, 0.6)
  drawn = jax.jit(lambda key: sx.init_masks(key, allocation))(jax.random.key(0))
  assert set(drawn) == set(allocation.budgets)
  for path, mask in drawn.items():
    assert mask.shape == SHAPES[path] and mask.dtype == bool
    fan_in = allocation.budgets[path] // allocation.layers[path].num_neurons
    assert set(helpers.neuron_fan_ins(mask, path)) == {fan_in}


def test_unstructured():
  allocation = sx.allocate(PARAMS, 0.6, structure="unstructured")
  draw = jax.jit(lambda key: sx.init_masks(key, allocation))
  drawn = draw(jax.random.key(0))
  assert {path: int(mask.sum()) for path, mask in drawn.items()} == allocation.budgets
  assert len(set(helpers.neuron_fan_ins(drawn["head/kernel"], "head/kernel"))) > 1


@pytest.mark.parametrize(("structure", "budget"), [("constant_fan_in", 30), ("unstructured", 29)])
def test_every_position_is_drawn_equally_often(structure, budget):
  layer = make_layer("w", (10, 6))
  keys = jax.random.split(jax.random.key(0), 4000)
  draw = jax.vmap(lambda key: masks.random_mask(key, layer, budget, as_structure(structure)))
  sample = np.asarray(jax.jit(draw)(keys)).astype(float)
  p = budget / 60
  deviations = (sample.mean(0) - p) / np.sqrt(p * (1 - p) / len(keys))
  assert np.abs(deviations).max() < 4.5
  # Neurons are drawn independently: knowing one says nothing of its neighbour.
  if structure == "constant_fan_in":
    correlation = np.corrcoef(sample[:, 0, 0], sample[:, 0, 1])[0, 1]
    assert abs(correlation) < 4.5 / np.sqrt(len(keys))


def test_layers_are_drawn_apart():
  params = {name: jax.ShapeDtypeStruct((16, 16), jnp.float32) for name in "ab"}
  drawn = sx.init_masks(jax.random.key(0), sx.allocate(params, 0.5))
  assert 0.3 < np.mean(drawn["a"] == drawn["b"]) < 0.7


def test_apply_masks():
  tree = {"w": jnp.asarray([[1.0, jnp.nan], [jnp.inf, -2.0]]), "bias": jnp.ones(2)}
  eye = jnp.eye(2, dtype=bool)
  masked = sx.apply_masks(tree, {"w": eye})
  np.testing.assert_array_equal(masked["w"], [[1, 0], [0, -2]])
  assert masked["bias"] is tree["bias"]
  assert sx.apply_masks(tree, {}) == tree


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_apply_masks_keeps_dtypes(dtype):
  masked = sx.apply_masks([jnp.ones((2, 2), dtype)], {"0": jnp.eye(2, dtype=bool)})
  assert masked[0].dtype == dtype


def test_apply_masks_to_an_nnx_state():
  model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
  params = nnx.state(model, nnx.Param)
  mask = jnp.asarray([[True, False], [False, True], [True, True]])
  masked = sx.apply_masks(params, {"kernel": mask})
  assert jax.tree.structure(masked) == jax.tree.structure(params)
  nnx.update(model, masked)
  np.testing.assert_array_equal(model.kernel[...] == 0, ~mask)


def test_apply_masks_rejects():
  tree = {"w": jnp.ones((2, 2))}
  with pytest.raises(ValueError, match=r"masks names 'v', .*There are: w"):
    sx.apply_masks(tree, {"v": jnp.ones((2, 2), bool)})
  with pytest.raises(ValueError, match=r"mask of 'w' has shape \(2, 3\), its leaf \(2, 2\)"):
    sx.apply_masks(tree, {"w": jnp.ones((2, 3), bool)})
  with pytest.raises(ValueError, match="belong to another model"):
    sx.apply_masks(tree, {"w": jnp.ones(2, bool)})  # would broadcast
  for given in (None, (jnp.ones((2, 2), bool),)):
    with pytest.raises(ValueError, match=r"masks is a .*get_masks\(opt_state\)"):
      sx.apply_masks(tree, given)


def test_counts():
  mask = jnp.asarray([[True, False, True], [True, False, False]])
  layer = make_layer("w", (2, 3))
  np.testing.assert_array_equal(masks.fan_ins(mask, layer), [2, 0, 1])
  query = make_layer("query/kernel", (2, 3, 1))
  np.testing.assert_array_equal(masks.fan_ins(mask[..., None], query), [2, 0, 1])
  assert to_matrix(mask[..., None], query).shape == (2, 3)
