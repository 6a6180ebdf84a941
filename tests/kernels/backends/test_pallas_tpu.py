"""The TPU kernel: interpreted against the definition, and lowered for a TPU that is not here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import condensed_matmul, prepare
from srigl_kernels.backends.pallas import tpu
from srigl_kernels.problems import PROBLEMS, Problem, make_problem
from tests.kernels import reference
from tests.kernels.lowering import interpreting, lower

SMALL = PROBLEMS["odd_sizes"]


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
  with interpreting(monkeypatch, "tpu"):
    yield


@pytest.mark.parametrize(
  "name", ["vit_ffn_up", "vit_ffn_down", "odd_sizes", "wide_indices", "none_active", "empty_batch"]
)
def test_product(name):
  dtype = jnp.bfloat16 if name.startswith(("odd", "vit_ffn_down")) else jnp.float32
  x, condensed = make_problem(PROBLEMS[name], dtype=dtype)
  y = condensed_matmul(x, prepare(condensed, backend="pallas"), activation="gelu")
  assert y.shape == (*x.shape[:-1], condensed.out_features) and y.dtype == x.dtype
  reference.assert_close(y, reference.matmul(x, condensed, "gelu"), condensed.fan_in)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gradients(dtype):
  x, condensed = make_problem(SMALL, dtype=dtype)
  x = x.astype(dtype)
  g = jnp.ones((3, 5, 53), dtype)
  layer = prepare(condensed, backend="pallas", gradients=True)

  def loss(x, weights):
    return (g * condensed_matmul(x, layer.with_weights(weights))).astype(jnp.float32).sum()

  dx, weights = jax.jit(jax.grad(loss, (0, 1)))(x, layer.weights)
  want = reference.gradients(x, condensed, g)
  for got, expected in zip((dx, weights["values"], weights["bias"]), want, strict=True):
    reference.assert_close(got, expected, condensed.num_active)


def test_vmap():
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend="pallas")
  y = jax.jit(jax.vmap(condensed_matmul, (1, None), 1))(x, layer)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


def test_packets_hold_every_weight_once():
  _, condensed = make_problem(Problem(300, 200, 150, 40, ()))
  pattern = tpu.pack_pattern(condensed)
  order = np.asarray(pattern.order)
  assert sorted(order[order >= 0]) == list(range(150 * 40))
  block, packet, _, lane = np.nonzero(order >= 0)
  rows, entries = np.divmod(order[order >= 0], 40)
  np.testing.assert_array_equal(rows, 128 * block + lane)
  inputs = 128 * np.asarray(pattern.chunks)[block, 0, packet]
  inputs += np.asarray(pattern.places)[order >= 0]
  np.testing.assert_array_equal(inputs, np.asarray(condensed.indices)[rows, entries])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [1, 20])
def test_it_lowers_for_a_tpu(batch, dtype):
  _, condensed = make_problem(Problem(768, 400, 300, 206, ()), dtype=dtype)
  layout = dataclasses.replace(tpu.pack(condensed), interpret=False)
  x = jax.ShapeDtypeStruct((batch, 768), dtype)
  run = lambda x, layout, bias: tpu.matmul(x, layout, bias, "relu")
  assert "tpu_custom_call" in lower("tpu", run, x, layout, condensed.bias)


def test_refusals():
  _, condensed = make_problem(Problem(2**18 + 1, 2, 1, 3, ()))
  with pytest.raises(ValueError, match="takes up to 262144 inputs, not 262145"):
    prepare(condensed, backend="pallas")
