"""Every backend on every problem: results, gradients, transformations, memory."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import BACKENDS, Condensed, condensed_matmul, prepare
from srigl_kernels.backends import xla
from srigl_kernels.problems import PROBLEMS, Problem
from srigl_kernels.problems import make_problem as make_problem_anew
from tests.kernels import reference

make_problem = functools.cache(make_problem_anew)
SMALL = PROBLEMS["odd_sizes"]
PLAIN_XLA = [name for name in BACKENDS if name not in ("cpu", "cuda", "pallas", "grouped")]


@pytest.fixture(params=[name for name in BACKENDS if name != "grouped"])
def backend(request):
  if not BACKENDS[request.param].is_available():
    pytest.skip(f"backend {request.param} cannot run here")
  return request.param


@pytest.mark.parametrize("name", PROBLEMS)
def test_product(backend, name):
  all_three = zip(("gelu", "relu", None), (True, True, False), strict=True)
  for activation, bias in [next(all_three)] if name.startswith("vit") else all_three:
    x, condensed = make_problem(PROBLEMS[name], bias=bias)
    y = condensed_matmul(x, prepare(condensed, backend=backend), activation=activation)
    assert y.shape == (*x.shape[:-1], condensed.out_features) and y.dtype == x.dtype
    expected = reference.matmul(x, condensed, activation)
    reference.assert_close(y, expected, condensed.fan_in)


@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types(backend, dtype, x_dtype):
  x, condensed = make_problem(SMALL, dtype=dtype)
  x = x.astype(x_dtype)
  y = condensed_matmul(x, prepare(condensed, backend=backend), activation="relu")
  assert y.dtype == x_dtype
  reference.assert_close(y, reference.matmul(x, condensed, "relu"), condensed.fan_in)


def test_ablated_neurons_give_their_bias(backend):
  x, condensed = make_problem(SMALL)
  y = condensed_matmul(x, prepare(condensed, backend=backend))
  ablated = np.setdiff1d(np.arange(condensed.out_features), condensed.active)
  expected = np.broadcast_to(condensed.bias[ablated], (*x.shape[:-1], len(ablated)))
  assert len(ablated) and np.array_equal(y[..., ablated], expected)


@pytest.mark.parametrize("prepared", [True, False])
def test_a_layer_without_layout(backend, prepared):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend="reference") if prepared else condensed
  y = condensed_matmul(x, layer, backend=backend)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


def gradients(x, condensed, g, *, backend, activation, layer=None):
  """Gradients in x, values and bias of `sum(g * y)`, the layout being made beforehand."""
  layer = layer or prepare(condensed, backend=backend)

  def loss(x, values, bias):
    new = dataclasses.replace(condensed, values=values, bias=bias)
    y = condensed_matmul(x, dataclasses.replace(layer, condensed=new), activation=activation)
    return (g * y).astype(jnp.float32).sum()

  return jax.jit(jax.grad(loss, (0, 1, 2)))(x, condensed.values, condensed.bias)


def check_gradients(actual, x, condensed, g, activation):
  expected = reference.gradients(x, condensed, g, activation)
  num_rows = x.size // condensed.in_features
  for name, got, want, num_terms in zip(
    ("x", "values", "bias"),
    actual,
    expected,
    (condensed.num_active, num_rows, num_rows),
    strict=True,
  ):
    assert got.shape == want.shape, name
    reference.assert_close(got, want, num_terms)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gradients(backend, name):
  x, condensed = make_problem(PROBLEMS[name])
  g = jnp.asarray(np.random.default_rng(1).normal(size=(*x.shape[:-1], condensed.out_features)))
  for activation in (None, "gelu") if name == "odd_sizes" else ("relu",):
    actual = gradients(x, condensed, g, backend=backend, activation=activation)
    check_gradients(actual, x, condensed, g, activation)


@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_gradients_of_bfloat16(backend, x_dtype):
  x, condensed = make_problem(SMALL, dtype=jnp.bfloat16)
  x, g = x.astype(x_dtype), jnp.ones((*x.shape[:-1], condensed.out_features), x_dtype)
  actual = gradients(x, condensed, g, backend=backend, activation=None)
  assert [a.dtype for a in actual] == [x_dtype, jnp.bfloat16, jnp.float32]
  check_gradients(actual, x, condensed, g, None)


def test_gradients_without_bias(backend):
  x, condensed = make_problem(SMALL, bias=False)
  layer = prepare(condensed, backend=backend)
  dx = jax.grad(lambda x: condensed_matmul(x, layer).sum())(x)
  expected, _, _ = reference.gradients(x, condensed, np.ones((3, 5, 53)))
  reference.assert_close(dx, expected, condensed.num_active)


def test_gradients_are_those_of_the_definition():
  x, condensed = make_problem(SMALL)

  def loss(matmul, values, bias, x):
    new = dataclasses.replace(condensed, values=values, bias=bias)
    return (matmul(x, new) ** 2).sum()

  def definition(x, new):
    return BACKENDS["reference"].matmul(x.reshape(-1, x.shape[-1]), new, new.bias, "gelu")

  ours = functools.partial(condensed_matmul, backend="xla", activation="gelu")
  args = (condensed.values, condensed.bias, x)
  expected = jax.jit(jax.grad(functools.partial(loss, definition), (0, 1, 2)))(*args)
  actual = jax.jit(jax.grad(functools.partial(loss, ours), (0, 1, 2)))(*args)
  for got, want in zip(actual, expected, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_values_can_be_trained_through_a_layout_made_inside():
  x, condensed = make_problem(SMALL)

  def loss(values):
    layer = prepare(dataclasses.replace(condensed, values=values), backend="structured")
    return condensed_matmul(x, layer).sum()

  dvalues = jax.jit(jax.grad(loss))(condensed.values)
  expected = reference.gradients(x, condensed, np.ones((3, 5, 53)))[1]
  reference.assert_close(dvalues, expected, 15)


def test_jit_does_not_compile_again_for_another_layer_of_the_same_shape(backend):
  traces = 0

  @jax.jit
  def run(x, layer):
    nonlocal traces
    traces += 1
    return condensed_matmul(x, layer)

  for seed in range(2):
    x, condensed = make_problem(Problem(16, 12, 12, 16, (3,)), seed=seed)
    y = run(x, prepare(condensed, backend=backend))
    reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)
  assert traces == 1


def test_vmap_of_inputs(backend):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=backend)
  y = jax.jit(jax.vmap(condensed_matmul, in_axes=(1, None), out_axes=1))(x, layer)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


@pytest.mark.parametrize("backend", PLAIN_XLA)
def test_vmap_of_layers(backend):
  x, first = make_problem(SMALL)
  _, second = make_problem(SMALL, seed=1)
  layers = jax.tree.map(lambda *a: jnp.stack(a), first, second)
  run = jax.vmap(functools.partial(condensed_matmul, x, backend=backend))
  for y, condensed in zip(run(layers), (first, second), strict=True):
    reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


def test_vmap_of_gradients(backend):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=backend)
  dx = jax.vmap(jax.grad(lambda x: condensed_matmul(x, layer).sum()))(x.reshape(15, -1))
  expected, _, _ = reference.gradients(x, condensed, np.ones((3, 5, 53)))
  reference.assert_close(dx, expected.reshape(15, -1), condensed.num_active)


def test_scan_over_inputs(backend):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=backend)
  _, y = jax.lax.scan(lambda carry, row: (carry, condensed_matmul(row, layer)), 0, x)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


def test_pmap(backend):
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=backend)
  y = jax.pmap(condensed_matmul, in_axes=(0, None))(x[:2], layer)
  reference.assert_close(y, reference.matmul(x[:2], condensed), condensed.fan_in)


@pytest.mark.parametrize("backend", PLAIN_XLA)
def test_export_round_trip(backend):
  pytest.importorskip("flatbuffers")
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=backend)
  run = jax.jit(lambda x: condensed_matmul(x, layer, activation="gelu"))
  data = jax.export.export(run)(x).serialize()
  again = jax.export.deserialize(data).call(x)
  np.testing.assert_array_equal(again, run(x))


def test_infinite_inputs_reach_only_neurons_that_read_them_in_the_portable_backend():
  x, condensed = make_problem(SMALL)
  x = x.at[0, 0, 3].set(jnp.inf)
  reads = np.isin(np.arange(condensed.out_features), condensed.active)
  reads[condensed.active] = (np.asarray(condensed.indices) == 3).any(1)
  y = np.asarray(condensed_matmul(x, condensed, backend="xla"))
  assert 0 < reads.sum() < len(reads)
  np.testing.assert_array_equal(np.isfinite(y[0, 0]), ~reads)
  assert np.isfinite(y[0, 1:]).all() and np.isfinite(y[1:]).all()


def shapes_of(problem, dtype=jnp.float32):
  """A layer of shapes only: enough to compile for."""
  num_inputs, num_neurons, num_active, fan_in, _ = problem
  shape = (num_active, fan_in)
  return Condensed(
    jax.ShapeDtypeStruct(shape, dtype),
    jax.ShapeDtypeStruct(shape, jnp.uint16),
    jax.ShapeDtypeStruct((num_active,), jnp.int32),
    jax.ShapeDtypeStruct((num_neurons,), jnp.float32),
    (num_inputs, num_neurons),
    (1,),
  )


WIDE = Problem(8192, 24_000, 20_000, 819, ())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ("problem", "batch"), [(PROBLEMS["vit_ffn_up"], 300_000), (WIDE, 1000)], ids=["high", "wide"]
)
def test_memory_of_the_portable_backend_is_bounded(problem, dtype, batch):
  condensed = shapes_of(problem, dtype)
  x = jax.ShapeDtypeStruct((batch, problem.in_features), dtype)
  g = jax.ShapeDtypeStruct((batch, problem.out_features), dtype)
  layout = jax.eval_shape(xla.pack, condensed)
  copies = dtype == jnp.bfloat16  # of the result; see the module
  for call, args, result in (
    (functools.partial(xla.matmul, activation="gelu"), (x, layout, condensed.bias), g),
    (xla.input_gradient, (g, condensed), x),
    (xla.values_gradient, (g, x, condensed), condensed.values),
  ):
    used = jax.jit(call).lower(*args).compile().memory_analysis().temp_size_in_bytes
    assert used <= xla.TEMPORARY_BYTES + copies * result.size * 2, call


def test_tiles_of_every_kind(monkeypatch):
  """Several tiles of rows, neurons and inputs, each with a remainder."""
  monkeypatch.setattr(xla, "TEMPORARY_BYTES", 8000)
  for dtype in (jnp.float32, jnp.bfloat16):
    x, condensed = make_problem(Problem(37, 53, 41, 13, (19,)), dtype=dtype)
    x = x.astype(dtype)
    g = jnp.ones((19, 53), dtype)
    y = jax.jit(xla.matmul)(x, xla.pack(condensed), condensed.bias)
    reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)
    dx, dvalues, _ = reference.gradients(x, condensed, g)
    reference.assert_close(jax.jit(xla.input_gradient)(g, condensed), dx, 41)
    reference.assert_close(jax.jit(xla.values_gradient)(g, x, condensed), dvalues, 19)
