"""Layers whose values change: native gradients on CPU, and fine-tuning on a fixed pattern."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from srigl_kernels import BACKENDS, condensed_matmul, prepare
from srigl_kernels.backends.cpu import gradients, library
from srigl_kernels.problems import LAYERS, PROBLEMS, Problem, make_problem
from tests.kernels import reference

HAS_CPU = BACKENDS["cpu"].is_available()
needs_cpu = pytest.mark.skipif(not HAS_CPU, reason="needs the native kernels")
AVAILABLE = [n for n in BACKENDS if BACKENDS[n].is_available() and n != "grouped"]
SMALL = PROBLEMS["odd_sizes"]

# Around borders of lanes, blocks and panels; multiples of nothing; each with some batch sizes.
SHAPES = (
  (LAYERS["vit_ffn_up"], (3,)),
  (Problem(300, 130, 65, 29, ()), (1, 17, 64)),
  (Problem(37, 53, 41, 13, ()), (0, 5, 65)),
  (Problem(97, 66, 66, 97, ()), (4, 33)),  # dense rows, all active
  (Problem(700, 90, 70, 2, ()), (31, 129)),  # sparse: wide blocks
  (Problem(40, 24, 18, 1, ()), (6,)),
  (Problem(33, 19, 1, 5, ()), (16,)),
  (Problem(14, 6, 0, 0, ()), (4,)),
  (Problem(1, 1, 1, 1, ()), (2,)),
)


def gradients_of(x, layer, g, activation=None):
  """Gradients in x and in the weights of `sum(g * y)`."""

  def loss(x, weights):
    y = condensed_matmul(x, layer.with_weights(weights), activation=activation)
    return (g * y).astype(jnp.float32).sum()

  return jax.jit(jax.grad(loss, (0, 1)))(x, layer.weights)


def check(actual, x, condensed, g, activation=None):
  """Compares gradients with those of the definition, in float64."""
  (dx, weights), num_rows = actual, x.size // condensed.in_features
  want = reference.gradients(x, condensed, g, activation)
  reference.assert_close(dx, want[0], condensed.num_active)
  reference.assert_close(weights["values"], want[1], num_rows)
  if condensed.bias is not None:
    reference.assert_close(weights["bias"], want[2], num_rows)


def make(problem, batch, seed=0, **kwargs):
  """x, a layer and a gradient in its output."""
  x, condensed = make_problem(problem._replace(batch=batch), seed=seed, **kwargs)
  g = np.random.default_rng(seed + 9).normal(size=(*batch, condensed.out_features))
  return x, condensed, jnp.asarray(g, jnp.float32)


@needs_cpu
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_native_gradients_equal_the_definition(isa, shape):
  problem, batches = SHAPES[shape]
  for batch in batches:
    x, condensed, g = make(problem, (batch,))
    layer = prepare(condensed, backend="cpu", gradients=True)
    check(gradients_of(x, layer, g), x, condensed, g)


@needs_cpu
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
def test_bfloat16(isa, x_dtype):
  x, condensed, g = make(SMALL, (21,), dtype=jnp.bfloat16)
  x, g = x.astype(x_dtype), g.astype(x_dtype)
  layer = prepare(condensed, backend="cpu", gradients=True)
  actual = gradients_of(x, layer, g)
  assert [a.dtype for a in jax.tree.leaves(actual)] == [x_dtype, jnp.float32, jnp.bfloat16]
  check(actual, x, condensed, g)
  y = condensed_matmul(x, layer)
  reference.assert_close(y, reference.matmul(x, condensed), condensed.fan_in)


@pytest.mark.parametrize("backend", AVAILABLE)
@pytest.mark.parametrize("leading", [(), (3,), (2, 0), (2, 3, 2)])
def test_leading_dimensions_and_activation(backend, leading):
  x, condensed, g = make(SMALL, leading, bias=len(leading) < 3)
  layer = prepare(condensed, backend=backend, gradients=True)
  check(gradients_of(x, layer, g, "relu"), x, condensed, g, "relu")


@needs_cpu
def test_what_runs_natively():
  x, condensed, g = make(SMALL, (8,))
  for trains, expected in ((True, (1, 1, 2)), (False, (0, 1, 0))):
    layer = prepare(condensed, backend="cpu", gradients=trains)

    def loss(x, values, layer=layer):
      new = dataclasses.replace(layer.condensed, values=values)
      return (g * condensed_matmul(x, dataclasses.replace(layer, condensed=new))).sum()

    text = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(x, condensed.values).as_text()
    names = (library.INPUT_GRADIENT, library.VALUES_GRADIENT, library.PACK_VALUES)
    assert tuple(text.count(f"custom_call @{name}(") for name in names) == expected


# ---- values that change ----


@pytest.mark.parametrize("backend", AVAILABLE)
def test_a_layer_computes_with_the_values_it_has(backend):
  x, condensed, g = make(SMALL, (5,))
  layer = prepare(condensed, backend=backend, gradients=True)
  new = dataclasses.replace(condensed, values=3 * condensed.values + 1, bias=-condensed.bias)
  weights = {"values": new.values, "bias": new.bias}
  for changed in (
    layer.with_weights(weights),
    jax.jit(lambda layer, weights: layer.with_weights(weights))(layer, weights),
    dataclasses.replace(layer, condensed=new),
  ):
    y = jax.jit(condensed_matmul)(x, changed)
    reference.assert_close(y, reference.matmul(x, new), condensed.fan_in)
    check(gradients_of(x, changed, g), x, new, g)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_what_is_trained_are_the_floating_point_leaves(backend):
  x, condensed, _ = make(SMALL, (5,))
  layer = prepare(condensed, backend=backend, gradients=True)
  is_float = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
  assert len([leaf for leaf in jax.tree.leaves(layer) if is_float(leaf)]) == 2
  halved = jax.tree.map(lambda leaf: leaf / 2 if is_float(leaf) else leaf, layer)
  y = condensed_matmul(x, halved)
  reference.assert_close(y, reference.matmul(x, condensed) / 2, condensed.fan_in)


@needs_cpu
def test_only_the_pattern_must_be_concrete():
  x, condensed, _ = make(SMALL, (5,))

  @jax.jit
  def run(values):
    new = dataclasses.replace(condensed, values=values)
    return condensed_matmul(x, prepare(new, backend="cpu", gradients=True))

  reference.assert_close(run(condensed.values), reference.matmul(x, condensed), condensed.fan_in)
  with pytest.raises(ValueError, match="with gradients=True its values may change"):
    jax.jit(lambda values: prepare(dataclasses.replace(condensed, values=values), backend="cpu"))(
      condensed.values
    )
  with pytest.raises(ValueError, match="outside of jit"):
    jax.jit(lambda c: prepare(c, backend="cpu", gradients=True))(condensed)


# ---- transformations ----


@pytest.mark.parametrize("backend", AVAILABLE)
def test_vmap_of_examples_gives_a_gradient_each(backend):
  x, condensed, g = make(SMALL, (4,))
  layer = prepare(condensed, backend=backend, gradients=True)

  def loss(weights, x, g):
    return (g * condensed_matmul(x, layer.with_weights(weights))).sum()

  each = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), in_axes=(None, 0, 0)))(layer.weights, x, g)
  for i in range(4):
    weights, dx = jax.tree.map(lambda leaf, i=i: leaf[i], each)
    check((dx, weights), x[i], condensed, g[i])


@pytest.mark.parametrize("backend", AVAILABLE)
def test_gradient_of_a_vmapped_layer(backend):
  x, condensed, g = make(SMALL, (4,))
  layer = prepare(condensed, backend=backend, gradients=True)

  def loss(x, weights):
    return (g * jax.vmap(condensed_matmul, (0, None))(x, layer.with_weights(weights))).sum()

  check(jax.jit(jax.grad(loss, (0, 1)))(x, layer.weights), x, condensed, g)


@needs_cpu
def test_vmap_of_gradients_in_x_is_one_call():
  x, condensed, g = make(SMALL, (6,))
  pattern = gradients.pack(condensed)
  run = jax.jit(jax.vmap(gradients.input_gradient, in_axes=(0, None, None)))
  dx = run(g[:, None], condensed, pattern)
  reference.assert_close(dx[:, 0], reference.gradients(x, condensed, g)[0], condensed.num_active)
  assert "while" not in run.lower(g[:, None], condensed, pattern).as_text()


@pytest.mark.parametrize("backend", AVAILABLE)
def test_vmap_of_layers(backend):
  x, first, g = make(SMALL, (5,))
  condensed = (first, make(SMALL, (5,), seed=1)[1])
  layers = [prepare(c, backend=backend, gradients=True) for c in condensed]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

  def run(layer):
    loss = lambda x, w: (g * condensed_matmul(x, layer.with_weights(w))).sum()
    return jax.grad(loss, (0, 1))(x, layer.weights)

  both = jax.jit(jax.vmap(run))(stacked)
  for i in range(2):
    check(jax.tree.map(lambda leaf, i=i: leaf[i], both), x, condensed[i], g)


@pytest.mark.parametrize("backend", AVAILABLE)
def test_scan_over_steps_of_training(backend):
  x, condensed, _ = make(SMALL, (9,))
  layer = prepare(condensed, backend=backend, gradients=True)
  loss = lambda weights: (condensed_matmul(x, layer.with_weights(weights)) ** 2).mean()

  def step(weights, _):
    value, grads = jax.value_and_grad(loss)(weights)
    return jax.tree.map(lambda w, d: w - 0.2 * d, weights, grads), value

  weights, losses = jax.jit(lambda weights: jax.lax.scan(step, weights, length=12))(layer.weights)
  assert losses[-1] < 0.9 * losses[0] and np.all(np.diff(losses) < 0)
  np.testing.assert_allclose(loss(weights), loss(jax.tree.map(jnp.asarray, weights)), rtol=1e-6)
  again = prepare(layer.with_weights(weights).condensed, backend=backend)
  np.testing.assert_allclose((condensed_matmul(x, again) ** 2).mean(), loss(weights), rtol=1e-5)


def test_data_parallel_gradients():
  num_devices = jax.local_device_count()
  x, condensed, g = make(SMALL, (num_devices, 3))
  layer = prepare(condensed, gradients=True)

  def run(weights, x, g):
    loss = lambda w: (g * condensed_matmul(x, layer.with_weights(w))).sum()
    return jax.lax.psum(jax.grad(loss)(weights), "b")

  weights = jax.pmap(run, axis_name="b", in_axes=(None, 0, 0), out_axes=None)(layer.weights, x, g)
  dx = reference.gradients(x, condensed, g)[0]
  check((jnp.asarray(dx, jnp.float32), weights), x, condensed, g)


# ---- fine-tuning ----


@pytest.mark.parametrize("backend", AVAILABLE)
def test_fine_tuning_follows_the_masked_dense_twin(backend):
  sizes = (Problem(29, 37, 31, 7, ()), Problem(37, 10, 10, 11, ()))
  condensed = [make(size, (), seed=i)[1] for i, size in enumerate(sizes)]
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(20, 29)), jnp.float32)
  labels = jnp.asarray(rng.integers(10, size=20))
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))

  def run(apply, params):
    @jax.jit
    def step(params, state):
      def loss(params):
        logits = apply(params)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

      value, grads = jax.value_and_grad(loss)(params)
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state, value

    state, losses = tx.init(params), []
    for _ in range(8):
      params, state, value = step(params, state)
      losses.append(value)
    return params, np.array(losses)

  layers = [prepare(c, backend=backend, gradients=True) for c in condensed]

  def sparse(params):
    first, second = (layer.with_weights(w) for layer, w in zip(layers, params, strict=True))
    return condensed_matmul(condensed_matmul(x, first, activation="relu"), second)

  kernels = [jnp.asarray(reference.dense_matrix(c), jnp.float32) for c in condensed]
  masks = [kernel != 0 for kernel in kernels]

  def dense(params):
    (first, bias), (second, other) = params
    hidden = jax.nn.relu(x @ jnp.where(masks[0], first, 0) + bias[None])
    return hidden @ jnp.where(masks[1], second, 0) + other[None]

  weights, losses = run(sparse, [layer.weights for layer in layers])
  twin = [(kernel, c.bias) for kernel, c in zip(kernels, condensed, strict=True)]
  expected, expected_losses = run(dense, twin)
  assert losses[-1] < losses[0] - 0.1
  np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
  for layer, got, (kernel, bias) in zip(layers, weights, expected, strict=True):
    matrix = reference.dense_matrix(layer.with_weights(got).condensed)
    np.testing.assert_allclose(matrix, kernel, atol=1e-4)
    np.testing.assert_allclose(got["bias"], bias, atol=1e-4)


# ---- refusals ----


def test_weights_that_do_not_fit_are_refused():
  _, condensed, _ = make(SMALL, ())
  with pytest.raises(ValueError, match="gradients=True"):
    prepare(condensed).with_weights({})
  layer = prepare(condensed, gradients=True)
  for change in ({"bias": None}, {"values": condensed.values[1:]}, {"scale": condensed.bias}):
    weights = {name: w for name, w in {**layer.weights, **change}.items() if w is not None}
    with pytest.raises(ValueError, match="must have the shapes"):
      layer.with_weights(weights)


@needs_cpu
@pytest.mark.parametrize(
  "change",
  (
    lambda p: {"tile_pattern": p.tile_pattern[:-1], "transposed_pattern": p.tile_pattern},
    lambda p: {"tile_pattern": p.transposed_pattern, "transposed_pattern": p.tile_pattern},
    lambda p: {f: getattr(p, f).at[:64].set(255) for f in ("tile_pattern", "transposed_pattern")},
    lambda p: {"transposed_order": p.transposed_order[:-1], "tile_pattern": p.tile_pattern[:60]},
  ),
)
def test_the_handlers_refuse_what_does_not_fit_together(change):
  x, condensed, g = make(SMALL, (5,))
  pattern = gradients.pack(condensed)
  pattern = dataclasses.replace(pattern, **change(pattern))
  with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
    gradients.input_gradient(g, condensed, pattern).block_until_ready()
  with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
    gradients.values_gradient(g, x, condensed, pattern).block_until_ready()


@needs_cpu
def test_neurons_and_orders_out_of_range_are_not_followed():
  x, condensed, g = make(SMALL, (5,))
  pattern = gradients.pack(condensed)
  for beyond in (53, -1, 2**31 - 1):
    wrong = dataclasses.replace(condensed, active=condensed.active.at[3].set(beyond))
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
      gradients.input_gradient(g, wrong, pattern).block_until_ready()
    with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
      gradients.values_gradient(g, x, wrong, pattern).block_until_ready()
    order = dataclasses.replace(pattern, tile_order=jnp.full_like(pattern.tile_order, beyond))
    gradients.with_values(order, condensed.values).tile_values.block_until_ready()
  wrong = dataclasses.replace(condensed, indices=condensed.indices.at[0, 0].set(40))
  with pytest.raises(ValueError, match="must ascend within"):
    gradients.pack(wrong)
