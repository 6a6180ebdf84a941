"""Whole models of Flax Linen and Equinox."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import srigl_jax as sx
from srigl_jax.layers import leaf_dict
from tests.srigl_jax.condensed.test_condense_model import assert_close, example


def sparsify(params, neurons, *, fan_in=3, dense=()):
  """Random masks of constant fan-in with one ablated neuron, and the masked parameters."""
  rng, masks = np.random.default_rng(0), {}
  for path, kernel in leaf_dict(params).items():
    axes = neurons(path, kernel.shape)
    if not axes or path in dense:
      continue
    order = [a for a in range(kernel.ndim) if a not in axes] + list(axes)
    shape = [kernel.shape[a] for a in order]
    count = int(np.prod([kernel.shape[a] for a in axes]))
    mask = rng.random((kernel.size // count, count)).argsort(0) < fan_in
    mask[:, 0] = False
    masks[path] = jnp.asarray(mask.reshape(shape).transpose(np.argsort(order)))
  return masks, sx.apply_masks(params, masks)


class Net(nn.Module):
  """All kinds of layers, some of them within transformations."""

  @nn.compact
  def __call__(self, x, *, train=True):
    x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3), strides=2)(x)))
    x = nn.Conv(8, (3, 3), feature_group_count=2, padding="CIRCULAR")(x)
    for settings in (
      {},
      {"padding": "VALID", "kernel_dilation": (2, 1)},
      {"padding": ((1, 2),) * 2},
    ):
      x = nn.gelu(nn.ConvTranspose(8, (3, 2), strides=(2, 1), **settings)(x))
    x = x.mean(1)
    x = x + nn.MultiHeadDotProductAttention(2, qkv_features=8)(x)
    x = nn.DenseGeneral((2, 4), axis=(-2, -1), dtype=jnp.float32)(x[..., :2, :])
    x = nn.remat(nn.Dense)(8, use_bias=False)(x.reshape(-1, 1, 8))
    x = nn.RNN(nn.GRUCell(8))(x)
    return nn.Dense(4)(x)


def flax_neurons(path, shape):
  if "kernel" not in path:
    return ()
  count = 2 if any(n in path for n in ("query", "key/", "value", "DenseGeneral")) else 1
  return tuple(range(len(shape) - count, len(shape)))


@pytest.fixture(scope="module")
def linen():
  net, x = Net(), example(2, 6, 6, 4)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x))
  rng = np.random.default_rng(1)
  variables = jax.tree.map(lambda s: rng.uniform(0.1, 0.5, s.shape).astype(s.dtype), shapes)
  masks, params = sparsify(variables["params"], flax_neurons, dense=("Dense_0/kernel",))
  return net, x, {**variables, "params": params}, masks


def test_linen(linen, tmp_path):
  net, x, variables, masks = linen
  assert len(masks) >= 16
  model = sx.condense_linen(net, variables, masks, x, train=False)
  layers, arrays = sx.split_condensed(model)
  assert {*layers} == {f"params/{path}" for path in masks}
  sx.save_condensed(tmp_path / "model", layers, arrays=arrays)
  file = sx.load_condensed_file(tmp_path / "model")
  again = sx.merge_condensed(net, file.layers, file.arrays)
  outputs = jax.jit(
    lambda variables, models, x: [
      net.apply(variables, x, train=False),
      *(model(x, train=False) for model in models),
    ]
  )(variables, [model, again], x)
  for y in outputs[1:]:
    assert_close(y, outputs[0], 1e-5)


def test_what_linen_cannot_condense(linen):
  net, x, variables, _ = linen
  with pytest.raises(ValueError, match="names 'Dense_9/kernel'"):
    sx.condense_linen(net, variables, {"Dense_9/kernel": np.ones((8, 4), bool)}, x)
  mask = {"params/kernel": np.ones((4, 2), bool)}
  dense = {"params": {"kernel": np.ones((4, 2), np.float32)}}
  for module, reason in {
    nn.Dense(2, use_bias=False, dtype=jnp.float16): "float16",
    nn.Dense(2, use_bias=False, dot_general=jax.lax.dot_general): "dot_general is set",
    nn.Einsum((4, 2), "bi,io->bo", use_bias=False): "no Einsum",
  }.items():
    with pytest.raises(ValueError, match=f"'kernel' cannot be condensed.*{reason}"):
      sx.condense_linen(module, dense, mask, x[0, 0])
  with pytest.raises(ValueError, match="takes a Flax Linen module"):
    sx.condense_linen(lambda x: x, dense, mask, x)
  with pytest.raises(ValueError, match=r"takes the dense model, of Flax NNX, .* not a dict"):
    sx.merge_condensed({"kernel": 1}, {}, {})


@pytest.fixture(scope="module")
def eqx():
  return pytest.importorskip("equinox", reason="equinox is a dependency of tests only")


def test_equinox(eqx, tmp_path):
  keys = iter(jax.random.split(jax.random.key(0), 9))
  conv = lambda i, **kwargs: eqx.nn.Conv2d(i, 8, 3, key=next(keys), **kwargs)

  class Net(eqx.Module):
    convs: list
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear
    scale: jax.Array

    def __call__(self, x):
      for conv in self.convs:
        x = jax.nn.relu(conv(x))
      x = x.mean(1).T
      return self.head(self.attention(x, x, x).mean(0)) * self.scale

  model = Net(
    [
      conv(4, padding="SAME"),
      conv(8, stride=2, padding=1),
      conv(8, groups=2, padding=((1, 0),) * 2),
    ],
    eqx.nn.MultiheadAttention(2, 8, use_output_bias=True, key=next(keys)),
    eqx.nn.Linear(8, 4, key=next(keys)),
    jnp.ones(()),
  )
  params, static = eqx.partition(model, eqx.is_array)
  neurons = lambda path, _: (0,) if path.endswith("weight") else ()
  masks, params = sparsify(params, neurons, dense=("head/weight",))
  model = eqx.combine(params, static)
  condensed = sx.condense_equinox(model, masks)
  layers, arrays = sx.split_condensed(condensed)
  assert {*layers} == {*masks} and "head/weight" in arrays
  sx.save_condensed(tmp_path / "model", layers, arrays=arrays)
  file = sx.load_condensed_file(tmp_path / "model")
  blank = jax.tree.map(lambda x: x * 0 if eqx.is_array(x) else x, model)
  again = sx.merge_condensed(blank, file.layers, file.arrays)
  x = example(3, 4, 6, 6)
  run = eqx.filter_jit(lambda models, x: [jax.vmap(model)(x) for model in models])
  expected, *outputs = run([model, condensed, again], x)
  for y in outputs:
    assert_close(y, expected, 1e-5)


def test_what_equinox_cannot_condense(eqx):
  cell = eqx.nn.GRUCell(4, 2, key=jax.random.key(0))
  with pytest.raises(ValueError, match=r"'weight_ih' cannot be condensed.*by itself"):
    sx.condense_equinox(cell, {"weight_ih": np.ones((6, 4), bool)})
  linear = eqx.nn.Linear(4, 2, key=jax.random.key(0))
  with pytest.raises(ValueError, match="names 'kernel'"):
    sx.condense_equinox(linear, {"kernel": np.ones((2, 4), bool)})
  layer = sx.condense_equinox(linear, {"weight": np.ones((2, 4), bool)}, batch=8)
  assert_close(layer(jnp.ones(4)), linear(jnp.ones(4)), 1e-5)
  with pytest.raises(ValueError, match="condense_equinox"):
    sx.condense_model(linear, {})
  with pytest.raises(ValueError, match="takes an equinox"):
    sx.condense_equinox({}, {})
