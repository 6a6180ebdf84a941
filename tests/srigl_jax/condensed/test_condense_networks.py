"""Networks that do more than call one layer after the other."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import srigl_jax as sx
from tests.srigl_jax.condensed.test_condense_model import (
  assert_close,
  check,
  example,
  fresh,
  has_weights,
  left,
  sparsify,
)


class Pair(nnx.Module):
  """Two layers, the first one's ablated neurons of which go, and something beside them."""

  def __init__(self, rngs, beside):
    self.first = nnx.Linear(8, 12, rngs=rngs)
    self.second = nnx.Linear(12, 8, rngs=rngs)
    self.beside = beside(rngs)

  def __call__(self, x):
    return self.second(nnx.relu(self.first(x))) + self.beside(x)


def check_pair(beside, *, dense=("second/kernel",), ablated=True, tolerance=1e-5):
  model = fresh(lambda rngs: Pair(rngs, beside))
  masks = sparsify(model, dense=dense)
  report = check(model, masks, example(4, 5, 8), tolerance=tolerance)
  if ablated:
    assert left(report)["first"] == has_weights(masks["first/kernel"]) < 12
  return {x.path: x for x in report.layers}


class Recurrent(nnx.Module):
  def __init__(self, rngs):
    kinds = (nnx.GRUCell, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.SimpleCell)
    self.rnns = nnx.List([nnx.RNN(kind(8, 8, rngs=rngs)) for kind in kinds])

  def __call__(self, x):
    for rnn in self.rnns:
      x = rnn(x, rngs=nnx.Rngs(0))
    return x


def test_recurrent_cells():
  layers = check_pair(Recurrent)
  assert layers["beside/rnns/0/cell/dense_h/kernel"].backend is not None
  assert sum(x.backend is not None for x in layers.values()) == 1 + 2 + 8 + 2 + 2


class Loops(nnx.Module):
  def __init__(self, rngs):
    self.a, self.b, self.c, self.d, self.e = (nnx.Linear(8, 8, rngs=rngs) for _ in range(5))

  def __call__(self, x):
    x = jax.lax.scan(lambda h, row: (self.a(h) + row, None), x[:, 0], x.swapaxes(0, 1))[0]
    x = jax.lax.cond(x.sum() > 0, self.b, lambda x: nnx.relu(self.b(x)), x)
    x = jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(self.c(x)), x)
    x = jax.lax.while_loop(lambda x: self.d(x).sum() > 99, lambda x: jnp.tanh(self.d(x)), x)
    return nnx.remat(lambda e, x: e(x))(self.e, nnx.vmap(self.a)(x))[:, None]


def test_layers_in_loops_and_branches():
  layers = check_pair(Loops)
  assert all(layers[f"beside/{name}/kernel"].backend is not None for name in "abcde")
  assert {layers[f"beside/{name}/kernel"].backend for name in "acd"} == {"dense"}  # in loops


class Several(nnx.Module):
  """Operations with several results, of what layers put out and of other things."""

  def __init__(self, rngs):
    self.a, self.b, self.c = (nnx.Linear(8, 8, rngs=rngs) for _ in range(3))

  def __call__(self, x):
    u, v = jnp.split(self.a(x), 2, axis=-1)
    largest, places = jax.lax.top_k(self.b(x), 4)
    order, values = jax.lax.sort_key_val(v, u)
    rows = jnp.unstack(nnx.relu(x), axis=1)
    mean, (q, _) = x.mean(), jnp.linalg.qr(x[..., :4])
    parts = jnp.concatenate([u * v + largest, places + order + values + q], -1)
    y, z = jnp.split(self.c(x), [2], axis=1)
    return parts + rows[0][:, None] + mean + jnp.concatenate([z, y], 1)


def test_operations_with_several_results():
  check_pair(Several)


def test_a_split_of_positions_lets_constants_through():
  class Half(nnx.Module):
    def __init__(self, rngs):
      self.a, self.b = nnx.Linear(8, 12, rngs=rngs), nnx.Linear(12, 8, rngs=rngs)

    def __call__(self, x):
      y, _ = jnp.split(nnx.gelu(self.a(x)), [2], axis=1)
      return self.b(y).mean(1, keepdims=True)

  model = fresh(Half)
  masks = sparsify(model, dense=("b/kernel",))
  assert left(check(model, masks, example(4, 5, 8)))["a"] == has_weights(masks["a/kernel"])


class Shared(nnx.Module):
  """Kernels, biases and norms that two layers hold."""

  def __init__(self, rngs):
    self.a, self.b, self.c, self.d = (nnx.Linear(8, 8, rngs=rngs) for _ in range(4))
    self.norm, self.other = nnx.BatchNorm(8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
    self.b.kernel, self.d.kernel = self.a.kernel, self.c.kernel
    self.d.bias, self.other.scale = self.a.bias, self.norm.scale
    self.gain = self.norm.bias

  def __call__(self, x):
    x = nnx.relu(self.norm(self.a(x)))
    x = nnx.relu(self.other(self.b(x)))
    x = nnx.relu(self.norm(self.c(x)))
    return self.d(x) * self.gain[None, None]


@pytest.mark.parametrize("dense", ["a/kernel", "c/kernel", "first/kernel"])
def test_shared_variables(dense):
  layers = check_pair(Shared, dense=("second/kernel", f"beside/{dense}", dense), ablated=False)
  for pair in ("ab", "cd"):
    is_dense = {layers[f"beside/{name}/kernel"].backend is None for name in pair}
    assert is_dense == {dense == f"{pair[0]}/kernel"}


class Normalized(nnx.Module):
  def __init__(self, rngs):
    linear = lambda: nnx.Linear(8, 8, rngs=rngs)
    self.weight = nnx.WeightNorm(linear(), rngs=rngs)
    self.plain = nnx.WeightNorm(linear(), use_scale=False, rngs=rngs)
    self.spectral = nnx.SpectralNorm(linear(), rngs=rngs)

  def __call__(self, x):
    return self.spectral(nnx.relu(self.plain(nnx.relu(self.weight(x)))))


def test_normalized_weights():
  model = nnx.Sequential(Normalized(nnx.Rngs(0)), nnx.Linear(8, 8, rngs=nnx.Rngs(1)))
  masks = sparsify(model, dense=("layers/1/kernel",), ablate=0.2)
  check(model, masks, x := example(4, 8), tolerance=1e-5)
  folded = sx.condense_model(model, masks, x)
  layers, arrays = sx.split_condensed(folded)
  again = sx.merge_condensed(nnx.eval_shape(lambda: nnx.clone(model)), layers, arrays)
  assert_close(again(x), folded(x))
  with pytest.raises(ValueError, match="normalised for good"):
    folded.layers[0].spectral(x, update_stats=True)


def test_transposed_convolutions():
  class Up(nnx.Module):
    def __init__(self, rngs):
      settings = ({}, {"padding": "VALID", "kernel_dilation": (2, 1)}, {"padding": ((1, 2),) * 2})
      make = lambda kwargs: nnx.ConvTranspose(8, 8, (3, 2), (2, 1), rngs=rngs, **kwargs)
      self.ups, self.norm = nnx.List(map(make, settings)), nnx.BatchNorm(8, rngs=rngs)
      self.head = nnx.Conv(8, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
      for up in self.ups:
        x = nnx.relu(self.norm(up(x))) if up is self.ups[0] else nnx.relu(up(x))
      return self.head(x)

  model = fresh(Up)
  report = check(model, sparsify(model), example(2, 4, 4, 8), tolerance=1e-5)
  assert report.folded_norms == ("norm",) and report.layers[1].backend is not None


def test_weights_that_the_model_changes_itself():
  class Standardized(nnx.Module):
    def __init__(self, rngs):
      self.a = nnx.Linear(8, 8, rngs=rngs)

    def __call__(self, x):
      self.a.kernel[...] = self.a.kernel[...] / jnp.sqrt((self.a.kernel[...] ** 2).sum())
      return self.a(x)

  model = fresh(Standardized)
  masks = sparsify(model, dense=())
  with pytest.raises(ValueError, match="'a' by itself"):
    sx.condense_model(model, masks, example(4, 8))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_fine_tuning(dtype):
  class Small(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 8, (2, 2), feature_group_count=1, dtype=dtype, rngs=rngs)
      self.norm, self.head = nnx.BatchNorm(8, rngs=rngs), nnx.Linear(8, 4, rngs=rngs)
      self.last = nnx.Linear(4, 4, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x):
      return self.last(nnx.relu(self.head(nnx.relu(self.norm(self.conv(x))).mean((1, 2)))))

  model, x = fresh(Small), example(4, 4, 4, 3)
  model.eval()
  masks = sparsify(model, dense=("head/kernel",), sparsity=0.5)
  tuned = sx.condense_model(model, masks, gradients=True)
  assert_close(tuned(x), sx.condense_model(model, masks)(x), 1e-5 if dtype == "float32" else 1e-2)
  optimizer = nnx.Optimizer(tuned, optax.sgd(0.1), wrt=nnx.Param)
  loss = lambda m, x: ((m(x) - 1).astype(jnp.float32) ** 2).mean()

  @nnx.jit
  def step(model, optimizer, x):
    value, grads = nnx.value_and_grad(loss)(model, x)
    optimizer.update(model, grads)
    return value, grads

  first, grads = step(tuned, optimizer, x)
  dense = nnx.grad(loss)(model, x)
  assert grads["conv"]["kernel"][...].dtype == jnp.float32
  assert_close(grads["head"]["kernel"][...], dense["head"]["kernel"][...], 5e-2)
  layer = sx.condense(model.last.kernel[...], masks["last/kernel"])
  expected = dense["last"]["kernel"][...].T[layer.active[:, None], layer.indices]
  tolerance = 1e-5 if dtype == "float32" else 5e-2
  assert_close(grads["last"]["kernel"][...], expected.astype(jnp.float32), tolerance)
  assert step(tuned, optimizer, x)[0] < first
  again = sx.merge_condensed(model, *sx.split_condensed(tuned))
  assert_close(again(x), tuned(x), 1e-5 if dtype == "float32" else 2e-2)
  assert not nnx.state(again.last, nnx.Param)


def test_what_is_no_nnx_model():
  tree = {"kernel": np.ones((3, 2))}
  for model, route in {
    linen.Dense(3): "condense_linen",
    (lambda x: x): r"condense\(kernel, mask",
  }.items():
    with pytest.raises(ValueError, match=f"takes a Flax NNX model, not.*{route}"):
      sx.condense_model(model, tree)
  with pytest.raises(ValueError, match="not dict"):
    sx.condense_model(tree, tree)


def test_the_message_names_axes():
  model = nnx.LinearGeneral(4, (3, 2, 2), rngs=nnx.Rngs(0))
  mask = np.zeros((4, 3, 2, 2), bool)
  mask.reshape(-1, 2)[:5] = True
  with warnings.catch_warnings(), pytest.raises(ValueError, match=r"axes=.*neurons=\(1, 2, 3\)"):
    sx.condense_model(model, {"kernel": mask})
