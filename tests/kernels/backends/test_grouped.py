"""Layers in groups that share their inputs: the structure, the products, gradients, kernels."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx
from srigl_kernels import choose_backend, condensed_matmul, make_condensed, prepare
from srigl_kernels.backends import grouped
from srigl_kernels.backends.pallas.gpu_grouped import Blocks, grouped_sums
from tests.kernels import reference
from tests.kernels.lowering import interpreting, lower


def make_grouped(size, num_groups, *, num_inputs=37, fan_in=11, batch=(5,), lacking=0, **kwargs):
  """x and a layer of groups; the last one lacks some neurons, and a group's worth is ablated."""
  return make(size, num_groups, num_inputs, fan_in, batch, lacking, **kwargs)


@functools.cache
def make(size, num_groups, num_inputs, fan_in, batch, lacking, dtype=jnp.float32, seed=0):
  rng = np.random.default_rng(seed)
  rows = np.sort(rng.random((num_groups, num_inputs)).argsort(axis=1)[:, :fan_in], axis=1)
  num_active = num_groups * size - lacking
  active = np.arange(num_active) + size * (np.arange(num_active) >= size)
  num_neurons = num_active + size
  condensed = make_condensed(
    jnp.asarray(rng.normal(size=(num_active, fan_in)), dtype),
    np.repeat(rows, size, axis=0)[:num_active],
    active,
    jnp.asarray(rng.normal(size=num_neurons), jnp.float32),
    kernel_shape=(num_inputs, num_neurons),
  )
  return jnp.asarray(rng.normal(size=(*batch, num_inputs)), dtype), condensed


@pytest.fixture(params=["xla", "gpu"])
def kernels(request, monkeypatch):
  """Plain XLA, and the GPU kernel interpreted."""
  if request.param == "xla":
    yield
    return
  with interpreting(monkeypatch, "gpu"):
    yield


@pytest.mark.parametrize("size, lacking, dtype", [(16, 0, jnp.float32), (32, 7, jnp.bfloat16)])
def test_product_and_gradients(kernels, size, lacking, dtype):
  x, condensed = make_grouped(size, 3, lacking=lacking, dtype=dtype, batch=(2, 9))
  layer = prepare(condensed, backend="grouped", gradients=True)
  assert choose_backend(layer)[0] == "grouped"
  g = jnp.asarray(np.random.default_rng(1).normal(size=(2, 9, condensed.out_features)), dtype)

  def loss(x, weights):
    y = condensed_matmul(x, layer.with_weights(weights), activation="relu")
    return (g * y).astype(jnp.float32).sum(), y

  (_, y), (dx, weights) = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(x, layer.weights)
  reference.assert_close(y, reference.matmul(x, condensed, "relu"), condensed.fan_in)
  want = reference.gradients(x, condensed, g, "relu")
  assert (dx.dtype, weights["values"].dtype) == (dtype, dtype)
  for got, expected in zip((dx, weights["values"], weights["bias"]), want, strict=True):
    reference.assert_close(got, expected, condensed.num_active)


def test_a_layer_packed_with_its_values(kernels):
  x, condensed = make_grouped(16, 2)
  layer = prepare(condensed, backend="grouped")
  y = jax.jit(condensed_matmul)(x, layer)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)
  y = jax.jit(jax.vmap(condensed_matmul, (0, None)))(x, layer)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)
  assert condensed_matmul(x[:0], layer).shape == (0, condensed.out_features)


def test_memory_is_bounded_by_tiles(monkeypatch):
  monkeypatch.setattr(grouped.xla, "TEMPORARY_BYTES", 2000)
  x, condensed = make_grouped(16, 2, batch=(13,))
  layout = grouped.group(condensed)
  y = jax.jit(grouped.matmul)(x, layout, condensed.bias)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)
  g = jnp.ones((13, condensed.out_features))
  dvalues = jax.jit(grouped.values_gradient)(g, x, condensed, layout)
  reference.assert_close(dvalues, reference.gradients(x, condensed, g)[1], 13)


@pytest.mark.parametrize(
  "blocks, x_dtype", [(Blocks(16, 16, 4), jnp.bfloat16), (Blocks(4, 8, 1), jnp.float32)]
)
def test_any_cut_gives_the_same(blocks, x_dtype):
  x, condensed = make_grouped(16, 3, lacking=5, batch=(21,))
  x = x.astype(x_dtype)
  layout = grouped.group(condensed, 16)
  ablated = np.setdiff1d(np.arange(condensed.out_features), condensed.active)
  y = grouped_sums(
    x, layout.values, layout.pattern.indices, num_rows=condensed.num_active,
    columns=jnp.asarray(np.concatenate([condensed.active, ablated]), jnp.int32),
    num_columns=condensed.out_features, bias=condensed.bias, interpret=True, blocks=blocks,
  )  # fmt: skip
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


def test_what_counts_as_groups():
  _, condensed = make_grouped(32, 2, lacking=3)
  assert grouped.group_size(condensed) == 32
  assert grouped.group(condensed).values.shape == (2, 32, 16)
  assert grouped.group(condensed, 16).values.shape == (4, 16, 16)
  _, of_16 = make_grouped(16, 3)
  assert grouped.group_size(of_16) == 16
  with pytest.raises(
    ValueError, match=r"not in groups of 32 neurons .*: neurons 0 and 32 are of one"
  ):
    grouped.group(of_16, 32)
  _, none = make_grouped(1, 5)
  assert grouped.group_size(none) is None
  with pytest.raises(ValueError, match="not in groups of 16 neurons with the same inputs"):
    prepare(none, backend="grouped")
  with pytest.raises(ValueError, match="`size` must be at least 1"):
    grouped.group(of_16, 0)


def test_from_a_mask():
  rng = np.random.default_rng(0)
  mask = np.zeros((20, 48), bool)
  for group in (0, 2):  # the second group is ablated
    mask[rng.permutation(20)[:6], 16 * group : 16 * group + 16] = True
  kernel = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
  x = jnp.asarray(rng.normal(size=(4, 20)), jnp.float32)
  layer = prepare(sx.condense(kernel, mask), backend="grouped")
  reference.assert_close(condensed_matmul(x, layer), np.asarray(x, float) @ kernel, 6)
  mask[:, 40] = np.roll(mask[:, 40], 1)
  kernel = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
  with pytest.raises(ValueError, match="neurons 32 and 40 are of one group and differ"):
    prepare(sx.condense(kernel, mask), backend="grouped")


def test_a_traced_pattern_is_refused():
  _, condensed = make_grouped(16, 2)
  with pytest.raises(ValueError, match="outside of jit"):
    jax.jit(lambda c: prepare(c, backend="grouped").condensed.values)(condensed)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("size, batch", [(16, 1), (32, 512)])
def test_it_lowers_for_a_gpu(size, batch, dtype):
  x, condensed = make_grouped(size, 36, num_inputs=768, fan_in=206, dtype=dtype)
  layout = grouped.group(condensed)
  layout = dataclasses.replace(layout, pattern=dataclasses.replace(layout.pattern, kernels="gpu"))
  x = jax.ShapeDtypeStruct((batch, 768), dtype)
  run = lambda x, layout, bias: grouped.matmul(x, layout, bias, "relu")
  assert lower("cuda", run, x, layout, condensed.bias).count("__gpu$xla.gpu.triton") == 1
