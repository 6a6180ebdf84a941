"""Trees as the frameworks themselves make them; Equinox, Haiku, Keras where they are installed."""

import os
import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_jax import Axes

KEY = jax.random.key(0)


def plan_of(params, **kwargs):
  """The plan, without a doubt about any layout."""
  with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*may as well be")
    return sx.plan(params, fan_in=2, show=False, ablate=False, **kwargs)


def axes_of(plan):
  """`{path: (neurons, inputs)}` of the layers."""
  return {leaf.path: (leaf.num_neurons, leaf.dense_fan_in) for leaf in plan.layers}


def masks_of(params, **kwargs):
  tx = sx.srigl(optax.sgd(0.1), fan_in=2, update_until=9, ablate=False, **kwargs)
  return sx.get_masks(tx.init(params))


class LinenBlock(nn.Module):
  @nn.compact
  def __call__(self, x, _=None):
    y = nn.LayerNorm()(x)
    y = nn.DenseGeneral((3, 2, 4), name="qkv")(y)
    y = nn.DenseGeneral(8, axis=(-2, -1), name="out")(y[:, :, 0])
    x = x + nn.MultiHeadDotProductAttention(2)(y)
    return x + nn.Dense(8)(nn.relu(nn.Dense(16)(x))), None


class LinenNet(nn.Module):
  scanned: bool

  @nn.compact
  def __call__(self, tokens):
    x = nn.Embed(11, 8, name="wte")(tokens)
    x = x + self.param("wpe", nn.initializers.normal(), (1, 5, 8))
    if self.scanned:
      scan = nn.scan(LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
      x, _ = scan(name="blocks")(x, None)
    else:
      for i in range(3):
        x, _ = LinenBlock(name=f"blocks_{i}")(x)
    return nn.Dense(11, name="head")(x)


def test_linen_scanned_is_linen_unrolled():
  tokens = jnp.zeros((2, 5), jnp.int32)
  init = lambda scanned: jax.eval_shape(LinenNet(scanned).init, KEY, tokens)
  scanned, unrolled = plan_of(init(True)), plan_of(init(False))
  one = {p.replace("blocks_0", "blocks"): x for p, x in axes_of(unrolled).items() if "_1/" not in p}
  one = {p: x for p, x in one.items() if "blocks_" not in p}
  found = axes_of(scanned)
  kernels = {path for path in found if path.startswith("params/blocks")}
  assert {p: x for p, x in found.items() if "Dense_1" not in p} == {
    p: x for p, x in one.items() if "Dense_1" not in p
  }
  assert all(scanned[path].num_stacked == 3 for path in kernels)
  assert found["params/blocks/qkv/kernel"] == (24, 8)
  assert found["params/blocks/out/kernel"] == (8, 8)
  assert found["params/blocks/MultiHeadDotProductAttention_0/query/kernel"] == (8, 8)
  assert [leaf.path for leaf in scanned.layers if leaf.is_head] == ["params/head/kernel"]
  kinds = {leaf.path: leaf.kind for leaf in scanned.leaves}
  assert kinds["params/wpe"] == "position table"
  assert kinds["params/blocks/LayerNorm_0/scale"] == "norm"


class NnxNet(nnx.Module):
  def __init__(self, rngs):
    self.embed = nnx.Embed(11, 8, rngs=rngs)
    self.attn = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
    self.fused = nnx.LinearGeneral(8, (3, 2, 4), rngs=rngs)
    self.up = nnx.ConvTranspose(3, 4, (3, 3), rngs=rngs)
    self.lora = nnx.LoRALinear(8, 8, lora_rank=2, rngs=rngs)
    self.cell = nnx.LSTMCell(4, 5, rngs=rngs)
    self.head = nnx.Linear(8, 3, rngs=rngs)


def test_nnx():
  params = nnx.state(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))), nnx.Param)
  plan = plan_of(params)
  found = axes_of(plan)
  assert found["fused/kernel"] == (24, 8) and found["attn/out/kernel"] == (8, 8)
  assert found["up/kernel"] == (4, 27) and found["lora/kernel"] == (8, 8)
  assert found["cell/ii/kernel"] == (5, 4)
  assert plan["lora/lora/lora_a"].kind == plan["lora/lora/lora_b"].kind == "adapter"
  assert plan["attn/out/kernel"].kind == "attention out"
  assert plan["embed/embedding"].kind == "embedding"


def test_equinox():
  eqx = pytest.importorskip("equinox")
  model = {
    "mlp": eqx.nn.MLP(8, 8, 8, 1, key=KEY),
    "attn": eqx.nn.MultiheadAttention(2, 8, key=KEY),
    "conv": eqx.nn.Conv2d(3, 4, 3, key=KEY),
    "conv1": eqx.nn.Conv1d(4, 4, 3, use_bias=False, key=KEY),
    "up": eqx.nn.ConvTranspose2d(3, 5, 2, key=KEY),
    "norm2": eqx.nn.LayerNorm((3, 4)),
    "rms": eqx.nn.RMSNorm((3, 4), use_bias=False),
    "table": eqx.nn.Embedding(10, 8, key=KEY),
    "cell": eqx.nn.GRUCell(4, 5, key=KEY),
    "stack": eqx.filter_vmap(lambda key: eqx.nn.Linear(6, 6, use_bias=False, key=key))(
      jax.random.split(KEY, 3)
    ),
  }
  params = eqx.filter(model, eqx.is_inexact_array)
  plan = plan_of(params)
  found = axes_of(plan)
  assert found["mlp/layers/0/weight"] == found["attn/query_proj/weight"] == (8, 8)
  assert found["conv/weight"] == (4, 27) and found["conv1/weight"] == (4, 12)
  assert found["up/weight"] == (5, 12) and found["cell/weight_ih"] == (15, 4)
  assert found["stack/weight"] == (6, 6) and plan["stack/weight"].num_stacked == 3
  assert plan["norm2/weight"].kind == plan["rms/weight"].kind == "norm"
  assert plan["table/weight"].kind == "embedding"
  params = {name: params[name] for name in ("mlp", "stack")}
  masks = masks_of(params)
  assert {int(n) for n in masks["mlp/layers/0/weight"].sum(1)} == {2}
  assert {int(n) for n in masks["stack/weight"].sum(2).ravel()} == {2}
  weight = sx.apply_masks(params, masks)["mlp"].layers[0].weight
  layer = sx.condense(weight, masks["mlp/layers/0/weight"])
  assert layer.neuron_axes == (0,)


def test_equinox_modules_of_ones_own():
  eqx = pytest.importorskip("equinox")

  class Layer(eqx.Module):
    w: jax.Array

  with pytest.warns(UserWarning, match=r"'w' of shape \(8, 4\).*axes=sx\.axes\.flax"):
    masks = masks_of(Layer(jnp.ones((8, 4))))
  assert next(iter(masks)).axes == Axes((0,))


def test_haiku():
  hk = pytest.importorskip("haiku")

  def model(x):
    x = hk.Embed(10, 8)(x)[None]
    x = x + hk.get_parameter("pos_embs", (3, 8), init=jnp.zeros)[None]
    x = hk.MultiHeadAttention(2, 4, w_init=hk.initializers.RandomNormal())(x, x, x)
    x = hk.nets.MLP([16, 8])(hk.LayerNorm(-1, True, True)(x))
    x = hk.Conv2DTranspose(6, 3)(hk.DepthwiseConv2D(1, 3)(x[None]))
    return hk.Linear(4)(x)

  params = jax.eval_shape(hk.transform(model).init, KEY, jnp.zeros(3, jnp.int32))
  for kwargs in ({}, {"axes": sx.axes.haiku}):
    plan = plan_of(params, **kwargs)
    found = axes_of(plan)
    assert found["mlp/~/linear_0/w"] == (16, 8)
    assert found["multi_head_attention/query/w"] == (8, 8)
    assert found["conv2_d_transpose/w"] == (6, 72) and found["depthwise_conv2_d/w"] == (8, 9)
    assert plan["embed/embeddings"].kind == "embedding"
    assert plan["~/pos_embs"].kind == "position table"
    assert plan["layer_norm/scale"].kind == "norm"
    assert [leaf.path for leaf in plan.layers if leaf.is_head] == ["linear/w"]


@pytest.mark.slow
def test_keras():
  os.environ.setdefault("KERAS_BACKEND", "jax")
  keras = pytest.importorskip("keras")
  if keras.backend.backend() != "jax":
    pytest.skip("Keras is on another backend")
  layers = keras.layers
  x = inputs = keras.Input((8, 8, 3))
  x = layers.DepthwiseConv2D(3, depth_multiplier=2)(layers.Conv2D(4, 3)(x))
  x = layers.Conv2DTranspose(6, 3)(layers.SeparableConv2D(8, 3)(x))
  x = layers.Reshape((-1, 6))(layers.BatchNormalization()(x))
  x = layers.MultiHeadAttention(2, 3)(x, x)
  x = layers.EinsumDense("abc,cde->abde", output_shape=(None, 7, 2), bias_axes="de")(x)
  x = layers.EinsumDense("abde,def->abf", output_shape=(None, 5), bias_axes="f")(x)
  model = keras.Model(inputs, layers.Dense(10)(layers.LayerNormalization()(x)))
  params = {v.path: v.value for v in model.trainable_variables}
  expected = {
    "conv2d/kernel": (4, 27),
    "depthwise_conv2d/kernel": (8, 9),
    "separable_conv2d/depthwise_kernel": (8, 9),
    "separable_conv2d/pointwise_kernel": (8, 8),
    "conv2d_transpose/kernel": (6, 72),
    "multi_head_attention/query/kernel": (6, 6),
    "multi_head_attention/key/kernel": (6, 6),
    "multi_head_attention/value/kernel": (6, 6),
    "multi_head_attention/attention_output/kernel": (6, 6),
    "einsum_dense/kernel": (14, 6),
    "einsum_dense_1/kernel": (5, 14),
    "dense/kernel": (10, 5),
  }
  for kwargs in ({}, {"axes": sx.axes.keras}):
    assert axes_of(plan_of(params, **kwargs)) == expected
