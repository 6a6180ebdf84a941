import subprocess
import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from experiments import models
from srigl_jax.layers import leaf_dict
from srigl_kernels import BACKENDS

DENSE = ("head/kernel", "stem/kernel")


def fresh(build_fn):
  """A model with random weights from numpy: Flax's initializers take seconds to compile."""
  model = nnx.eval_shape(lambda: build_fn(nnx.Rngs(0)))
  rng = np.random.default_rng(0)
  for _, variable in nnx.to_flat_state(nnx.state(model)):
    old = variable.get_value()
    if isinstance(variable, nnx.RngKey):
      variable.set_value(jax.random.key(0))
    elif old.ndim < 2:
      variable.set_value(jnp.asarray(np.ones(old.shape, old.dtype)))
    else:
      kernel = rng.normal(size=old.shape) / np.sqrt(np.prod(old.shape[:-1]))
      variable.set_value(jnp.asarray(kernel, old.dtype))
  return model


def sparsify(model, seed=0, *, sparsity=0.8, ablate=0.4, dense=DENSE):
  """Random masks of constant fan-in with ablated neurons; biases and statistics at random."""
  rng = np.random.default_rng(seed)
  masks = {}
  for path, kernel in leaf_dict(nnx.state(model, nnx.Param)).items():
    if path.endswith("kernel") and path not in dense:
      axes = sx.flax_axes(path, kernel.shape).neurons
      neurons = int(np.prod([kernel.shape[a] for a in axes]))
      inputs = kernel.size // neurons
      mask = rng.random((inputs, neurons)).argsort(axis=0) < max(1, inputs * (1 - sparsity))
      mask[:, rng.permutation(neurons) < round(ablate * neurons)] = False
      masks[path] = mask.reshape(kernel.shape)
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))):
    name, old = "/".join(map(str, path)), variable.get_value()
    if old.ndim == 1:
      draw = rng.uniform(0.5, 2, old.shape) if path[-1] == "var" else rng.normal(size=old.shape)
      variable.set_value(jnp.asarray(draw, old.dtype))
    elif name in masks:
      variable.set_value(jnp.asarray(np.where(masks[name], old, 0)))
  return masks


def example(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_close(actual, expected, tolerance=2e-5):
  scale = float(np.abs(np.asarray(expected, np.float32)).max()) or 1.0
  assert actual.shape == expected.shape and actual.dtype == expected.dtype
  np.testing.assert_allclose(
    np.asarray(actual, np.float32), np.asarray(expected, np.float32), rtol=0, atol=tolerance * scale
  )


def numbers(model):
  """The arrays of a model."""
  state = nnx.state(model, nnx.Not(nnx.RngState))
  value = lambda x: x.get_value() if isinstance(x, nnx.Variable) else x
  return {path: np.asarray(value(x)) for path, x in nnx.to_flat_state(state)}


def check(model, masks, *inputs, tolerance=2e-5, call=lambda m, *x: m(*x), **kwargs):
  """Condenses with and without folding, compares outputs, and returns the folded model's report."""
  reference = nnx.clone(model)
  reference.set_attributes(deterministic=True, use_running_average=True, raise_if_not_found=False)
  before = numbers(model)
  swapped = sx.condense_model(model, masks)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    folded = sx.condense_model(model, masks, tuple(inputs), call=call, **kwargs)
  run_all = nnx.jit(lambda models, inputs: [call(m, *inputs) for m in models])  # compiled at once
  expected, *actual = run_all([nnx.clone(m) for m in (reference, swapped, folded)], inputs)
  for y in actual:
    assert_close(y, expected, tolerance)
  jax.tree.map(np.testing.assert_array_equal, before, numbers(model))
  return sx.folding_report(model, folded)


def left(report):
  """Neurons left by path of the layer."""
  return {x.path.removesuffix("/kernel"): x.neurons_left for x in report.layers}


def has_weights(mask):
  return int(np.any(mask, axis=tuple(range(mask.ndim - 1))).sum())


MODELS = {
  "mlp": {"hidden": (48, 40)},
  "convnet": {"widths": (8, 12), "convs_per_stage": 1},
  "resnet18": {"stage_sizes": (1, 1), "width": 8},
  "wide_resnet22_2": {"depth": 10, "widen": 1},
}


def build(name, **kwargs):
  kwargs |= {"num_classes": 5, "image_shape": (8, 8, 3), **MODELS[name]}
  return fresh(lambda rngs: models.build(name, rngs=rngs, **kwargs))


@pytest.mark.parametrize(
  ("name", "dtype"),
  [
    ("mlp", "float32"),
    ("convnet", "float32"),
    ("convnet", "bfloat16"),
    ("resnet18", "float32"),
    pytest.param("wide_resnet22_2", "float32", marks=pytest.mark.slow),
  ],
)
def test_models_of_the_experiments(name, dtype):
  model = build(name, dtype=dtype)
  masks = sparsify(model)
  tolerance = 2e-5 if dtype == "float32" else 6e-2
  report = check(model, masks, example(3, 8, 8, 3), tolerance=tolerance)
  assert report.folded_neurons > 0
  norms = {"mlp": 0, "convnet": 2, "resnet18": 6, "wide_resnet22_2": 3}
  assert len(report.folded_norms) == norms[name]
  assert len(report.norms) == (4 if name == "wide_resnet22_2" else 0)


def test_every_ablated_neuron_of_an_mlp_is_folded():
  model = build("mlp")
  masks = sparsify(model)
  model_left = left(check(model, masks, example(3, 8, 8, 3)))
  assert model_left["head"] == 5
  assert model_left["hidden/1"] == has_weights(masks["hidden/1/kernel"])
  assert model_left["hidden/0"] <= has_weights(masks["hidden/0/kernel"])


def net(*layers):
  """A sequence of Linear layers (by size) and functions; the last one is called head."""

  class Net(nnx.Module):
    def __init__(self, rngs):
      self.steps = nnx.List()
      for step in layers:
        self.steps.append(step(rngs) if isinstance(step, type) or hasattr(step, "make") else step)

    def __call__(self, x):
      for step in self.steps:
        x = step(x)
      return x

  return fresh(Net)


def make(kind, *args, **kwargs):
  builder = lambda rngs: kind(*args, rngs=rngs, **kwargs)
  builder.make = True
  return builder


ACTIVATIONS = {
  "relu": nnx.relu,
  "gelu": nnx.gelu,
  "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
  "silu": nnx.silu,
  "sigmoid": nnx.sigmoid,
  "tanh": jnp.tanh,
  "softplus": jax.nn.softplus,
  "leaky": lambda x: jnp.where(x > 0, x, 0.1 * x) + 0.5,
  "jitted": jax.jit(lambda x: jax.nn.elu(x) * 2),
  "checkpointed": jax.checkpoint(lambda x: jnp.sin(x) ** 2),
  "clipped": lambda x: jnp.clip(x, -0.3, 0.3),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_activations(name, bias):
  f = ACTIVATIONS[name]
  linear = lambda i, o: make(nnx.Linear, i, o, use_bias=bias)
  model = net(linear(12, 20), f, linear(20, 16), f, linear(16, 7))
  masks = sparsify(model, dense=("steps/4/kernel",))
  report = check(model, masks, example(4, 12))
  assert left(report)["steps/0"] <= has_weights(masks["steps/0/kernel"])
  assert left(report)["steps/2"] == has_weights(masks["steps/2/kernel"])


def test_everything_sparse_and_the_output_too():
  model = net(make(nnx.Linear, 12, 20), nnx.gelu, make(nnx.Linear, 20, 16))
  masks = sparsify(model, dense=())
  report = check(model, masks, example(4, 12))
  assert left(report)["steps/2"] == 16  # what is returned stays


def test_fan_ins_stay_equal():
  model = net(
    make(nnx.Linear, 12, 20), nnx.gelu, make(nnx.Linear, 20, 16), nnx.relu, make(nnx.Linear, 16, 3)
  )
  masks = sparsify(model, dense=("steps/4/kernel",))
  folded = sx.condense_model(model, masks, example(4, 12))
  layers, _ = sx.split_condensed(folded)
  kept = np.any(masks["steps/0/kernel"], axis=0)
  counts = masks["steps/2/kernel"][kept].sum(0)
  assert len({*counts[counts > 0]}) > 1  # unequal, were it not for weights of 0
  assert layers["steps/2/kernel"].fan_in == counts.max()


def test_neurons_that_read_only_constants_are_constants():
  model = net(
    make(nnx.Linear, 6, 4), nnx.sigmoid, make(nnx.Linear, 4, 3), nnx.sigmoid, make(nnx.Linear, 3, 2)
  )
  masks = sparsify(model, dense=("steps/4/kernel",))
  first, second = np.ones((6, 4), bool), np.zeros((4, 3), bool)
  first[:, :2] = False
  second[[0, 1], 0] = second[[1, 2], 1] = second[[2, 3], 2] = True
  masks = {"steps/0/kernel": first, "steps/2/kernel": second}
  for i in (0, 2):
    model.steps[i].kernel.set_value(jnp.where(masks[f"steps/{i}/kernel"], 0.7, 0.0))
  report = check(model, masks, example(5, 6))
  assert left(report) == {"steps/0": 2, "steps/2": 2, "steps/4": 2}


def test_channels_that_nobody_reads_go_with_what_they_read():
  model = net(
    make(nnx.Linear, 6, 5), nnx.relu, make(nnx.Linear, 5, 4), nnx.relu, make(nnx.Linear, 4, 2)
  )
  second, third = np.ones((5, 4), bool), np.ones((4, 2), bool)
  third[3] = False
  second[4, :3] = False
  second[0, 3] = False
  model.steps[2].kernel.set_value(jnp.where(second, 0.5, 0.0))
  model.steps[4].kernel.set_value(jnp.where(third, 0.5, 0.0))
  report = check(model, {"steps/2/kernel": second, "steps/4/kernel": third}, example(3, 6))
  assert left(report) == {"steps/0": 4, "steps/2": 3, "steps/4": 2}


def test_all_neurons_ablated():
  model = net(make(nnx.Linear, 6, 5), nnx.gelu, make(nnx.Linear, 5, 4))
  masks = sparsify(model, ablate=1.1, dense=("steps/2/kernel",))
  assert left(check(model, masks, example(3, 6)))["steps/0"] == 1


class Block(nnx.Module):
  """Something around a hidden layer."""

  def __init__(self, rngs):
    self.first = nnx.Linear(8, 12, rngs=rngs)
    self.second = nnx.Linear(12, 8, rngs=rngs)
    self.third = nnx.Linear(12, 8, use_bias=False, rngs=rngs)
    self.same = nnx.Linear(8, 8, rngs=rngs)
    self.norm = nnx.LayerNorm(12, rngs=rngs)
    self.bn = nnx.BatchNorm(12, rngs=rngs)
    self.gain = nnx.Param(jnp.full((12,), 2.0))
    self.slope = nnx.Param(jnp.asarray(0.2))


H = 12  # neurons of Block.first


def prelu(m, x):
  return jnp.where(x >= 0, x, m.slope[...] * x)


CALLS = {
  # name: (call, whether the hidden layer's ablated neurons go)
  "prelu": (lambda m, x: m.second(prelu(m, m.first(x))), True),
  "several consumers": (
    lambda m, x: m.second(nnx.gelu(h := m.first(x))) + m.third(jnp.tanh(h)),
    True,
  ),
  "layer norm": (lambda m, x: m.second(m.norm(m.first(x))), False),
  "layer norm beside": (lambda m, x: (m.second(h := m.first(x)), m.norm(h))[0], False),
  "residual": (lambda m, x: m.same(x) + m.second(nnx.relu(m.first(x))), True),
  "gain of its own": (lambda m, x: m.second(m.first(x) * m.gain[...][None]), False),
  "output as well": (lambda m, x: jnp.sum(h := m.first(x), -1, keepdims=True) + m.second(h), False),
  "flattened": (lambda m, x: m.second(m.first(x).reshape(-1, 6, 2).reshape(-1, H)), False),
  "vmapped": (lambda m, x: jax.vmap(lambda row: m.second(nnx.silu(m.first(row))))(x), True),
  "scanned": (
    lambda m, x: jax.lax.map(lambda row: m.second(nnx.silu(m.first(row))), x),
    False,
  ),
  "norm after": (lambda m, x: m.second(nnx.relu(m.bn(m.first(x)))), True),
  "norm later": (lambda m, x: m.second(nnx.silu(m.bn(nnx.gelu(m.first(x))))), True),
  "norm and bare": (lambda m, x: m.second(m.bn(h := m.first(x)) + h), True),
  "norm twice": (lambda m, x: m.second(m.bn(m.bn(m.first(x)))), False),
  "gated": (lambda m, x: m.second(nnx.silu(m.first(x)) * nnx.sigmoid(m.first(x))), False),
  "used twice": (lambda m, x: m.second(nnx.relu(m.first(m.second(nnx.relu(m.first(x)))))), False),
  "mean over positions": (
    lambda m, x: m.second(jnp.mean(nnx.gelu(m.first(x[:, None] + jnp.zeros((1, 3, 8)))), 1)),
    True,
  ),
  "mean over the batch": (lambda m, x: m.second(jnp.mean(m.first(x), 0, keepdims=True)), False),
  "scaled by sizes": (lambda m, x: m.second(m.first(x) / x.shape[-1]), True),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_folded_and_what_is_not(name):
  call, goes = CALLS[name]

  class Model(Block):
    def __call__(self, x):
      return call(self, x)

  model = fresh(Model)
  masks = sparsify(model, dense=("second/kernel", "third/kernel", "same/kernel"))
  model.slope.set_value(jnp.asarray(0.2))
  report = check(model, masks, example(4, 8))
  active = has_weights(masks["first/kernel"])
  assert 0 < active < H
  assert left(report)["first"] == (active if goes else H)


class Gated(nnx.Module):
  def __init__(self, rngs):
    self.gate = nnx.Linear(8, 12, use_bias=False, rngs=rngs)
    self.up = nnx.Linear(8, 12, rngs=rngs)
    self.head = nnx.Linear(12, 3, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.silu(self.gate(x)) * self.up(x))


def test_a_closed_gate_also_closes_what_it_gates():
  model = fresh(Gated)
  masks = sparsify(model, dense=("head/kernel", "up/kernel"))
  report = check(model, masks, example(4, 8))
  assert left(report)["gate"] == left(report)["up"] == has_weights(masks["gate/kernel"])


def test_code_that_depends_on_the_number_of_channels():
  class Model(Block):
    def __call__(self, x):
      h = self.first(x)
      return self.second(h * h.shape[-1])

  model = fresh(Model)
  masks = sparsify(model, dense=("second/kernel",))
  x = example(4, 8)
  with pytest.warns(UserWarning, match="computes something else"):
    folded = sx.condense_model(model, masks, x)
  assert_close(folded(x), model(x))

  class Fixed(Block):
    def __call__(self, x):
      return self.second(self.first(x).reshape(-1, 12))

  model = fresh(Fixed)
  sparsify(model, dense=("second/kernel",))
  with pytest.warns(UserWarning, match="then fails"):
    folded = sx.condense_model(model, masks, x)
  assert_close(folded(x), model(x))


class ConvPair(nnx.Module):
  def __init__(self, rngs, f, *, norm=True, **second):
    self.first = nnx.Conv(3, 10, (3, 3), rngs=rngs)
    self.bn = nnx.BatchNorm(10, rngs=rngs) if norm else None
    self.second = nnx.Conv(10, 6, **{"kernel_size": (3, 3), **second}, rngs=rngs)
    self.f = f

  def __call__(self, x):
    x = self.first(x)
    return self.second(self.f(x if self.bn is None else self.bn(x)))


@pytest.mark.parametrize(
  ("second", "removes"),
  [
    ({}, "zeros"),
    ({"padding": "SAME", "kernel_size": (1, 1)}, "all"),
    ({"padding": "VALID"}, "all"),
    ({"padding": ((0, 0), (0, 0)), "strides": 2}, "all"),
    ({"padding": 1, "strides": (2, 1)}, "zeros"),
    ({"padding": "CIRCULAR", "kernel_dilation": 2}, "all"),
    ({"padding": "REFLECT"}, "all"),
    ({"padding": ((0, 0), (0, 0)), "input_dilation": 2}, "zeros"),
    ({"padding": "SAME", "strides": None}, "zeros"),
    ({"padding": "VALID", "feature_group_count": 2}, "none"),
  ],
)
@pytest.mark.parametrize("norm", [True, False])
def test_convolutions(second, removes, norm):
  model = fresh(lambda rngs: ConvPair(rngs, nnx.relu, norm=norm, **second))
  masks = sparsify(model, ablate=0, sparsity=0.5, dense=())
  masks["first/kernel"][..., :4] = False
  model.first.kernel.set_value(jnp.where(masks["first/kernel"], model.first.kernel[...], 0))
  signs = jnp.asarray([1.0, -1.0] * 5)  # of what ablated neurons put out, before relu
  if norm:
    model.first.bias.set_value(jnp.zeros(10))
    model.bn.mean.set_value(jnp.zeros(10))
    model.bn.bias.set_value(signs)
  else:
    model.first.bias.set_value(signs)
  report = check(model, masks, example(2, 6, 6, 3))
  assert len(report.folded_norms) == norm
  assert left(report)["first"] == 10 - {"zeros": 2, "all": 4, "none": 0}[removes]


def test_pooling_lets_constants_through():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 10, (3, 3), rngs=rngs)
      self.head = nnx.Linear(10, 4, rngs=rngs)

    def __call__(self, x):
      x = nnx.max_pool(nnx.gelu(self.conv(x)), (3, 3), (2, 2), padding="SAME")
      x = nnx.avg_pool(x, (2, 2), (2, 2))
      return self.head(x.mean((1, 2)))

  model = fresh(Model)
  masks = sparsify(model)
  report = check(model, masks, example(2, 8, 8, 3))
  assert left(report)["conv"] == has_weights(masks["conv/kernel"])


def test_pixels_flattened_with_channels_stay():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 10, (3, 3), rngs=rngs)
      self.head = nnx.Linear(160, 4, rngs=rngs)

    def __call__(self, x):
      x = nnx.relu(self.conv(x))
      return self.head(x.reshape(x.shape[0], -1))

  model = fresh(Model)
  assert left(check(model, sparsify(model), example(2, 4, 4, 3)))["conv"] == 10


class Transformer(nnx.Module):
  def __init__(self, rngs, dtype=None):
    self.stem = nnx.Linear(12, 16, rngs=rngs)
    self.norm1 = nnx.LayerNorm(16, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      4, 16, dropout_rate=0.1, decode=False, dtype=dtype, rngs=rngs
    )
    self.norm2 = nnx.LayerNorm(16, rngs=rngs)
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.up = nnx.Linear(16, 32, rngs=rngs)
    self.down = nnx.Linear(32, 16, rngs=rngs)
    self.head = nnx.Linear(16, 5, rngs=rngs)

  def __call__(self, x):
    x = self.stem(x)
    x = x + self.attention(self.norm1(x))
    x = x + self.down(self.dropout(nnx.gelu(self.up(self.norm2(x)))))
    return self.head(x[:, 0])


def test_attention():
  model = fresh(Transformer)
  masks = sparsify(model)
  assert masks["attention/query/kernel"].shape == (16, 4, 4)
  assert "attention/out/kernel" in masks
  report = check(model, masks, example(2, 6, 12))
  assert left(report)["up"] <= has_weights(masks["up/kernel"])
  assert left(report)["attention/value"] == left(report)["down"] == 16


def test_a_module_in_two_places_is_replaced_in_both():
  class Model(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)
      self.b = nnx.List([self.a, nnx.Linear(8, 3, rngs=rngs)])

    def __call__(self, x):
      return self.b[1](nnx.relu(self.b[0](nnx.relu(self.a(x)))))

  model = fresh(Model)
  masks = sparsify(model, dense=("b/1/kernel",))
  check(model, masks, example(3, 8))
  folded = sx.condense_model(model, masks)
  assert folded.a is folded.b[0]


def test_batch_norms_of_dense_layers_are_folded():
  model = fresh(lambda rngs: ConvPair(rngs, nnx.relu))
  sparsify(model)
  report = check(model, {}, example(2, 8, 8, 3))
  assert report.folded_norms == ("bn",)
  folded = sx.condense_model(model, {}, example(2, 8, 8, 3))
  with pytest.raises(ValueError, match="inference mode"):
    folded.bn(jnp.ones((1, 10)), use_running_average=False)


def test_a_kernel_that_the_model_reads_by_itself():
  class Tied(nnx.Module):
    def __init__(self, rngs):
      self.first = nnx.Linear(6, 8, rngs=rngs)
      self.bn = nnx.BatchNorm(8, rngs=rngs)

    def __call__(self, x):
      return self.bn(self.first(x)) @ self.first.kernel[...].T

  model = fresh(Tied)
  assert check(model, {}, example(3, 6)).folded_norms == ()
  with pytest.raises(ValueError, match="'first' by itself"):
    sx.condense_model(model, sparsify(model), example(3, 6))


def test_a_call_of_ones_own():
  class Model(Block):
    def __call__(self, x, *, train):
      return self.second(nnx.relu(self.bn(self.first(x), use_running_average=not train)))

  model = fresh(Model)
  masks = sparsify(model, dense=("second/kernel",))
  report = check(model, masks, example(3, 8), call=lambda m, x: m(x, train=False))
  assert report.folded_norms == ("bn",)


def test_in_training_mode_nothing_of_a_batch_norm_is_folded():
  class Model(Block):
    def __call__(self, x):
      return self.second(nnx.relu(self.bn(self.first(x), use_running_average=False)))

  model = fresh(Model)
  masks = sparsify(model, dense=("second/kernel",))
  folded = sx.condense_model(model, masks, example(3, 8))
  report = sx.folding_report(model, folded)
  assert report.folded_norms == () and left(report)["first"] == H


def test_abstract_inputs_are_enough():
  model = build("mlp")
  masks = sparsify(model)
  x = example(3, 8, 8, 3)
  a = sx.condense_model(model, masks, x)
  b = sx.condense_model(model, masks, jax.ShapeDtypeStruct((7, 8, 8, 3), jnp.float32))
  np.testing.assert_array_equal(a(x), b(x))


def test_transformations():
  model = fresh(lambda rngs: ConvPair(rngs, nnx.gelu, padding="VALID"))
  x = example(3, 6, 6, 3)
  folded = sx.condense_model(model, sparsify(model), x)
  expected = jax.jit(lambda x: folded(x))(x)
  graphdef, state = nnx.split(folded)
  assert_close(jax.jit(lambda s, x: nnx.merge(graphdef, s)(x))(state, x), expected)
  assert_close(nnx.jit(lambda m, x: m(x))(folded, x), expected)
  assert_close(jax.jit(jax.vmap(lambda row: folded(row[None])[0]))(x), expected)
  assert_close(nnx.clone(folded)(x), expected)


def test_gradients_of_a_swapped_model():
  model = build("mlp")
  masks = sparsify(model)
  x = example(3, 8, 8, 3)
  swapped = sx.condense_model(model, masks)
  loss = lambda m: lambda x: (m(x) ** 2).sum()
  assert_close(jax.grad(loss(swapped))(x), jax.grad(loss(model))(x), 1e-4)


@pytest.mark.parametrize("backend", ["xla", "cpu"])
def test_export(backend):
  if not BACKENDS[backend].is_available():
    pytest.skip("the native kernels are not installed")
  model = build("mlp")
  x = example(3, 8, 8, 3)
  folded = sx.condense_model(model, sparsify(model), x, backend=backend)
  checks = [jax.export.DisabledSafetyCheck.custom_call("srigl_condensed_matmul")]
  exported = jax.export.export(
    jax.jit(lambda x: folded(x)), disabled_checks=checks if backend == "cpu" else []
  )(jax.ShapeDtypeStruct(x.shape, x.dtype))
  again = jax.export.deserialize(exported.serialize())
  assert_close(again.call(x), folded(x))


def test_the_report_is_a_table():
  model = build("convnet")
  x = example(2, 8, 8, 3)
  report = sx.folding_report(
    model, sx.condense_model(model, sparsify(model), x, backend="structured")
  )
  text = str(report)
  assert "blocks/0/conv/kernel" in text and "batch norms folded: 2 of 2" in text
  columns = ["layer", "inputs", "neurons", "active", "fan-in", "runs", "on"]
  assert text.splitlines()[0].split() == columns
  assert {x.backend for x in report.layers} == {"structured", None}


class MyLinear(nnx.Linear):
  pass


def test_what_cannot_be_condensed():
  x = example(2, 6)
  mask = np.ones((6, 4), bool)

  def refused(layer, match, masks=None):
    model = net(layer, nnx.relu)
    with pytest.raises(ValueError, match=match):
      sx.condense_model(model, masks or {"steps/0/kernel": mask}, x)

  refused(make(MyLinear, 6, 4), "'steps/0' of type MyLinear.*no subclass")
  refused(make(nnx.Linear, 6, 4), "steps/1/kernel.*no layer here", {"steps/1/kernel": mask})
  refused(make(nnx.Linear, 6, 4), "'steps/0'.*kernel's shape", {"steps/0/kernel": mask[:3]})
  refused(make(nnx.Linear, 6, 4, dot_general=lambda *a, **k: None), "dot_general of its own")
  refused(make(nnx.Linear, 6, 4, dtype=jnp.float16), "float16")
  refused(make(nnx.Embed, 6, 4), "names", {"steps/0/embedding": mask})
  uneven = mask.copy()
  uneven[0, 0] = False
  model = net(make(nnx.Linear, 6, 4), nnx.relu)
  model.steps[0].kernel.set_value(jnp.asarray(uneven, jnp.float32))
  for inputs in (None, x):
    with pytest.raises(ValueError, match=r"'steps/0'.*must have one fan-in"):
      sx.condense_model(model, {"steps/0/kernel": uneven}, inputs)


def test_a_model_that_is_one_layer():
  model = fresh(lambda rngs: nnx.Linear(6, 4, rngs=rngs))
  masks = sparsify(model)
  assert list(masks) == ["kernel"]
  report = check(model, masks, example(3, 6))
  assert left(report) == {"kernel": 4}


def test_importing_the_library_does_not_import_flax():
  code = "import sys, srigl_jax; assert 'flax' not in sys.modules"
  subprocess.run([sys.executable, "-c", code], check=True)
  code = (
    "import sys; sys.modules['flax'] = None; import srigl_jax\n"
    "try: srigl_jax.condense_model(None, {})\n"
    "except ModuleNotFoundError as error: assert 'pip install' in str(error)\n"
    "else: raise AssertionError"
  )
  subprocess.run([sys.executable, "-c", code], check=True)
