import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.experimental import pallas as pl

import srigl_jax as sx
from srigl_jax.analysis import flops


def array(*shape, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(shape, dtype)


def linen_macs(module, *args):
  variables = jax.eval_shape(module.init, jax.random.key(0), *args)
  return sx.layer_macs(module.apply, variables, *args)


# Hand-computed: output positions x window x inputs per group x outputs.
CONVNET_MACS = {
  "stem/kernel": (5 * 5) * (3 * 3) * 3 * 8,  # 9x9, stride 2, SAME
  "depthwise/kernel": (3 * 3) * (3 * 3) * 1 * 8,  # 5x5, VALID
  "pointwise/kernel": (3 * 3) * (1 * 1) * 8 * 16,
  "head/kernel": 16 * 10,
}


class LinenConvNet(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(8, (3, 3), strides=2, name="stem")(x))
    x = nn.BatchNorm(use_running_average=True, name="norm")(x)
    depthwise = nn.Conv(8, (3, 3), padding="VALID", feature_group_count=8, name="depthwise")
    x = nn.relu(depthwise(x))
    x = nn.relu(nn.Conv(16, (1, 1), use_bias=False, name="pointwise")(x))
    return nn.Dense(10, name="head")(x.mean(axis=(1, 2)))


class NnxConvNet(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
    self.depthwise = nnx.Conv(8, 8, (3, 3), padding="VALID", feature_group_count=8, rngs=rngs)
    self.pointwise = nnx.Conv(8, 16, (1, 1), use_bias=False, rngs=rngs)
    self.head = nnx.Linear(16, 10, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.stem(x)))
    x = nnx.relu(self.pointwise(nnx.relu(self.depthwise(x))))
    return self.head(x.mean(axis=(1, 2)))


def test_linen_convnet():
  macs = linen_macs(LinenConvNet(), array(1, 9, 9, 3))
  assert macs == {f"params/{path}": n for path, n in CONVNET_MACS.items()}


@pytest.mark.parametrize("batch", [1, 7])
def test_nnx_convnet(batch):
  model = nnx.eval_shape(lambda: NnxConvNet(nnx.Rngs(0)))
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  forward = lambda params, rest, x: nnx.merge(graph, params, rest)(x)
  macs = sx.layer_macs(forward, params, rest, array(batch, 9, 9, 3))
  assert macs == {path: batch * n for path, n in CONVNET_MACS.items()}


def test_transposed_convolution_skips_the_inserted_zeros():
  module = nn.ConvTranspose(5, (3, 3), strides=(2, 2))
  macs = linen_macs(module, array(1, 4, 4, 2))
  assert macs == {"params/kernel": (4 * 4) * (3 * 3) * 2 * 5}


def test_dense_per_token_counts_every_token():
  assert linen_macs(nn.Dense(6), array(1, 11, 4)) == {"params/kernel": 11 * 4 * 6}


def test_attention():
  tokens, width, heads, size = 5, 12, 3, 4
  module = nn.MultiHeadDotProductAttention(num_heads=heads)
  x = array(1, tokens, width)
  variables = jax.eval_shape(module.init, jax.random.key(0), x)
  macs = sx.layer_macs(module.apply, variables, x)
  assert macs == {
    f"params/{name}/kernel": tokens * width * heads * size
    for name in ("key", "out", "query", "value")
  }
  scores_and_mixing = 2 * heads * tokens * tokens * size
  total = sx.total_macs(module.apply, variables, x)
  assert total == sum(macs.values()) + scores_and_mixing


def test_norm_scale_owns_no_product_though_it_has_the_shape_of_the_input():
  macs = linen_macs(nn.Sequential([nn.LayerNorm(), nn.Dense(3)]), array(1, 4))
  assert macs == {"params/layers_1/kernel": 4 * 3}


def test_shared_parameter_adds_up():
  class Tied(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(9, 4)
      dense = nn.Dense(4, name="twice")
      return embed.attend(dense(dense(embed(tokens))))

  macs = linen_macs(Tied(), array(1, 6, dtype=jnp.int32))
  assert macs == {
    "params/Embed_0/embedding": 6 * 4 * 9,  # the read-out; looking tokens up costs nothing
    "params/twice/kernel": 2 * 6 * 4 * 4,
  }


def test_linen_scan_and_remat():
  class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
      return nn.relu(nn.remat(nn.Dense)(4, name="dense")(x)), None

  class Deep(nn.Module):
    @nn.compact
    def __call__(self, x):
      stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
      return nn.jit(nn.Dense)(3, name="head")(stack(name="blocks")(x, None)[0])

  macs = linen_macs(Deep(), array(1, 4))
  assert macs == {"params/blocks/dense/kernel": 5 * 4 * 4, "params/head/kernel": 4 * 3}


def test_nnx_scan():
  @nnx.vmap(in_axes=0, out_axes=0)
  def make(key):
    return nnx.Linear(4, 4, rngs=nnx.Rngs(key))

  graph, params = nnx.split(make(jax.random.split(jax.random.key(0), 5)))

  def forward(params, x):
    apply = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    return apply(x, nnx.merge(graph, params))

  assert sx.layer_macs(forward, params, array(1, 4)) == {"kernel": 5 * 4 * 4}


W, X, MASK = array(4, 4), array(1, 4), array(4, 4, dtype=jnp.bool_)
N = 16  # MACs of X @ W


@jax.custom_jvp
def jvp_identity(w):
  return w


@jax.custom_vjp
def vjp_identity(w):
  return w


jvp_identity.defjvp(lambda w, dw: (*w, *dw))
vjp_identity.defvjp(lambda w: (w, None), lambda _, dw: (dw,))


@pytest.mark.parametrize(
  "view",
  [
    lambda w, mask: jnp.where(mask, w, 0),
    lambda w, mask: w * mask,
    lambda w, mask: (w.astype(jnp.bfloat16) * mask.astype(jnp.bfloat16)).astype(jnp.float32),
    lambda w, mask: w * np.eye(4, dtype=np.float32),
    lambda w, mask: jax.jit(lambda w: 0.5 * w.T)(w),
    lambda w, mask: jnp.squeeze(jnp.expand_dims(w, 0), 0).copy().reshape(2, 8).reshape(4, 4),
    lambda w, mask: jax.lax.stop_gradient(jvp_identity(vjp_identity(w))),
    lambda w, mask: (w - w.mean(axis=0, keepdims=True)) / w.std(axis=0, keepdims=True),
    lambda w, mask: jax.lax.cond(mask.any(), lambda: w, lambda: w.T),
  ],
)
def test_parameter_is_followed_through_views(view):
  forward = lambda params, x, mask: jax.nn.relu(x @ view(params["w"], mask))
  assert sx.layer_macs(forward, {"w": W}, X, MASK) == {"w": N}
  assert sx.total_macs(forward, {"w": W}, X, MASK) == N


def test_slices_of_a_fused_kernel_add_up():
  def forward(params, x):
    q, k = jnp.split(params, 2, axis=1)
    return (x @ q) * (x @ k) + x @ params[:, :2]

  assert sx.layer_macs(forward, W, X) == {"": 4 * 2 * 3}


def test_weight_normalisation_belongs_to_the_direction():
  unit = lambda v: v / jnp.linalg.norm(v, axis=0, keepdims=True)
  forward = lambda p, x: x @ (p["gain"] * unit(p["v"]))
  assert sx.layer_macs(forward, {"gain": array(1, 4), "v": W}, X) == {"v": N}


def test_concatenated_kernels_are_in_the_total_only():
  forward = lambda params, x: x @ jnp.concatenate(params, axis=1)
  params = [array(4, 3), array(4, 1)]
  assert sx.layer_macs(forward, params, X) == {}
  assert sx.total_macs(forward, params, X) == N


def test_product_of_two_parameters_is_in_the_total_only():
  forward = lambda p, x: x @ (p["a"] @ p["b"])
  params = {"a": array(4, 2), "b": array(2, 4)}
  assert sx.layer_macs(forward, params, X) == {}
  assert sx.total_macs(forward, params, X) == 4 * 2 * 4 + N


@pytest.mark.parametrize(
  ("body", "expected"),
  [
    (lambda w, x: jax.lax.fori_loop(0, 3, lambda _, x: x @ w, x), 3 * N),
    (lambda w, x: jax.lax.scan(lambda c, _: ((c[0].T, c[1] @ c[0]), None), (w, x), length=3)[0],
     3 * N),
    (lambda w, x: jax.lax.while_loop(lambda x: x.sum() < 1, lambda x: x @ w @ w, x), 2 * N),
    (lambda w, x: jax.lax.while_loop(lambda x: (x @ w).sum() < 1, lambda x: x + 1, x), N),
    (lambda w, x: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), 2 * N),
    (lambda w, x: jax.lax.switch(0, [lambda: x, lambda: x @ w, lambda: x]), N),
    (jax.checkpoint(lambda w, x: x @ w), N),
    (jax.vmap(lambda w, x: w @ x, in_axes=(None, 0)), N),
  ],
)  # fmt: skip
def test_control_flow(body, expected):
  assert sx.layer_macs(body, W, X) == {"": expected}


def test_nested_scan_over_stacked_layers_with_data_in_a_carry_that_starts_as_zeros():
  def outer(carry, w):
    y, h = carry
    step = lambda h, _: (jnp.tanh(y @ w + h * 2), None)
    h, _ = jax.lax.scan(step, h, None, length=2)
    return (y, h), h @ w

  def forward(params, x):
    carry, ys = jax.lax.scan(outer, (x, jnp.zeros((1, 4))), params["stack"])
    return carry, ys

  assert sx.layer_macs(forward, {"stack": array(3, 4, 4)}, X) == {"stack": 3 * (2 + 1) * N}


def test_numeric_argument_is_data_even_if_it_is_meant_as_a_mask():
  forward = lambda w, x, mask: x @ (w * mask)
  assert sx.layer_macs(forward, W, X, array(4, 4)) == {}


def test_refuses_what_it_cannot_count():
  def kernel(x_ref, w_ref, out_ref):
    out_ref[...] = x_ref[...] @ w_ref[...]

  call = lambda w, x: pl.pallas_call(kernel, out_shape=x)(x, w)
  with pytest.raises(ValueError, match="inside a `pallas_call`"):
    sx.layer_macs(call, W, X)


@pytest.mark.parametrize("batch", [1, 32])
def test_agrees_with_xla(batch):
  class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
      for width in (64, 64, 10):
        x = nn.Dense(width)(x)
      return x

  x = array(batch, 48)
  variables = jax.eval_shape(Mlp().init, jax.random.key(0), x)
  cost = jax.jit(Mlp().apply).lower(variables, x).cost_analysis()
  additions = batch * (64 + 64 + 10)  # of the biases, which XLA counts too
  expected = 2 * sx.total_macs(Mlp().apply, variables, x) + additions
  np.testing.assert_allclose(cost["flops"], expected, rtol=0.01)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_convolution_agrees_with_xla(groups):
  def forward(kernel, x):
    return jax.lax.conv_general_dilated(
      x, kernel, (2, 1), "VALID", rhs_dilation=(1, 2), feature_group_count=groups,
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip

  kernel, x = array(3, 2, 8 // groups, 16), array(2, 9, 8, 8)
  cost = jax.jit(forward).lower(kernel, x).cost_analysis()
  np.testing.assert_allclose(cost["flops"], 2 * sx.total_macs(forward, kernel, x), rtol=0.01)


def test_relative_flops():
  macs = {"a": 600, "b": 300, "head": 100}
  assert flops.relative_flops(macs, {}) == 1.0
  # (0.1 * 600 + 0.5 * 300 + 100) / 1000
  assert flops.relative_flops(macs, {"a": 0.1, "b": 0.5}) == pytest.approx(0.31)
  assert flops.relative_flops(macs, dict.fromkeys(macs, jnp.float32(0))) == 0.0


@pytest.mark.parametrize(
  ("macs", "densities", "message"),
  [
    ({}, {}, "at least one"),
    ({"a": 1}, {"b": 0.5}, r"names \['b'\], but only \['a'\]"),
    ({"a": 1, "b": 1}, {"a": 1.5, "b": 0.1}, r"0\.\.1, .* \{'a': 1\.5\}"),
  ],
)
def test_relative_flops_rejects(macs, densities, message):
  with pytest.raises(ValueError, match=message):
    flops.relative_flops(macs, densities)


def test_training_flops():
  # Nine sparse steps of 3 * 0.5 and one update of 4 * 0.5 + 1, over ten dense ones of 3.
  assert flops.training_flops(0.5, update_every=9) == pytest.approx((9 * 1.5 + 3) / 30)
  rigl = flops.training_flops(0.5, update_every=9, convention="rigl")
  assert rigl == pytest.approx((9 * 1.5 + 2) / 30)
  # A dense network that "updates" costs as much as any other in RigL's convention only.
  assert flops.training_flops(1.0, update_every=9, convention="rigl") == 1.0
  assert flops.training_flops(1.0, update_every=9) > 1.0
  always = {"static": 0.25, "every_step": 0.5, "straight_through": 0.75}
  for convention, expected in always.items():
    assert flops.training_flops(0.25, convention=convention) == expected


def test_mean_flops():
  """Dense for 6 of 10 steps, then half, then a tenth; what comes after the end does not count."""
  assert flops.mean_flops({0: 1.0, 8: 0.1, 6: 0.5, 10: 0.0}, 10) == pytest.approx(0.72)
  for history, steps in (({}, 10), ({1: 1.0}, 10), ({0: 1.0}, 0)):
    with pytest.raises(ValueError, match="must begin at step 0"):
      flops.mean_flops(history, steps)


# Published for ResNet-50 with ERK at 75, 80, 90, 95 and 99 % sparsity: inference, training.
RESNET50 = [(0.477, 0.482), (0.415, 0.419), (0.243, 0.247), (0.123, 0.127), (0.026, 0.029)]


def reproduces(published, **kwargs):
  """Whether some inference FLOPs that round to the published ones give the training FLOPs."""
  inference, training = published
  low, high = (flops.training_flops(inference + d, **kwargs) for d in (-0.0005, 0.0005))
  return low <= training + 0.0005 and high >= training - 0.0005


def test_published_training_flops():
  fits = lambda **kwargs: all(reproduces(row, **kwargs) for row in RESNET50)
  assert [n for n in range(1, 1000) if fits(update_every=n)] == list(range(94, 123))
  assert not any(fits(update_every=n, convention="rigl") for n in range(1, 1000))
  rigl = functools.partial(reproduces, convention="rigl")
  for row, first, last in ((RESNET50[1], 39, 63), (RESNET50[-1], 81, 161)):
    ok = [n for n in range(1, 1000) if rigl(row, update_every=n)]
    assert (ok[0], ok[-1]) == (first, last)
  assert flops.training_flops(0.415, update_every=800) == pytest.approx(0.416, abs=5e-4)


@pytest.mark.parametrize(
  ("kwargs", "message"),
  [
    ({"convention": "sr"}, r"one of \['srigl', 'rigl', 'static', .*\], not 'sr'"),
    ({"update_every": 0}, "at least 1 step, not 0"),
    ({"update_every": None}, "at least 1 step, not None"),
    ({"inference": 41.5}, r"0\.\.1, not 41\.5"),
  ],
)
def test_training_flops_rejects(kwargs, message):
  with pytest.raises(ValueError, match=message):
    flops.training_flops(**{"inference": 0.4, "update_every": 100, **kwargs})


@pytest.mark.parametrize("structure", ["constant_fan_in", "unstructured"])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
@pytest.mark.parametrize("relative", [0.1, 0.2, 0.6])
def test_sparsity_for_flops_costs_what_was_asked(distribution, relative, structure):
  """Of what masks have in the end: constant fan-in leaves a part of its budget unused."""
  params = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((2048, 64), jnp.float32)},
  }
  macs = {"conv/kernel": 64 * 9 * 16 * 32, "head/kernel": 2048 * 64}
  sparsity = sx.sparsity_for_flops(params, macs, relative, distribution, structure=structure)
  allocation = sx.allocate(params, sparsity, distribution, structure=structure)
  masks = sx.init_masks(jax.random.key(0), allocation)
  densities = {path: float(mask.mean()) for path, mask in masks.items()}
  steps = 0.05 if structure == "constant_fan_in" else 5e-3
  assert sx.relative_flops(macs, densities) == pytest.approx(relative, rel=steps)


def test_sparsity_for_flops_says_what_is_out_of_reach():
  params = {
    "conv": {"kernel": jax.ShapeDtypeStruct((3, 3, 16, 32), jnp.float32)},
    "head": {"kernel": jax.ShapeDtypeStruct((256, 10), jnp.float32)},
  }
  macs = {"conv/kernel": 64 * 9 * 16 * 32, "head/kernel": 2560}
  with pytest.raises(ValueError, match=r"No sparsity brings .* 0.005 .* Ask for more FLOPs"):
    sx.sparsity_for_flops(params, macs, 0.005, sparse=sx.all_but("head"))
  with pytest.raises(ValueError, match=r"relative is 1.5; it must lie in \(0, 1\)"):
    sx.sparsity_for_flops(params, macs, 1.5)
