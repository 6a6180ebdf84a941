"""Flax NNX models that train in condensed form, against the same models with masks."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import srigl_jax as sx

OPTIONS = {"update_every": 2, "update_until": 6, "gamma_sal": 0.9, "drop_fraction": 0.5}
SPARSITY = {"sparsity": 0.7, "distribution": "uniform", "sparse": sx.only("conv", "head")}


class Net(nnx.Module):
  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.head = nnx.Linear(32, 5, rngs=rngs)

  def __call__(self, x):
    return self.head(nnx.relu(self.norm(self.conv(x))).reshape(len(x), -1))


class Attention(nnx.Module):
  def __init__(self, rngs):
    self.attn = nnx.MultiHeadAttention(2, 8, decode=False, dropout_rate=0.0, rngs=rngs)

  def __call__(self, x):
    return self.attn(x)


def loss_fn(model, x, labels):
  return optax.softmax_cross_entropy_with_integer_labels(model(x), labels).mean()


def batch(i):
  return jax.random.normal(jax.random.key(i), (16, 4, 4, 3)), jnp.arange(16) % 5


def masked_run(num_steps):
  model, key = Net(nnx.Rngs(0)), jax.random.key(4)
  allocation = sx.allocate(nnx.state(model, nnx.Param), **SPARSITY)
  masks = sx.init_masks(key, allocation)
  weights_key = jax.random.fold_in(key, len(masks))
  nnx.update(model, sx.init_sparse_weights(weights_key, nnx.state(model, nnx.Param), masks))
  tx = sx.srigl(optax.adam(0.02), seed=4, **OPTIONS, **SPARSITY)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, x, labels):
    loss, grads = nnx.value_and_grad(loss_fn)(model, x, labels)
    optimizer.update(model, grads)
    return loss

  for i in range(num_steps):
    yield step(model, optimizer, *batch(i)), sx.get_masks(optimizer.opt_state)


def saved_and_restored(tree, folder):
  """The NNX objects as a new process finds them in a checkpoint."""
  graphdef, state = nnx.split(tree)
  with ocp.CheckpointManager(folder) as manager:
    manager.save(0, args=ocp.args.StandardSave(state))
    manager.wait_until_finished()
    template = jax.eval_shape(lambda: state)
    restored = manager.restore(0, args=ocp.args.StandardRestore(template))
  assert jax.tree.all(jax.tree.map(lambda a, b: jnp.array_equal(a, b), state, restored))
  return nnx.merge(graphdef, restored)


def test_a_network_trains_as_with_masks_and_is_exported(tmp_path):
  model = sx.sparsify(lambda: Net(nnx.Rngs(0)), seed=4, **SPARSITY)
  optimizer = sx.condensed_optimizer(model, sx.condensed_srigl(optax.adam(0.02), **OPTIONS))

  @nnx.jit
  def step(model, optimizer, x, labels):
    loss, grads = sx.condensed_value_and_grad(loss_fn)(model, x, labels)
    optimizer.update(model, grads)
    return loss

  for i, (expected, masks) in enumerate(masked_run(6)):
    np.testing.assert_allclose(step(model, optimizer, *batch(i)), expected, rtol=1e-4)
    if i == 2:  # between two updates
      model, optimizer = saved_and_restored((model, optimizer), tmp_path)
    layers = sx.sparse_layers(model)
    patterns = {path: layer.pattern.get_value() for path, layer in layers.items()}
    assert patterns.keys() == masks.keys() == {"conv/kernel", "head/kernel"}
    for path, pattern in patterns.items():
      np.testing.assert_array_equal(sx.pattern_mask(pattern), masks[path], err_msg=f"{path} {i}")

  params = nnx.state(model, nnx.Param)
  dense = jax.eval_shape(lambda: nnx.state(Net(nnx.Rngs(0)), nnx.Param))
  assert sx.summarize(params, patterns) == sx.summarize(dense, masks)
  model.eval()
  x, _ = batch(9)
  np.testing.assert_allclose(sx.condense_trained(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_attention_projections_compute_as_dense_ones():
  model = sx.sparsify(lambda: Attention(nnx.Rngs(0)), sparsity=0.5)
  dense = Attention(nnx.Rngs(0))
  layers = sx.sparse_layers(model)
  assert {p.split("/")[1] for p in layers} >= {"query", "key", "value", "out"}
  for path, layer in layers.items():
    condensed = sx.to_condensed(layer.kernel.get_value(), layer.pattern.get_value())
    getattr(dense.attn, path.split("/")[1]).kernel.set_value(sx.expand(condensed)[0])
  x = jax.random.normal(jax.random.key(0), (3, 5, 8))
  np.testing.assert_allclose(model(x), dense(x), rtol=1e-4, atol=1e-5)


def test_a_model_that_exists_keeps_what_is_not_sparse():
  dense = Net(nnx.Rngs(3))
  dense.head.bias.set_value(jnp.arange(5.0))
  model = sx.sparsify(dense, fan_in={"head/kernel": 4})
  np.testing.assert_array_equal(model.head.bias.get_value(), jnp.arange(5.0))
  np.testing.assert_array_equal(model.conv.kernel.get_value(), dense.conv.kernel.get_value())
  assert model.head.kernel.get_value().ndim == 1 and dense.head.kernel.get_value().ndim == 2


def test_what_cannot_train_condensed_is_refused():
  grouped = lambda: nnx.Conv(4, 8, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
  with pytest.raises(ValueError, match="convolution in groups"):
    sx.sparsify(grouped, sparsity=0.5)
  with pytest.raises(ValueError, match="constant fan-in"):
    sx.sparsify(lambda: Net(nnx.Rngs(0)), sparsity=0.5, structure="unstructured")


def test_a_layer_called_twice_or_never_is_refused():
  model = sx.sparsify(lambda: nnx.Linear(8, 8, rngs=nnx.Rngs(0)), sparsity=0.5)
  twice = lambda model, x: model(model(x)).sum()
  with pytest.raises(ValueError, match="called twice"):
    sx.condensed_value_and_grad(twice)(model, jnp.ones((2, 8)))
  with pytest.raises(ValueError, match="does not call"):
    sx.condensed_value_and_grad(lambda model, x: x.sum())(model, jnp.ones((2, 8)))


@pytest.mark.slow
def test_an_extreme_classifier_is_built_within_300_megabytes():
  script = """
import resource
import jax, jax.numpy as jnp
from flax import nnx
import srigl_jax as sx

jax.block_until_ready(jnp.zeros(3) + 1)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
before = peak()
model = sx.sparsify(lambda: nnx.Linear(768, 670_091, rngs=nnx.Rngs(0)), fan_in=32)
jax.block_until_ready(nnx.state(model))
print(peak() - before)
"""
  out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
  assert int(out.stdout) < 300
