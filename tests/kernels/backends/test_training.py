"""The native kernels of layers in training, against float64, on every CPU target of the machine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import training as portable
from srigl_kernels.backends.cpu import training as native
from srigl_kernels.format import index_dtype
from srigl_kernels.pattern import Pattern
from srigl_kernels.training import sparse_linear
from tests.kernels.reference import assert_close

pytestmark = pytest.mark.skipif(not native.is_available(), reason="needs the native kernels")

# (inputs, neurons, active neurons, fan-in), batch sizes: borders of registers, blocks and chunks.
CASES = (
  ((4096, 48, 40, 410), (3, 64, 65)),  # several blocks of inputs
  ((300, 700, 600, 29), (16, 33, 130)),  # several chunks of neurons
  ((37, 53, 41, 13), (0, 1, 17)),
  ((97, 66, 66, 97), (4,)),  # dense rows, all active
  ((40, 24, 18, 1), (6, 31)),
  ((14, 6, 0, 5), (4,)),  # all ablated
  ((14, 6, 6, 0), (4,)),
  ((70000, 9, 7, 50), (2, 20)),  # indices of four bytes
  ((1, 1, 1, 1), (2,)),
)


def make(shape, batch, seed=0, capacity=None):
  """Arguments of the kernels, and the dense matrix in float64."""
  num_inputs, num_neurons, num_active, fan_in = shape
  rng = np.random.default_rng(seed)
  count = num_active * fan_in
  values = np.full(count + 5 if capacity is None else capacity, np.nan, np.float32)
  values[:count] = rng.normal(size=count)
  indices = np.zeros(values.size, index_dtype(num_inputs))
  rows = [np.sort(rng.choice(num_inputs, fan_in, replace=False)) for _ in range(num_active)]
  indices[:count] = np.concatenate([np.zeros(0), *rows])
  active = np.full(num_neurons, num_neurons, np.int32)
  active[:num_active] = np.sort(rng.choice(num_neurons, num_active, replace=False))
  matrix = np.zeros((num_inputs, num_neurons))
  for a, row in enumerate(rows):
    matrix[row, active[a]] = values[a * fan_in : (a + 1) * fan_in]
  sizes = jnp.asarray([num_active, fan_in], jnp.int32)
  pattern = Pattern(jnp.asarray(indices), jnp.asarray(active), sizes, (num_inputs, num_neurons))
  x, g = (jnp.asarray(rng.normal(size=(batch, n)), jnp.float32) for n in matrix.shape)
  return x, g, jnp.asarray(values), pattern, matrix


def entries(matrix, pattern):
  """What a dense matrix holds at the entries of the pattern, 0 for those not in use."""
  count, result = int(pattern.num_entries), np.zeros(pattern.capacity)
  rows = np.repeat(np.asarray(pattern.active)[: int(pattern.num_active)], int(pattern.fan_in))
  result[:count] = np.asarray(matrix)[np.asarray(pattern.indices)[:count], rows]
  return result


@pytest.mark.parametrize(("shape", "batches"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_equals_the_definition(isa, shape, batches, dtype):
  for batch in batches:
    x, g, values, pattern, matrix = make(shape, batch)
    x, g = x.astype(dtype), g.astype(dtype)
    y = jax.jit(native.forward)(x, values, pattern)
    dx = jax.jit(native.input_gradient)(g, values, pattern)
    dvalues = jax.jit(native.values_gradient)(g, x, pattern)
    assert (y.dtype, dx.dtype, dvalues.dtype) == (dtype, dtype, jnp.float32)
    x, g = np.asarray(x, float), np.asarray(g, float)
    assert_close(y, x @ matrix, shape[3])
    assert_close(dx, g @ matrix.T, shape[2])
    assert_close(dvalues, entries(x.T @ g, pattern), batch)


def test_differentiates_as_the_portable_product_does():
  x, g, values, pattern, _ = make((60, 33, 20, 9), 12)
  values = jnp.nan_to_num(values)

  def gradients(x, values):
    y, pull = jax.vjp(lambda x, v: sparse_linear(x, v, pattern), x, values)
    return y, *pull(g)

  y, dx, dvalues = jax.jit(gradients)(x, values)
  np.testing.assert_allclose(y, portable.forward(x, values, pattern), atol=1e-5)
  np.testing.assert_allclose(dx, portable.input_gradient(g, values, pattern), atol=1e-5)
  np.testing.assert_allclose(dvalues, portable.values_gradient(g, x, pattern), atol=1e-5)


def test_pattern_and_sizes_may_change_in_one_program():
  run = jax.jit(lambda *arguments: native.forward(*arguments))
  for seed, (num_active, fan_in) in enumerate([(20, 9), (12, 15), (20, 9), (0, 3)]):
    x, _, values, pattern, matrix = make((60, 33, num_active, fan_in), 12, seed, capacity=180)
    assert_close(run(x, values, pattern), np.asarray(x, float) @ matrix, fan_in)
  assert run._cache_size() == 1


def test_works_under_vmap():
  x, _, values, pattern, matrix = make((60, 33, 20, 9), 12)
  xs = jnp.stack([x, 2 * x])
  ys = jax.vmap(native.forward, (0, None, None))(xs, values, pattern)
  assert_close(ys, np.asarray(xs, float) @ matrix, 9)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"indices": 60}, "an index lies beyond the inputs"),
    ({"active": 33}, "active neurons do not ascend within the neurons"),
    ({"active": -1}, "active neurons do not ascend within the neurons"),
    ({"sizes": (21, 9)}, "sizes exceed the capacity"),
    ({"sizes": (34, 1)}, "sizes exceed the capacity"),
    ({"sizes": (-1, 9)}, "sizes exceed the capacity"),
    ({"sizes": (1, 61)}, "the fan-in is larger than the number of inputs"),
  ],
  ids=str,
)
def test_what_is_out_of_range_is_an_error(isa, change, message):
  x, g, values, pattern, _ = make((60, 33, 20, 9), 12)
  [(name, value)] = change.items()
  old = getattr(pattern, name)
  new = jnp.asarray(value, jnp.int32) if name == "sizes" else old.at[17].set(value)
  bad = dataclasses.replace(pattern, **{name: new})
  for call in (
    lambda: native.forward(x, values, bad),
    lambda: native.input_gradient(g, values, bad),
    lambda: native.values_gradient(g, x, bad),
  ):
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
      jax.block_until_ready(call())
