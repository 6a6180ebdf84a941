"""The native CPU kernels against the definition, in float64, on every CPU target of the machine."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels.backends.cpu import library
from srigl_kernels.backends.cpu import matmul as products
from srigl_kernels.problems import LAYERS
from tests.kernels.cpu_targets import targets

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)

# Around every border between two kernels; a shape takes every third one.
BATCHES = (0, 1, 2, 3, 5, 8, 15, 16, 17, 20, 21, 31, 32, 33, 63, 64, 65, 84, 85, 100, 129)

matmul = jax.jit(products.matmul, static_argnums=3)

# (inputs, neurons, active neurons, fan-in)
SHAPES = (
  LAYERS["vit_ffn_up"][:4],
  LAYERS["vit_ffn_down"][:4],
  (3072, 768, 700, 3),  # sparse: wide blocks
  (257, 130, 65, 257),  # dense rows, one column and one row beyond a register
  (95, 33, 17, 1),
  (17, 5, 5, 16),
  (16, 16, 16, 4),
  (7, 3, 2, 3),  # narrower than any register
  (1, 1, 1, 1),
  (40, 50, 0, 0),  # all neurons ablated
  (40, 50, 1, 7),
)


def layer(num_inputs, num_neurons, num_active, fan_in, seed=0):
  rng = np.random.default_rng(seed)
  values = rng.standard_normal((num_active, fan_in), dtype=np.float32)
  columns = [rng.choice(num_inputs, fan_in, replace=False) for _ in range(num_active)]
  indices = np.sort(np.array(columns, np.int32).reshape(num_active, fan_in), axis=1)
  active = np.sort(rng.choice(num_neurons, num_active, replace=False)).astype(np.int32)
  bias = rng.standard_normal(num_neurons, dtype=np.float32)
  return values, indices, active, bias


def expected(x, values, indices, active, bias, activation=None):
  """The definition, in float64."""
  kernel = np.zeros((x.shape[-1], bias.size))
  if active.size:
    kernel[indices, active[:, None]] = values.astype(np.float64)
  y = x.astype(np.float64) @ kernel + bias
  if activation == "relu":
    y = np.maximum(y, 0)
  if activation == "gelu":
    y = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
  return y


def tolerance(fan_in):
  """Allowed error of a sum of so many products of normal numbers: rounding adds up like noise."""
  return 4e-6 * np.sqrt(fan_in + 1)


def inputs(*shape, seed=1):
  return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_definition(isa, shape):
  values, indices, active, bias = layer(*shape)
  packed = products.pack(values, indices, active, *shape[:2])
  for batch in BATCHES[SHAPES.index(shape) % 3 :: 3]:
    x = inputs(batch, shape[0])
    y = matmul(x, packed, bias)
    np.testing.assert_allclose(
      y, expected(x, values, indices, active, bias), rtol=0, atol=tolerance(shape[3])
    )


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("shape", ((257, 130, 65, 257), (300, 70, 70, 41), (96, 3, 3, 31)), ids=str)
def test_patterns_of_another_cpu(isa, shape, dtype):
  """A packed layer may come from a file: each target takes what another one has packed."""
  values, indices, active, bias = layer(*shape)
  values = np.asarray(jnp.asarray(values, dtype))
  for packer in targets():
    library.set_isa(packer)
    packed = products.pack(values, indices, active, *shape[:2])
    library.set_isa(isa)
    for batch in (1, 4, 16, 30, 64, 129):
      x = inputs(batch, shape[0])
      want = expected(x, values, indices, active, bias)
      np.testing.assert_allclose(matmul(x, packed, bias), want, rtol=0, atol=tolerance(shape[3]))


@pytest.mark.parametrize("batch", (1, 16, 40))
@pytest.mark.parametrize("activation", (None, "relu", "gelu"))
def test_bias_and_activation(isa, activation, batch):
  values, indices, active, bias = layer(100, 90, 37, 11)
  packed = products.pack(values, indices, active, 100, 90)
  x = inputs(batch, 100)
  y = matmul(x, packed, 3 * bias, activation)
  want = expected(x, values, indices, active, 3 * bias, activation)
  np.testing.assert_allclose(y, want, rtol=1e-6, atol=tolerance(11))
  ablated = np.setdiff1d(np.arange(90), active)
  constants = expected(0 * x, values, indices, active, 3 * bias, activation)
  np.testing.assert_allclose(y[:, ablated], constants[:, ablated], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("active", (1040, 1000))
@pytest.mark.parametrize("fan_in", (6, 24))
@pytest.mark.parametrize("activation", ("relu", "silu"))
def test_outputs_that_no_cache_holds(isa, activation, fan_in, active):
  """Of more than 8 MB, which AVX-512 writes past the caches, where they are in whole lines."""
  values, indices, active, bias = layer(24, 1040, active, fan_in)
  packed = products.pack(values, indices, active, 24, 1040)
  x, residual = inputs(2049, 24), inputs(2049, 1040, seed=2)
  y = matmul(x, packed, bias, activation, residual)
  want = jax.nn.silu if activation == "silu" else jax.nn.relu
  want = want(expected(x, values, indices, active, bias) + residual)
  np.testing.assert_allclose(y, want, rtol=1e-6, atol=tolerance(fan_in))


@pytest.mark.parametrize("activation", ("relu", "gelu"))
def test_activations_of_extreme_numbers_are_those_of_jax(isa, activation):
  x = np.array([-np.inf, -1e30, -100, -20, -5, -1e-6, -0.0, 0.0, 1e-6, 5, 20, 1e30, np.inf, np.nan])
  x = x.astype(np.float32)
  packed = products.pack(
    np.zeros((0, 0), np.float32), np.zeros((0, 0), int), np.zeros(0, int), 3, x.size
  )
  y = products.matmul(np.zeros((2, 3), np.float32), packed, x, activation)
  want = getattr(jax.nn, activation)(jnp.asarray(x))
  np.testing.assert_allclose(y[0], want, rtol=1e-6, atol=1e-6)
  np.testing.assert_allclose(y[1], want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("batch", (1, 16, 70))
def test_bfloat16_values_and_inputs(isa, batch):
  values, indices, active, bias = layer(300, 200, 150, 40)
  rounded = jnp.asarray(values, jnp.bfloat16)
  packed = products.pack(rounded, indices, active, 300, 200)
  assert packed.tile_values.dtype == jnp.bfloat16
  exact = np.asarray(rounded, np.float32)
  x = inputs(batch, 300)
  y = products.matmul(x, packed, bias)
  np.testing.assert_allclose(
    y, expected(x, exact, indices, active, bias), rtol=0, atol=tolerance(40)
  )
  y = products.matmul(jnp.asarray(x, jnp.bfloat16), packed, bias)
  assert y.dtype == jnp.bfloat16
  x = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
  want = expected(x, exact, indices, active, bias)
  np.testing.assert_allclose(np.asarray(y, np.float32), want, rtol=2**-8, atol=tolerance(40))


@pytest.mark.parametrize("batch", (1, 16, 70))
def test_inf_and_nan_reach_the_neurons_that_use_them(isa, batch):
  values, indices, active, bias = layer(100, 50, 30, 10)
  packed = products.pack(values, indices, active, 100, 50)
  for bad in (np.inf, np.nan):
    x = inputs(batch, 100)
    x[:, 7] = bad
    y = np.asarray(products.matmul(x, packed, bias))
    assert not np.isfinite(y[:, active[(indices == 7).any(axis=1)]]).any()
    assert np.isfinite(y[:, np.setdiff1d(np.arange(50), active)]).all()


def test_a_layer_packed_for_another_target_runs_here(isa):
  values, indices, active, bias = layer(300, 200, 150, 40)
  x = inputs(5, 300)
  for packer in targets():
    library.set_isa(packer)
    packed = products.pack(values, indices, active, 300, 200)
    assert (packed.window_pattern.size > 0) == packer.startswith("avx512")
    library.set_isa(isa)
    y = products.matmul(x, packed, bias)
    np.testing.assert_allclose(
      y, expected(x, values, indices, active, bias), rtol=0, atol=tolerance(40)
    )


@pytest.mark.parametrize("exact", (True, False))
def test_weights_are_used_as_they_are_unless_they_may_be_rounded(isa, exact):
  """Inputs of zeros and a one show the weights themselves."""
  values, indices, active, _ = layer(150, 60, 40, 30)
  limits = np.finfo(np.float32)
  values *= 10.0 ** np.arange(-15, 25, 1, np.float32)[:, None]
  values[0, :6] = 0, -0.0, limits.max, -limits.max, 4 * limits.tiny, 1
  packed = products.pack(values, indices, active, 150, 60, exact=exact)
  for rows in (1, 4, 8):
    for x in np.eye(150, dtype=np.float32)[:144].reshape(-1, rows, 150):
      y = np.asarray(matmul(x, packed))
      want = expected(x, values, indices, active, np.zeros(60)).astype(np.float32)
      if exact or not isa.startswith("avx512"):
        np.testing.assert_array_equal(y, want)
      else:
        size = np.abs(want, dtype=np.float64)
        allowed = size * np.where(size == limits.max, 2**-18, 2**-19)
        assert (np.abs(y - want.astype(np.float64)) <= allowed).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounded_weights_give_the_same_to_2_to_the_minus_19(isa, shape):
  values, indices, active, bias = layer(*shape)
  packed = products.pack(values, indices, active, *shape[:2], exact=False)
  for batch in (1, 2, 7, 12, 40):
    x = inputs(batch, shape[0])
    want = expected(x, values, indices, active, bias)
    sizes = expected(np.abs(x), np.abs(values), indices, active, np.abs(bias))
    error = np.abs(matmul(x, packed, bias) - want)
    assert (error <= 2**-19 * sizes + tolerance(shape[3])).all()


def test_rounding_leaves_what_it_cannot_hold(isa):
  values, indices, active, bias = layer(64, 32, 20, 8)
  x = inputs(3, 64)
  same = [jnp.asarray(values, jnp.bfloat16)]
  same += [np.where(np.arange(8) == 5, bad, values).astype(np.float32) for bad in (np.inf, np.nan)]
  for kept in same:
    packs = (products.pack(kept, indices, active, 64, 32, exact=exact) for exact in (True, False))
    np.testing.assert_array_equal(*(matmul(x, packed, bias) for packed in packs))


# ---- transformations ----


@pytest.fixture
def case():
  values, indices, active, bias = layer(48, 40, 25, 9)
  packed = products.pack(values, indices, active, 48, 40)
  return packed, bias, lambda x, b=bias: expected(x, values, indices, active, b)


def close(y, want):
  np.testing.assert_allclose(y, want, rtol=0, atol=tolerance(9))


@pytest.mark.parametrize("leading", ((), (3,), (2, 3), (2, 0, 3), (1, 2, 2, 2)))
def test_any_leading_dimensions(case, leading):
  packed, bias, want = case
  x = inputs(*leading, 48)
  y = jax.jit(products.matmul)(x, packed, bias)
  assert y.shape == (*leading, 40)
  close(y, want(x))


def test_vmap_over_inputs_is_one_call(case):
  packed, bias, want = case
  x = inputs(48, 7, 2)
  f = jax.vmap(products.matmul, in_axes=(1, None, None))
  g = jax.vmap(f, in_axes=(2, None, None))
  close(g(x, packed, bias), want(x.transpose(2, 1, 0)))
  text = jax.jit(g).lower(x, packed, bias).as_text()
  assert text.count("custom_call @srigl_condensed_matmul") == 1
  assert "while" not in text


def test_vmap_over_bias_and_layers(case):
  packed, bias, want = case
  x = inputs(4, 48)
  biases = np.stack([bias, 2 * bias, -bias])
  y = jax.vmap(products.matmul, in_axes=(None, None, 0))(x, packed, biases)
  close(y, np.stack([want(x, b) for b in biases]))
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), packed)
  y = jax.jit(jax.vmap(products.matmul, in_axes=(None, 0, None)))(x, stacked, bias)
  close(y, np.stack([want(x)] * 2))


def test_scan(case):
  packed, bias, want = case
  x = inputs(6, 3, 48)

  @jax.jit
  def run(x, packed):
    return jax.lax.scan(lambda c, row: (c, products.matmul(row, packed, bias)), 0, x)[1]

  close(run(x, packed), want(x))


def test_pmap(case):
  packed, bias, want = case
  num_devices = jax.local_device_count()
  assert num_devices == 8
  x = inputs(num_devices, 70, 48)
  y = jax.pmap(products.matmul, in_axes=(0, None, None))(x, packed, bias)
  close(y, want(x))


def test_many_calls_in_one_program_on_all_threads():
  shape = (512, 512, 512, 100)
  values, indices, active, bias = layer(*shape)
  packed = products.pack(values, indices, active, 512, 512)
  xs = inputs(24, 96, 512)
  ys = jax.jit(lambda xs: [products.matmul(x, packed, bias) for x in xs])(list(xs))
  close_to = expected(xs, values, indices, active, bias)
  np.testing.assert_allclose(np.stack(ys), close_to, rtol=0, atol=tolerance(100))


# ---- refusals ----


@pytest.mark.parametrize(
  "change, message",
  (
    ({"indices": [[0, 3], [1, 5]]}, "neuron 4 must ascend within 0..in_features"),
    ({"indices": [[0, 3], [1, -1]]}, "must ascend"),
    ({"indices": [[0, 0], [1, 2]]}, "must ascend"),
    ({"indices": [[0, -2], [1, 2]]}, "must lie in 0..2"),
    ({"indices": [[0, 2**40], [1, 2]]}, "must lie in 0..2"),
    ({"indices": [[0.0, 1.0], [1.0, 2.0]]}, "must be integers"),
    ({"indices": [[0, 1]]}, "must have the shapes"),
    ({"active": [1, 5]}, "`active` must ascend"),
    ({"active": [4, 1]}, "`active` must ascend"),
    ({"active": [1]}, "must have the shapes"),
    ({"values": np.ones((2, 2))}, "must be float32 or bfloat16"),
    ({"in_features": 1}, "fan-in is larger"),
    ({"out_features": 1}, "more active neurons"),
    ({"out_features": -1}, "must lie in"),
  ),
)
def test_pack_refuses_what_is_not_a_layer(change, message):
  arguments = {
    "values": np.ones((2, 2), np.float32), "indices": [[0, 3], [1, 2]], "active": [1, 4],
    "in_features": 5, "out_features": 5,
  }  # fmt: skip
  products.pack(**arguments)
  with pytest.raises(ValueError, match=message):
    products.pack(**(arguments | change))


@pytest.mark.parametrize(
  "arguments, message",
  (
    ({"x": np.ones((2, 47), np.float32)}, "must have shape"),
    ({"x": np.float32(1)}, "must have shape"),
    ({"x": np.ones((2, 48), np.int32)}, "must be float32 or bfloat16"),
    ({"bias": np.ones(39, np.float32)}, "`bias` must have shape"),
    ({"activation": "tanh"}, "must be one of"),
  ),
)
def test_matmul_refuses_wrong_arguments(case, arguments, message):
  with pytest.raises(ValueError, match=message):
    products.matmul(**({"x": np.ones((2, 48), np.float32), "packed": case[0]} | arguments))


@pytest.mark.parametrize("batch", (3, 40))
@pytest.mark.parametrize(
  "change",
  (
    lambda p: {"tile_pattern": p.tile_pattern[:-1], "window_pattern": p.window_pattern[:-1]},
    lambda p: {"tile_pattern": p.tile_pattern[:8], "window_pattern": p.window_pattern[:8]},
    lambda p: {"tile_pattern": p.window_pattern, "window_pattern": p.tile_pattern},
    lambda p: {f: getattr(p, f).at[:64].set(255) for f in ("tile_pattern", "window_pattern")},
    lambda p: {"tile_values": p.tile_values[:-1], "window_values": p.window_values[:-1]},
    lambda p: {"tile_values": p.tile_values.astype(jnp.int32)},
    lambda p: {"in_features": 47},
    lambda p: {"out_features": 41},
  ),
)
def test_the_handler_refuses_a_layer_that_does_not_fit_together(case, change, batch):
  packed = dataclasses.replace(case[0], **change(case[0]))
  x = np.ones((batch, packed.in_features), np.float32)
  with pytest.raises(jax.errors.JaxRuntimeError, match="INVALID_ARGUMENT"):
    products.matmul(x, packed).block_until_ready()


def test_the_environment_forces_a_target_or_hides_the_library():
  def run(code, **environment):
    return subprocess.run(
      [sys.executable, "-c", code], env=os.environ | environment, capture_output=True, text=True,
      check=True,
    )  # fmt: skip

  imports = "from srigl_kernels.backends.cpu import library; "
  show = f"{imports}print(library.isa())"
  assert run(show, SRIGL_ISA="generic").stdout == "generic\n"
  unknown = run(show, SRIGL_ISA="avx1024")
  assert unknown.stdout == f"{targets()[-1]}\n"
  assert "SRIGL_ISA=avx1024" in unknown.stderr
  hidden = run(f"{imports}print(library.why_unavailable())", SRIGL_KERNELS_LIB="/no")
  assert hidden.stdout == "libsrigl_cpu.so is not installed\n"
