"""What follows a condensed product is done by its kernel, and nothing else changes."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_kernels import BACKENDS, auto
from srigl_kernels.epilogue import ACTIVATIONS

needs_cpu = pytest.mark.skipif(
  not BACKENDS["cpu"].is_available(), reason="needs the native kernels"
)
SIZE = 24


def layer(seed, backend="cpu", size=SIZE):
  rng = np.random.default_rng(seed)
  mask = np.argsort(rng.random((size, size)), axis=0) < 5
  kernel = np.where(mask, rng.normal(size=mask.shape), 0).astype(np.float32)
  bias = rng.normal(size=size).astype(np.float32)
  return sx.prepare(sx.condense(kernel, mask, bias), backend=backend)


def batch(rows=3):
  return jnp.asarray(np.random.default_rng(9).normal(size=(rows, SIZE)), jnp.float32)


def operations(function, *args):
  """Names of the operations that are left of a function, calls written out; products by theirs."""

  def walk(jaxpr):
    for eqn in jaxpr.eqns:
      body = eqn.params.get("jaxpr") or eqn.params.get("call_jaxpr")
      if eqn.params.get("name") == "_apply":
        yield "product"
      elif body is None:
        yield eqn.primitive.name
      else:
        yield from walk(getattr(body, "jaxpr", body))

  return [*walk(jax.make_jaxpr(function)(*args).jaxpr)]


WAYS = {
  "relu": [jax.nn.relu, lambda y: jnp.maximum(y, 0), lambda y: jnp.where(y > 0, y, 0.0)],
  "gelu": [jax.nn.gelu],
  "gelu_exact": [lambda y: jax.nn.gelu(y, approximate=False)],
  "silu": [jax.nn.silu, lambda y: y / (1 + jnp.exp(-y))],
  "relu6": [jax.nn.relu6, lambda y: jnp.clip(y, 0, 6)],
  "hard_silu": [jax.nn.hard_swish],
}


@needs_cpu
@pytest.mark.parametrize("name", WAYS)
def test_activations_are_told_by_what_they_compute(name):
  a, b, x = layer(0), layer(1), batch()
  for way in WAYS[name]:
    plain = lambda x, way=way: sx.condensed_matmul(way(sx.condensed_matmul(x, a)), b)
    fused = sx.fuse(plain)
    assert operations(fused, x) == ["product", "product"]
    np.testing.assert_allclose(jax.jit(fused)(x), plain(x), rtol=2e-6, atol=2e-6)


def test_what_is_no_known_activation_stays():
  a, x = layer(0, "xla"), batch()
  fused = sx.fuse(lambda x: jnp.maximum(sx.condensed_matmul(x, a), 0.5))
  assert operations(fused, x) == ["product", "max"]


@needs_cpu
def test_a_residual_is_added_before_the_activation():
  a, b, x = layer(0), layer(1), batch()

  def block(x):
    y = jax.nn.relu(sx.condensed_matmul(x, a))
    return jax.nn.relu(sx.condensed_matmul(y, b) + y)

  assert operations(sx.fuse(block), x) == ["product", "product"]
  np.testing.assert_allclose(jax.jit(sx.fuse(block))(x), block(x), rtol=1e-6)


@needs_cpu
def test_two_products_that_are_added():
  a, b, x = layer(0), layer(1), batch()
  both = lambda x: jax.nn.silu(sx.condensed_matmul(x, a) + sx.condensed_matmul(x, b))
  assert operations(sx.fuse(both), x) == ["product", "product"]
  np.testing.assert_allclose(jax.jit(sx.fuse(both))(x), both(x), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
  "read_twice",
  [
    lambda y: (jax.nn.relu(y), y),
    lambda y: jax.nn.relu(y) + jax.nn.silu(y),
    lambda y: jax.nn.relu(y) * y.sum(),
    lambda y: y + y,
  ],
)
def test_what_something_else_reads_is_computed(read_twice):
  a, x = layer(0, "xla"), batch()
  function = lambda x: read_twice(sx.condensed_matmul(x, a))
  got, want = jax.jit(sx.fuse(function))(x), function(x)
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-6), got, want)


def test_transformations_of_a_fused_function():
  a, b, x = layer(0, "xla"), layer(1, "xla"), batch()
  plain = lambda x: sx.condensed_matmul(jax.nn.relu(sx.condensed_matmul(x, a)), b) + x
  fused = sx.fuse(plain)
  grad = lambda f: jax.jit(jax.grad(lambda x: jnp.sin(f(x)).sum()))(x)
  np.testing.assert_allclose(grad(fused), grad(plain), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(jax.jit(jax.vmap(fused))(x), plain(x), rtol=1e-5, atol=1e-6)
  inside = sx.fuse(lambda x: jax.vmap(plain)(x))
  assert operations(inside, x).count("product") == 2 and "max" not in operations(inside, x)
  loop = lambda x: jax.lax.scan(lambda c, _: (plain(c) / 2, None), x, None, length=3)[0]
  np.testing.assert_allclose(jax.jit(sx.fuse(loop))(x), loop(x), rtol=1e-5, atol=1e-6)
  derivative = sx.fuse(lambda x: jax.jvp(plain, (x,), (x,))[1])
  want = jax.jvp(plain, (x,), (x,))[1]
  np.testing.assert_allclose(jax.jit(derivative)(x), want, rtol=1e-5, atol=1e-6)


def test_arguments_that_are_no_arrays_are_static():
  a, x = layer(0, "xla"), batch()

  @sx.fuse
  def function(tree, twice, *, scale):
    y = sx.condensed_matmul(tree["x"], a)
    return {"y": y + y if twice else y, "scale": jnp.float32(scale)}

  out = jax.jit(lambda x: function({"x": x}, True, scale=3))(x)
  np.testing.assert_allclose(out["y"], 2 * sx.condensed_matmul(x, a), rtol=1e-6)
  assert out["scale"] == 3


class Net(nnx.Module):
  """Two sparse layers with a residual, and what a model may do besides."""

  def __init__(self, rngs):
    self.first = nnx.Linear(SIZE, SIZE, rngs=rngs)
    self.second = nnx.Linear(SIZE, SIZE, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    self.calls = nnx.BatchStat(jnp.zeros((), jnp.int32))

  def __call__(self, x, double: bool = False):
    self.calls.set_value(self.calls.get_value() + 1)
    y = nnx.relu(self.first(x))
    y = nnx.relu(self.drop(self.second(y)) + y)
    return 2 * y if double else y


def condensed_net():
  model = Net(nnx.Rngs(0))
  rng = np.random.default_rng(0)
  masks = {}
  for name in ("first", "second"):
    kernel = getattr(model, name).kernel
    masks[f"{name}/kernel"] = np.argsort(rng.random((SIZE, SIZE)), axis=0) < 5
    kernel.set_value(kernel.get_value() * masks[f"{name}/kernel"])
  return model, sx.condense_model(model, masks, backend="xla")


def test_a_condensed_model_fuses_its_own_calls():
  model, condensed = condensed_net()
  model.eval()
  x = batch()
  assert isinstance(condensed, Net) and type(condensed).__name__ == "Net"
  run = nnx.jit(lambda model, x, double: model(x, double=double), static_argnums=2)
  np.testing.assert_allclose(run(condensed, x, True), model(x, True), rtol=1e-5, atol=1e-6)
  assert condensed.calls.get_value() == 1  # what a call changes is changed
  condensed(x)
  assert condensed.calls.get_value() == 2
  pure = lambda x: nnx.clone(condensed)(x)
  assert "max" not in operations(pure, x)


def test_a_condensed_model_can_be_pickled_and_merged():
  model, condensed = condensed_net()
  x = batch()
  run = lambda model: jax.jit(lambda x: nnx.clone(model)(x))(x)
  again = pickle.loads(pickle.dumps(condensed))
  np.testing.assert_array_equal(run(again), run(condensed))
  merged = sx.merge_condensed(model, *sx.split_condensed(condensed), backend="xla")
  np.testing.assert_array_equal(run(merged), run(condensed))
  assert "max" not in operations(lambda x: nnx.clone(merged)(x), x)


class Peculiar(nnx.Module):
  """A model that can only be traced with concrete variables, and adds one of its own."""

  def __init__(self, rngs):
    self.layer = nnx.Linear(SIZE, SIZE, rngs=rngs)
    self.depth = nnx.BatchStat(jnp.asarray(2))

  def __call__(self, x):
    for _ in range(int(self.depth.get_value())):
      x = nnx.relu(self.layer(x))
    return x


def test_a_model_that_reads_its_variables_while_it_is_traced_runs_as_before():
  model = Peculiar(nnx.Rngs(0))
  mask = np.eye(SIZE, dtype=bool)
  model.layer.kernel.set_value(model.layer.kernel.get_value() * mask)
  condensed = sx.condense_model(model, {"layer/kernel": mask}, backend="xla")
  x = batch()
  np.testing.assert_allclose(jax.jit(lambda x: condensed(x))(x), model(x), rtol=1e-5, atol=1e-6)


@needs_cpu
def test_under_vmap_the_backend_is_chosen_for_all_rows(monkeypatch):
  def rank(condensed, rows, names, group=None):
    first = "cpu" if rows < 100 else "dense"
    return sorted(((name, float(name != first)) for name in names), key=lambda pair: pair[1])

  monkeypatch.setattr(auto, "rank", rank)
  prepared = layer(3, backend="auto")
  assert set(prepared.layouts) == {"cpu", "dense"}
  x = jnp.tile(batch(4), (512, 1)).reshape(64, 16, 2, SIZE)
  function = lambda x: jax.vmap(jax.vmap(lambda x: sx.condensed_matmul(x, prepared)))(x) * x
  text = jax.jit(sx.fuse(function)).lower(x).as_text()
  assert "srigl" not in text and "dot_general" in text
  np.testing.assert_allclose(jax.jit(sx.fuse(function))(x), function(x), atol=1e-5)
  by_name = sx.prepare(
    prepared.condensed, backend=("cpu", "dense")
  )  # in this order, whatever is faster
  function = lambda x: jax.vmap(lambda x: sx.condensed_matmul(x, by_name))(x) * x
  assert "dot_general" not in jax.jit(sx.fuse(function)).lower(x).as_text()


@needs_cpu
def test_a_small_program_of_products_alone_is_native_from_end_to_end():
  rng = np.random.default_rng(0)
  mask = np.argsort(rng.random((40, 8)), axis=0) < 36  # nearly dense: dense is faster by itself
  head = sx.condense(np.where(mask, 1.0, 0.0).astype(np.float32), mask)
  layers = [sx.prepare(layer(0, size=40).condensed, backend="cpu"), sx.prepare(head)]
  assert set(layers[1].layouts) == {"dense", "cpu"}
  x = jnp.ones((16, 40))
  assert sx.choose_backend(layers[1], 16)[0] == "dense"

  def net(x):
    return sx.condensed_matmul(jax.nn.relu(sx.condensed_matmul(x, layers[0])), layers[1])

  compiled = jax.jit(sx.fuse(net)).lower(x).compile().as_text()
  assert " dot(" not in compiled and compiled.count("custom-call(") == 2
  np.testing.assert_allclose(jax.jit(sx.fuse(net))(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "rows"), [("xla", 2), ("cpu", 2), ("cpu", 20)])
def test_residual_and_every_activation(backend, rows):
  if backend == "cpu" and not BACKENDS["cpu"].is_available():
    pytest.skip("needs the native kernels")
  prepared, x = layer(3, backend), batch(rows)
  residual = 3 * x[:, ::-1]
  run = jax.jit(sx.condensed_matmul, static_argnames="activation")
  sums = np.asarray(run(x, prepared), np.float64) + residual
  for name, function in ACTIVATIONS.items():
    got = run(x, prepared, activation=name, residual=residual)
    want = function(jnp.asarray(sums, jnp.float32))
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=2e-6)


@pytest.mark.parametrize("backend", ["dense", "cpu"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_residuals_of_convolutions(backend, rank):
  if backend == "cpu" and not BACKENDS["cpu"].is_available():
    pytest.skip("needs the native kernels")
  rng = np.random.default_rng(rank)
  kernel = rng.normal(size=(*(2,) * rank, 3, 5)).astype(np.float32)
  kernel[..., 2] = 0  # an ablated neuron
  prepared = sx.prepare(sx.condense(kernel, kernel != 0), backend=backend)
  x = jnp.asarray(rng.normal(size=(2, *range(3, 3 + rank), 3)), jnp.float32)
  plain = sx.condensed_conv(x, prepared, backend=backend)
  residual = jnp.asarray(rng.normal(size=plain.shape), jnp.float32)
  got = sx.condensed_conv(x, prepared, activation="gelu", residual=residual)
  want = jax.nn.gelu(plain + residual)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  function = lambda x: jax.nn.gelu(sx.condensed_conv(x, prepared) + residual)
  np.testing.assert_allclose(jax.jit(sx.fuse(function))(x), want, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="shape of the result"):
    sx.condensed_conv(x, prepared, residual=residual[:1])


def test_the_gradient_in_the_residual():
  prepared, x = layer(3, "xla"), batch()
  run = lambda r: jnp.sin(sx.condensed_matmul(x, prepared, activation="silu", residual=r)).sum()
  want = lambda r: jnp.sin(jax.nn.silu(sx.condensed_matmul(x, prepared) + r)).sum()
  np.testing.assert_allclose(jax.grad(run)(x), jax.grad(want)(x), rtol=1e-5, atol=1e-6)


def test_a_residual_must_have_the_shape_of_the_result():
  prepared, x = layer(3, "xla"), batch()
  with pytest.raises(ValueError, match=r"shape of the result, \(3, 24\), not \(24,\)"):
    sx.condensed_matmul(x, prepared, residual=x[0])
  with pytest.raises(ValueError, match="int32"):
    sx.condensed_matmul(x, prepared, residual=x.astype(jnp.int32))
