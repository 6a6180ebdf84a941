"""The GPU kernels: interpreted against the definition, and lowered for a GPU that is not here."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srigl_kernels import condensed_matmul, prepare
from srigl_kernels.backends import xla
from srigl_kernels.backends.pallas import gpu
from srigl_kernels.backends.pallas.device import INTERPRET
from srigl_kernels.backends.pallas.gpu_values_gradient import pattern_products
from srigl_kernels.backends.pallas.gpu_weighted_sums import (
  Blocks,
  as_tiles,
  choose_blocks,
  weighted_sums,
)
from srigl_kernels.backends.pallas.transposed import transpose
from srigl_kernels.problems import LAYERS, PROBLEMS, Problem, make_problem
from tests.kernels import reference
from tests.kernels.lowering import interpreting, lower

SMALL = PROBLEMS["odd_sizes"]
TRITON = "__gpu$xla.gpu.triton"


@pytest.fixture
def interpreted(monkeypatch):
  with interpreting(monkeypatch, "gpu"):
    yield


def scaled(name):
  """A named problem, the paper's layers at an eighth of their size."""
  problem = PROBLEMS[name]
  if name.startswith("vit"):
    sizes = (max(1, n // 8) for n in problem[:4])
    problem = Problem(*sizes, batch=(33,))
  return problem


@pytest.mark.parametrize(
  "name", [n for n in PROBLEMS if n not in ("one_row", "fan_in_all", "no_batch_axes", "one_active")]
)
def test_product(interpreted, name):
  x, condensed = make_problem(scaled(name), dtype=jnp.bfloat16 if "odd" in name else jnp.float32)
  layer = prepare(condensed, backend="pallas")
  y = condensed_matmul(x, layer, activation="gelu")
  assert y.shape == (*x.shape[:-1], condensed.out_features) and y.dtype == x.dtype
  reference.assert_close(y, reference.matmul(x, condensed, "gelu"), condensed.fan_in)


@pytest.mark.parametrize("name", ["vit_ffn_up", "odd_sizes", "empty_batch"])
def test_gradients(interpreted, name):
  dtype = jnp.bfloat16 if name == "odd_sizes" else jnp.float32
  x, condensed = make_problem(scaled(name), dtype=dtype)
  x = x.astype(dtype)
  shape = (*x.shape[:-1], condensed.out_features)
  g = jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)
  layer = prepare(condensed, backend="pallas", gradients=True)

  def loss(x, weights):
    y = condensed_matmul(x, layer.with_weights(weights), activation="relu")
    return (g * y).astype(jnp.float32).sum()

  dx, weights = jax.jit(jax.grad(loss, (0, 1)))(x, layer.weights)
  assert (dx.dtype, weights["values"].dtype, weights["bias"].dtype) == (dtype, dtype, jnp.float32)
  want = reference.gradients(x, condensed, g, "relu")
  num_rows = x.size // condensed.in_features
  reference.assert_close(dx, want[0], condensed.num_active)
  reference.assert_close(weights["values"], want[1], num_rows)
  reference.assert_close(weights["bias"], want[2], num_rows)


def test_a_layer_packed_with_its_values_has_gradients(interpreted):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend="pallas")
  dx = jax.jit(jax.grad(lambda x: condensed_matmul(x, layer).sum()))(x)
  expected = reference.gradients(x, condensed, np.ones((3, 5, 53)))[0]
  reference.assert_close(dx, expected, condensed.num_active)


@pytest.mark.parametrize("blocks", [Blocks(2, 4, 8, 3, 1), Blocks(16, 1, 4, 1, 4)])
def test_any_cut_gives_the_same(interpreted, blocks):
  """More programs than blocks and fewer, several tiles of x, entries that do not come out even."""
  x, condensed = make_problem(Problem(29, 31, 21, 7, (21,)))
  columns = np.concatenate([condensed.active, np.setdiff1d(np.arange(31), condensed.active)])
  y = weighted_sums(
    x, condensed.values.reshape(-1), condensed.indices.reshape(-1), num_rows=21,
    columns=jnp.asarray(columns, jnp.int32), num_columns=31, bias=condensed.bias,
    interpret=True, blocks=blocks,
  )  # fmt: skip
  reference.assert_close(y, reference.matmul(x, condensed), 7)
  g = jnp.asarray(np.random.default_rng(2).normal(size=(21, 21)), jnp.float32)
  products = pattern_products(g, x, condensed.indices, interpret=True, blocks=blocks)
  dense = np.asarray(x, float).T @ np.asarray(g, float)
  want = dense[np.asarray(condensed.indices), np.arange(21)[:, None]]
  reference.assert_close(products, want, 21)


def test_groups_of_tiles_add_up(interpreted):
  """More tiles than arrays of partial sums, so that programs add to what they wrote."""
  x, condensed = make_problem(Problem(9, 5, 5, 3, (38,)))
  g = jnp.asarray(np.random.default_rng(2).normal(size=(38, 5)), jnp.float32)
  blocks = Blocks(2, 2, 2, 2, 1)
  products = pattern_products(g, x, condensed.indices, interpret=True, blocks=blocks)
  dense = np.asarray(x, float).T @ np.asarray(g, float)
  want = dense[np.asarray(condensed.indices), np.arange(5)[:, None]]
  reference.assert_close(products, want, 38)


def test_tiles_hold_x():
  x = jnp.arange(14.0).reshape(7, 2)
  tiles = as_tiles(x, 4)
  assert tiles.shape == (2, 2, 4)
  np.testing.assert_array_equal(tiles[1], [[8, 10, 12, 0], [9, 11, 13, 0]])


def test_transposed_patterns():
  for problem in (SMALL, PROBLEMS["fan_in_all"], PROBLEMS["none_active"]):
    _, condensed = make_problem(problem)
    pattern = jax.tree.map(np.asarray, jax.jit(transpose)(condensed))
    values = np.asarray(condensed.values).reshape(-1)[pattern.positions]
    inputs = np.repeat(np.arange(condensed.in_features), np.diff(pattern.starts))
    dense = np.zeros((condensed.in_features, max(condensed.num_active, 1)))
    dense[inputs, pattern.neurons] = values
    want = reference.dense_matrix(condensed)[:, np.asarray(condensed.active)]
    np.testing.assert_array_equal(dense[:, : condensed.num_active], want)


def test_the_pattern_is_rebuilt_on_the_device(interpreted):
  """A topology update changes the pattern within a jitted step."""
  x, first = make_problem(SMALL)
  second = make_problem(SMALL, seed=1)[1]

  @jax.jit
  def dx(condensed):
    layer = prepare(condensed, backend="pallas", gradients=True)
    return jax.grad(lambda x: condensed_matmul(x, layer).sum())(x)

  for condensed in (first, second):
    want = reference.gradients(x, condensed, np.ones((3, 5, 53)))[0]
    reference.assert_close(dx(condensed), want, condensed.num_active)


def test_vmap(interpreted):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend="pallas")
  run = jax.jit(jax.vmap(condensed_matmul, in_axes=(1, None), out_axes=1))
  reference.assert_close(run(x, layer), reference.matmul(x, condensed), condensed.fan_in)
  other = make_problem(SMALL, seed=1)[1]
  both = jax.tree.map(lambda *leaves: jnp.stack(leaves), layer, prepare(other, backend="pallas"))
  y = jax.jit(jax.vmap(condensed_matmul, in_axes=(None, 0)))(x, both)
  for got, each in zip(y, (condensed, other), strict=True):
    reference.assert_close(got, reference.matmul(x, each), condensed.fan_in)


def test_vmap_of_gradients(interpreted):
  x, condensed = make_problem(Problem(20, 9, 5, 4, (3, 2)))
  layer = prepare(condensed, backend="pallas", gradients=True)

  def loss(weights, x):
    return condensed_matmul(x, layer.with_weights(weights)).sum()

  weights, dx = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (None, 0)))(layer.weights, x)
  for i in range(3):
    want = reference.gradients(x[i], condensed, np.ones((2, 9)))
    reference.assert_close(dx[i], want[0], 5)
    reference.assert_close(weights["values"][i], want[1], 2)


def test_training_reproduces_the_losses_of_masked_dense_layers(interpreted):
  sizes = (Problem(19, 24, 17, 5, ()), Problem(24, 6, 6, 9, ()))
  layers = [make_problem(size, seed=i)[1] for i, size in enumerate(sizes)]
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(18, 19)), jnp.float32)
  labels = jnp.asarray(rng.integers(6, size=18))
  tx = optax.adamw(2e-2)

  def run(apply, params):
    def step(carry, _):
      def loss(params):
        logits = apply(params)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

      params, state = carry
      value, grads = jax.value_and_grad(loss)(params)
      updates, state = tx.update(grads, state, params)
      return (optax.apply_updates(params, updates), state), value

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=8)[1])(params)

  prepared = [prepare(layer, backend="pallas", gradients=True) for layer in layers]

  def sparse(params):
    first, second = (p.with_weights(w) for p, w in zip(prepared, params, strict=True))
    return condensed_matmul(condensed_matmul(x, first, activation="relu"), second)

  kernels = [jnp.asarray(reference.dense_matrix(layer), jnp.float32) for layer in layers]
  masks = [kernel != 0 for kernel in kernels]

  def dense(params):
    (first, bias), (second, other) = params
    hidden = jax.nn.relu(x @ jnp.where(masks[0], first, 0) + bias[None])
    return hidden @ jnp.where(masks[1], second, 0) + other[None]

  losses = run(sparse, [p.weights for p in prepared])
  expected = run(dense, [(k, layer.bias) for k, layer in zip(kernels, layers, strict=True)])
  assert losses[-1] < losses[0] - 0.1
  np.testing.assert_allclose(losses, expected, rtol=1e-5)


# ---- what a GPU would get ----


LARGE = (LAYERS["vit_ffn_up"], LAYERS["vit_ffn_down"])


def shapes_of(problem, dtype):
  """A layer of shapes only."""
  num_inputs, num_neurons, num_active, fan_in, _ = problem
  _, small = make_problem(Problem(num_inputs, num_neurons, num_active, 1, ()), dtype=dtype)
  shaped = lambda array: jax.ShapeDtypeStruct((num_active, fan_in), array.dtype)
  return dataclasses.replace(small, values=shaped(small.values), indices=shaped(small.indices))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [1, 16, 256])
def test_products_lower_for_a_gpu(batch, dtype):
  problem = LARGE[batch % 3 == 0]
  condensed = shapes_of(problem, dtype)
  x = jax.ShapeDtypeStruct((batch, problem.in_features), dtype)

  def run(x, condensed):
    return gpu.matmul(x, gpu.pack(condensed), condensed.bias, "gelu")

  assert lower("cuda", run, x, condensed).count(TRITON) == 1


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("batch", [4, 2048])
def test_gradients_lower_for_a_gpu(batch, dtype):
  condensed = shapes_of(LARGE[0], dtype)
  x, g = (jax.ShapeDtypeStruct((batch, n), dtype) for n in LARGE[0][:2])

  def run(x, g, condensed):
    layout = gpu.pack_pattern(condensed)
    dx = gpu.input_gradient(g, condensed, layout)
    return dx, gpu.values_gradient(g, x, condensed, layout)

  assert lower("cuda", run, x, g, condensed).count(TRITON) == 2


def test_dense_products_of_bfloat16_go_to_matrix_units_as_they_are(monkeypatch):
  matrix = jnp.ones((3, 3), jnp.bfloat16)

  def operands():
    jaxpr = jax.make_jaxpr(lambda a, b: xla.dot(a, b))(matrix, matrix)
    (product,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general")
    return {str(v.aval.dtype) for v in product.invars}

  assert operands() == {"float32"}
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert operands() == {"bfloat16"}


def test_blocks_are_such_as_triton_takes():
  for batch in (1, 3, 16, 17, 64, 300, 5000):
    for itemsize in (2, 4):
      for num_rows, num_entries, num_inputs in ((1, 1, 1), (1145, 206, 768), (500_000, 32, 768)):
        blocks = choose_blocks(batch, num_rows, num_entries, num_inputs, itemsize)
        assert all(n >= 1 and n & (n - 1) == 0 for n in (*blocks[:3], blocks.warps))
        assert blocks.rows * blocks.entries * blocks.lanes <= 2**14
        assert blocks.splits * blocks.rows < num_rows + 2 * blocks.rows * blocks.splits


# ---- refusals ----


def test_refusals(monkeypatch):
  x, condensed = make_problem(SMALL)
  monkeypatch.delenv(INTERPRET, raising=False)
  for run in (
    lambda: prepare(condensed, backend="pallas"),
    lambda: condensed_matmul(x, condensed, backend="pallas"),
  ):
    with pytest.raises(ValueError, match="'pallas' cannot run here, on cpu: it needs a GPU or"):
      run()
  monkeypatch.setenv(INTERPRET, "yes")
  with pytest.raises(ValueError, match="SRIGL_PALLAS_INTERPRET=yes must be one of"):
    prepare(condensed, backend="pallas")


def test_arrays_beyond_the_reach_of_32_bits_are_refused():
  x = jax.ShapeDtypeStruct((2**20, 4096), jnp.float32)
  values, indices = (jax.ShapeDtypeStruct((64,), t) for t in (jnp.float32, jnp.uint16))
  with pytest.raises(ValueError, match="more than the pallas backend can address"):
    jax.eval_shape(lambda *args: weighted_sums(*args, num_rows=2), x, values, indices)
