import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_jax import initializers
from srigl_jax.layers import Axes

# scheme -> standard deviation of a neuron with fan-in k, kurtosis (3 normal, 1.8 uniform)
STANDARD_DEVIATION = {
  "he_normal": (lambda k: np.sqrt(2 / k), 3.0),
  "he_uniform": (lambda k: np.sqrt(2 / k), 1.8),
  "lecun_normal": (lambda k: np.sqrt(1 / k), 3.0),
  "lecun_uniform": (lambda k: np.sqrt(1 / k), 1.8),
  "torch_uniform": (lambda k: np.sqrt(1 / (3 * k)), 1.8),
  "srigl_reference": (lambda k: 2 / k, 3.0),
}


def test_every_scheme_is_tested():
  assert set(STANDARD_DEVIATION) == set(initializers.SCHEMES)


def mask_of_fan_ins(num_inputs, fan_ins):
  """The first k inputs of each neuron."""
  return jnp.arange(num_inputs)[:, None] < jnp.asarray(fan_ins)[None]


@pytest.mark.parametrize("scheme", STANDARD_DEVIATION)
def test_scale_and_shape_of_the_distribution(scheme):
  deviation, kurtosis = STANDARD_DEVIATION[scheme]
  num_inputs, fan_ins = 600, [500, 50] * 60
  mask = mask_of_fan_ins(num_inputs, fan_ins)
  params = {"w": jnp.full((num_inputs, 120), 9.0)}
  drawn = sx.init_sparse_weights(jax.random.key(0), params, {"w": mask}, scheme)["w"]
  assert not np.asarray(drawn)[~np.asarray(mask)].any()
  for k in (500, 50):
    neurons = np.asarray(drawn)[:k, np.asarray(fan_ins) == k].astype(np.float64)
    n = neurons.size
    assert neurons.std() == pytest.approx(deviation(k), rel=4 / np.sqrt(n))
    assert abs(neurons.mean()) < 4 * deviation(k) / np.sqrt(n)
    measured = np.mean(neurons**4) / np.mean(neurons**2) ** 2
    assert measured == pytest.approx(kurtosis, abs=0.2)
    if kurtosis < 2:  # uniform: bounded, and on both sides
      bound = np.sqrt(3) * deviation(k)
      assert 0.99 * bound < neurons.max() < bound * (1 + 1e-6)
      assert -bound * (1 + 1e-6) < neurons.min() < -0.99 * bound


def test_an_ablated_neuron_is_zero_and_harms_no_other():
  mask = mask_of_fan_ins(8, [0, 4, 8])
  drawn = sx.init_sparse_weights(jax.random.key(0), {"w": jnp.ones((8, 3))}, {"w": mask})["w"]
  np.testing.assert_array_equal(drawn != 0, mask)
  assert np.isfinite(drawn).all()


@pytest.mark.parametrize(
  ("path", "shape", "axes"),
  [
    ("conv/kernel", (3, 3, 20, 40), sx.flax_axes),
    ("attn/query/kernel", (180, 5, 8), sx.flax_axes),
    ("attn/out/kernel", (10, 18, 40), sx.flax_axes),
    ("w", (40, 20, 3, 3), lambda *_: Axes((0,), (2, 3))),
  ],
)
def test_layouts(path, shape, axes):
  """Neurons of fan-in 180 and 20 side by side, wherever the neuron axes are."""
  layer = sx.layers.make_layer(path, shape, axes)
  matrix = mask_of_fan_ins(180, [180, 20] * 20)
  mask = sx.layers.from_matrix(matrix, layer)
  params = {path: jnp.ones(shape)}
  drawn = sx.init_sparse_weights(jax.random.key(1), params, {path: mask}, axes=axes)[path]
  drawn = np.asarray(sx.layers.to_matrix(drawn, layer))
  np.testing.assert_array_equal(drawn != 0, matrix)
  assert drawn[:, ::2].std() == pytest.approx(np.sqrt(2 / 180), rel=0.1)
  assert drawn[:20, 1::2].std() == pytest.approx(np.sqrt(2 / 20), rel=0.15)


def test_only_sparse_layers_are_drawn_and_each_for_itself():
  eye = jnp.eye(6, dtype=bool)
  params = {name: jnp.ones((6, 6)) for name in "abc"} | {"bias": jnp.ones(6)}
  drawn = sx.init_sparse_weights(jax.random.key(0), params, {"a": eye, "b": eye})
  assert drawn["c"] is params["c"] and drawn["bias"] is params["bias"]
  assert (drawn["a"] != drawn["b"])[eye].all()
  again = sx.init_sparse_weights(jax.random.key(0), params, {"a": eye, "b": eye})
  np.testing.assert_array_equal(drawn["a"], again["a"])
  other = sx.init_sparse_weights(jax.random.key(1), params, {"a": eye, "b": eye})
  assert (drawn["a"] != other["a"])[eye].all()
  assert sx.init_sparse_weights(jax.random.key(0), params, {})["a"] is params["a"]


def test_dtype_and_structure_are_kept():
  params = {"a": {"kernel": jnp.ones((4, 4), jnp.bfloat16)}}
  mask = jnp.ones((4, 4), bool)
  drawn = jax.jit(sx.init_sparse_weights)(jax.random.key(0), params, {"a/kernel": mask})
  assert drawn["a"]["kernel"].dtype == jnp.bfloat16
  assert jax.tree.structure(drawn) == jax.tree.structure(params)


def test_rejects():
  params, masks = {"w": jnp.ones((4, 4))}, {"w": jnp.ones((4, 4), bool)}
  with pytest.raises(ValueError, match=r"scheme is 'glorot'; .*'he_normal'.*'srigl_reference'"):
    sx.init_sparse_weights(jax.random.key(0), params, masks, "glorot")
  with pytest.raises(ValueError, match=r"masks names 'v'"):
    sx.init_sparse_weights(jax.random.key(0), params, {"v": masks["w"]})
  with pytest.raises(ValueError, match=r"mask of 'w' has shape \(4, 3\), its leaf \(4, 4\)"):
    sx.init_sparse_weights(jax.random.key(0), params, {"w": masks["w"][:, 1:]})
