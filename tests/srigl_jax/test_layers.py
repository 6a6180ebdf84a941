import typing

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from srigl_jax import layers
from srigl_jax.layers import Axes


def shapes(tree):
  return {path: leaf.shape for path, leaf in layers.leaf_dict(tree).items()}


MLP_SHAPES = {"first/bias": (3,), "first/kernel": (4, 3), "last/bias": (2,), "last/kernel": (3, 2)}


class LinenMlp(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.Dense(2, name="last")(nn.Dense(3, name="first")(x))


class NnxMlp(nnx.Module):
  def __init__(self, rngs):
    self.first = nnx.Linear(4, 3, rngs=rngs)
    self.last = nnx.Linear(3, 2, rngs=rngs)


def nnx_params():
  return nnx.state(NnxMlp(nnx.Rngs(0)), nnx.Param)


def test_paths_of_a_linen_dict():
  variables = LinenMlp().init(jax.random.key(0), jnp.ones((1, 4)))
  assert shapes(variables["params"]) == MLP_SHAPES
  assert shapes(variables) == {f"params/{path}": shape for path, shape in MLP_SHAPES.items()}


def test_paths_of_an_nnx_state():
  assert shapes(nnx_params()) == MLP_SHAPES


def test_paths_of_a_pure_dict():
  assert shapes(nnx.to_pure_dict(nnx_params())) == MLP_SHAPES


def test_paths_of_a_dict_of_params():
  params = {"first": {"kernel": nnx.Param(jnp.ones((4, 3)))}, "value": nnx.Param(jnp.ones((2, 2)))}
  assert shapes(params) == {"first/kernel": (4, 3), "value": (2, 2)}


def test_paths_of_nnx_lists_are_in_the_order_of_the_list():
  class Deep(nnx.Module):
    def __init__(self, rngs):
      self.blocks = nnx.List([nnx.Linear(1, i + 1, use_bias=False, rngs=rngs) for i in range(11)])

  params = nnx.state(Deep(nnx.Rngs(0)), nnx.Param)
  assert list(shapes(params).items()) == [(f"blocks/{i}/kernel", (1, i + 1)) for i in range(11)]


def test_paths_of_lists_tuples_and_named_tuples():
  class Pair(typing.NamedTuple):
    weight: object
    value: object

  x = jnp.ones(3)
  assert list(layers.leaf_dict([x] * 12)) == [str(i) for i in range(12)]
  assert list(layers.leaf_dict((x, {"a": x}))) == ["0", "1/a"]
  assert list(layers.leaf_dict({"pair": Pair(x, {"b": x})})) == ["pair/value/b", "pair/weight"]
  assert list(layers.leaf_dict(x)) == [""]


def test_natural_order():
  names = ["layer10/b", "layer2/a10", "layer2/a9", "layer2", "head", "layer"]
  ordered = ["head", "layer", "layer2", "layer2/a9", "layer2/a10", "layer10/b"]
  assert sorted(names, key=layers.natural_key) == ordered
  tree = dict.fromkeys(names, jnp.ones(1))
  assert list(layers.leaf_dict(tree)) == ordered


def test_two_leaves_of_the_same_path_are_an_error():
  with pytest.raises(ValueError, match=r"the same path: \['a/b'\].*rename"):
    layers.leaf_dict({"a/b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_map_leaves_touches_only_what_every_mapping_names():
  tree = {"a": jnp.ones(2), "b": {"c": jnp.ones(2), "d": jnp.ones(2)}}
  double = layers.map_leaves(
    lambda x, y, z: x * y + z, tree, {"a": 2, "b/c": 3}, {"b/c": 1, "b/d": 5}
  )
  assert jax.tree.structure(double) == jax.tree.structure(tree)
  np.testing.assert_array_equal(double["a"], [1, 1])
  np.testing.assert_array_equal(double["b"]["c"], [4, 4])
  np.testing.assert_array_equal(double["b"]["d"], [1, 1])


def test_map_leaves_keeps_an_nnx_state():
  params = nnx_params()
  mapped = layers.map_leaves(lambda x, y: x * y, params, {"first/kernel": 0.0})
  assert jax.tree.structure(mapped) == jax.tree.structure(params)
  assert not layers.leaf_dict(mapped)["first/kernel"].any()
  assert layers.leaf_dict(mapped)["last/kernel"].all()


# path, shape -> neurons N, inputs I, dims that Erdős–Rényi-Kernel sums
FLAX_LAYERS = [
  ("head/kernel", (12, 5), 5, 12, (5, 12)),
  ("conv/kernel", (3, 2, 4, 8), 8, 24, (8, 4, 3, 2)),
  ("conv1d/kernel", (7, 4, 8), 8, 28, (8, 4, 7)),
  ("depthwise/kernel", (3, 3, 1, 16), 16, 9, (16, 1, 3, 3)),
  ("block/attn/query/kernel", (12, 3, 4), 12, 12, (12, 12)),
  ("block/self_attn/value/kernel", (10, 3, 4), 12, 10, (12, 10)),
  ("key/kernel", (10, 3, 4), 12, 10, (12, 10)),
  ("block/attn/out/kernel", (3, 4, 6), 6, 12, (6, 12)),
  ("block/self_attn/out/kernel", (3, 4, 6), 6, 12, (6, 12)),
  ("MultiHeadDotProductAttention_0/out/kernel", (3, 4, 6), 6, 12, (6, 12)),
  ("self_attention/out/kernel", (3, 4, 6), 6, 12, (6, 12)),
  ("decoder/out/kernel", (3, 4, 6), 6, 12, (6, 4, 3)),  # a convolution in one dimension
  ("query/kernel", (12, 3), 3, 12, (3, 12)),  # one head, no axis of its own
]


@pytest.mark.parametrize(("path", "shape", "neurons", "inputs", "dims"), FLAX_LAYERS)
def test_flax_axes(path, shape, neurons, inputs, dims):
  layer = layers.make_layer(path, shape)
  assert (layer.num_neurons, layer.dense_fan_in, layer.dims) == (neurons, inputs, dims)
  assert layer.size == neurons * inputs == np.prod(shape)


def test_axes_of_flax_attention_modules():
  variables = nn.MultiHeadDotProductAttention(num_heads=3, out_features=5).init(
    jax.random.key(0), jnp.ones((1, 2, 12))
  )
  for name, neurons, inputs in [("query", 12, 12), ("key", 12, 12), ("value", 12, 12)]:
    kernel = variables["params"][name]["kernel"]
    layer = layers.make_layer(f"attn/{name}/kernel", kernel.shape)
    assert (layer.num_neurons, layer.dense_fan_in) == (neurons, inputs)
  kernel = variables["params"]["out"]["kernel"]
  layer = layers.make_layer("attn/out/kernel", kernel.shape)
  assert (layer.num_neurons, layer.dense_fan_in) == (5, 12)


MATRIX_CASES = [
  ((2, 3), Axes((1,))),
  ((2, 3), Axes((0,))),
  ((2, 3, 4, 5), Axes((3,), (0, 1))),
  ((5, 4, 2, 3), Axes((0,), (2, 3))),  # torch
  ((4, 2, 3), Axes((1, 2))),  # query
  ((2, 3, 4), Axes((-1,))),  # attention out
  ((2, 3, 4), Axes((1,))),  # neurons in the middle
]


@pytest.mark.parametrize(("shape", "axes"), MATRIX_CASES)
def test_matrix_view(shape, axes):
  layer = layers.make_layer("w", shape, lambda *_: axes)
  x = np.arange(np.prod(shape)).reshape(shape)
  matrix = np.asarray(layers.to_matrix(jnp.asarray(x), layer))
  assert matrix.shape == (layer.dense_fan_in, layer.num_neurons)
  np.testing.assert_array_equal(layers.from_matrix(jnp.asarray(matrix), layer), x)
  # Column n holds the weights of neuron n, its own axes in row-major order.
  for n, index in enumerate(np.ndindex(*(shape[a] for a in layer.axes.neurons))):
    neuron = [slice(None)] * len(shape)
    for axis, i in zip(layer.axes.neurons, index, strict=True):
      neuron[axis] = i
    np.testing.assert_array_equal(matrix[:, n], x[tuple(neuron)].ravel())


def test_own_axes_and_their_order():
  torch = layers.make_layer("w", (8, 4, 3, 2), lambda path, shape: Axes((-4,), (3, 2)))
  assert torch.axes == Axes((0,), (2, 3))
  assert (torch.num_neurons, torch.dense_fan_in, torch.dims) == (8, 24, (8, 4, 3, 2))
  assert torch.input_axes == (1, 2, 3)


@pytest.mark.parametrize(
  ("axes", "message"),
  [
    (Axes((2,)), r"'w' of shape \(4, 3\).*lie in 0\.\.1"),
    (Axes((-3,)), r"lie in 0\.\.1"),
    (Axes(()), "there must be a neuron axis"),
    (Axes((1,), (1,)), "distinct"),
    (Axes((1, -1)), "distinct"),
    (Axes((0, 1)), "no input axis"),
  ],
)
def test_axes_that_do_not_fit(axes, message):
  with pytest.raises(ValueError, match=message):
    layers.make_layer("w", (4, 3), lambda *_: axes)


def test_unknown_path_names_what_is_near_and_what_there_is():
  with pytest.raises(ValueError, match=r"masks names 'conv3', .*mean 'conv\d'.*conv1, conv2, head"):
    layers.check_paths(["head", "conv3"], ["conv1", "conv2", "head"], name="masks")
  with pytest.raises(ValueError, match=r"no layer here\. There are: a\."):
    layers.check_paths(["xyz"], ["a"], name="masks")
