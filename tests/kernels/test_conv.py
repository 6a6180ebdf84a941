"""Sparse convolutions: every backend against float64, and against Flax for what names mean."""

import dataclasses
import functools
from typing import NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from srigl_kernels import BACKENDS, condensed_conv, condensed_matmul, make_condensed, prepare
from srigl_kernels.backends import xla
from tests.kernels import reference
from tests.kernels.conv_reference import Conv
from tests.kernels.cpu_targets import targets


class Problem(NamedTuple):
  shape: tuple[int, ...]  # of x
  kernel: tuple[int, ...]  # its size
  neurons: int
  active: int
  fan_in: int
  padding: tuple[tuple[int, int], ...]
  strides: int | tuple[int, ...] = 1
  input_dilation: int | tuple[int, ...] = 1
  kernel_dilation: int | tuple[int, ...] = 1
  groups: int = 1


ONE = ((1, 1), (1, 1))
NONE = ((0, 0), (0, 0))
PROBLEMS = {
  "plain": Problem((2, 9, 8, 5), (3, 3), 7, 6, 9, ONE),
  "stride": Problem((3, 8, 16, 20), (3, 3), 70, 65, 20, ONE, strides=2),
  "small_image": Problem((5, 4, 4, 64), (3, 3), 33, 33, 50, ONE),
  "wide_image": Problem((1, 6, 50, 3), (3, 3), 8, 8, 5, ONE),
  "uneven": Problem(
    (2, 20, 11, 6), (5, 2), 12, 10, 9, ((3, -1), (2, 0)), strides=(2, 3), kernel_dilation=(2, 1)
  ),
  "groups": Problem((2, 7, 6, 12), (3, 3), 10, 8, 6, ONE, strides=(1, 2), groups=2),
  "depthwise": Problem((2, 7, 6, 8), (3, 3), 16, 13, 4, ONE, groups=8),
  "input_dilation": Problem((2, 4, 5, 3), (3, 3), 6, 6, 4, ONE, input_dilation=2),
  "transposed": Problem((2, 4, 5, 3), (3, 2), 6, 5, 4, ((2, -1), (1, 2)), input_dilation=(2, 3)),
  "transposed_line": Problem(
    (2, 7, 4), (5,), 8, 7, 6, ((0, 3),), input_dilation=3, kernel_dilation=2
  ),
  "pointwise": Problem((2, 5, 7, 9), (1, 1), 6, 5, 4, NONE),
  "pointwise_stride": Problem((2, 5, 7, 9), (1, 1), 6, 6, 4, NONE, strides=2),
  "line": Problem((2, 30, 4), (5,), 8, 7, 6, ((4, 0),), kernel_dilation=2),
  "volume": Problem((2, 4, 5, 6, 3), (2, 3, 2), 6, 5, 9, (*ONE, (0, 1)), strides=(1, 2, 1)),
  "kernel_too_large": Problem((2, 2, 2, 5), (3, 3), 7, 6, 9, NONE),
  "empty_batch": Problem((0, 9, 9, 5), (3, 3), 7, 6, 9, ONE),
  "none_active": Problem((2, 5, 5, 3), (3, 3), 4, 0, 0, ONE),
}
SMALL = ("plain", "stride", "groups", "line")


def make(problem, seed=0, dtype=jnp.float32):
  """x and a random layer."""
  rng = np.random.default_rng(seed)
  channels = problem.shape[-1] // problem.groups
  num_inputs = int(np.prod(problem.kernel)) * channels
  order = rng.random((problem.active, num_inputs)).argsort(1)[:, : problem.fan_in]
  condensed = make_condensed(
    jnp.asarray(rng.normal(size=order.shape), dtype),
    np.sort(order, 1),
    np.sort(rng.permutation(problem.neurons)[: problem.active]),
    jnp.asarray(rng.normal(size=problem.neurons), jnp.float32),
    kernel_shape=(*problem.kernel, channels, problem.neurons),
  )
  return jnp.asarray(rng.normal(size=problem.shape), jnp.float32), condensed


def options(problem):
  return {
    "strides": problem.strides,
    "padding": problem.padding,
    "input_dilation": problem.input_dilation,
    "kernel_dilation": problem.kernel_dilation,
    "feature_group_count": problem.groups,
  }


def expected_conv(problem, condensed):
  kwargs = options(problem)
  return Conv(condensed, groups=kwargs.pop("feature_group_count"), **kwargs)


def check(problem, backend, *, activation=None, seed=0):
  x, condensed = make(problem, seed)
  spacing = problem.input_dilation if problem.strides == 1 else 1
  layer = prepare(
    condensed,
    backend=backend,
    feature_group_count=problem.groups,
    input_dilation=spacing,
    kernel_dilation=problem.kernel_dilation,
  )
  run = functools.partial(condensed_conv, activation=activation, **options(problem))
  y = jax.jit(run)(x, layer)
  z = expected_conv(problem, condensed)(x, condensed.bias)
  assert y.shape == z.shape and y.dtype == x.dtype
  reference.assert_close(y, reference.activate(z, activation)[0], condensed.fan_in)


@pytest.fixture(params=[name for name in BACKENDS if name != "grouped"])
def backend(request):
  if not BACKENDS[request.param].is_available():
    pytest.skip(f"backend {request.param} cannot run here")
  return request.param


@pytest.mark.parametrize(
  ("backend", "name"),
  [(b, n) for b in BACKENDS if b != "grouped" for n in (SMALL if b == "dense" else PROBLEMS)],
  indirect=["backend"],
)
def test_convolution(backend, name):
  check(PROBLEMS[name], backend, activation="gelu" if name in SMALL else "relu")


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_target(isa, name):
  check(PROBLEMS[name], "cpu")


@st.composite
def problems(draw):
  number = lambda low, high: draw(st.integers(low, high))
  rank = number(1, 2)
  sizes = tuple(number(1, 20) for _ in range(rank))
  kernel = tuple(number(1, 4) for _ in range(rank))
  groups, per_group = number(1, 3), number(1, 20)
  neurons = groups * number(1, 30)
  inputs = int(np.prod(kernel)) * per_group
  return Problem(
    (number(0, 4), *sizes, groups * per_group),
    kernel,
    neurons,
    number(1, neurons),
    number(1, inputs),
    tuple((number(-1, 3), number(-1, 3)) for _ in range(rank)),
    tuple(number(1, 3) for _ in range(rank)),
    number(1, 2),
    tuple(number(1, 2) for _ in range(rank)),
    groups,
  )


@pytest.mark.skipif(not targets(), reason="needs the native kernels")
@hypothesis.settings(max_examples=15)
@hypothesis.given(problem=problems())
def test_any_geometry_on_the_native_kernels(problem):
  check(problem, "cpu")


@hypothesis.settings(max_examples=5)
@hypothesis.given(problem=problems(), name=st.sampled_from(("xla", "dense", "structured")))
def test_any_geometry_on_xla(problem, name):
  check(problem, name)


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "VALID", "CIRCULAR", (2, (0, 1))])
def test_padding_is_that_of_flax(padding):
  x, condensed = make(PROBLEMS["plain"])
  y = condensed_conv(x, condensed, strides=(2, 3), padding=padding)
  compare_with_flax(y, x, condensed, strides=(2, 3), padding=padding)


def test_causal_padding_is_that_of_flax():
  x, condensed = make(PROBLEMS["line"])
  y = condensed_conv(x, condensed, padding="CAUSAL", kernel_dilation=3)
  compare_with_flax(y, x, condensed, padding="CAUSAL", kernel_dilation=3)


def compare_with_flax(y, x, condensed, **kwargs):
  nnx = pytest.importorskip("flax.nnx")
  conv = nnx.Conv(
    x.shape[-1], condensed.out_features, condensed.kernel_shape[:-2], rngs=nnx.Rngs(0), **kwargs
  )
  matrix = reference.dense_matrix(condensed).reshape(condensed.kernel_shape)
  conv.kernel[...], conv.bias[...] = jnp.asarray(matrix, jnp.float32), condensed.bias
  np.testing.assert_allclose(y, conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_gradients(backend, name):
  problem = PROBLEMS[name]._replace(padding=tuple((1, 1) for _ in PROBLEMS[name].kernel))
  x, condensed = make(problem)
  layer = prepare(condensed, backend=backend, feature_group_count=problem.groups)
  expected = expected_conv(problem, condensed)
  z = expected(x, condensed.bias)
  g = np.random.default_rng(1).normal(size=z.shape).astype(np.float32)

  @jax.jit
  def loss(x, values, bias):
    new = dataclasses.replace(condensed, values=values, bias=bias)
    new = dataclasses.replace(layer, condensed=new)
    return (g * condensed_conv(x, new, activation="gelu", **options(problem))).sum()

  actual = jax.grad(loss, (0, 1, 2))(x, condensed.values, condensed.bias)
  want = expected.gradients(x, g * reference.activate(z, "gelu")[1])
  for got, wanted, num_terms in zip(
    actual, want, (100, z[..., 0].size, z[..., 0].size), strict=True
  ):
    assert got.shape == wanted.shape
    reference.assert_close(got, wanted, num_terms)


@pytest.mark.parametrize("gradients", [False, True])
def test_gradients_of_a_transposed_convolution(gradients):
  """Of the layer's own values and bias, not of those that its phases hold."""
  problem = PROBLEMS["transposed"]._replace(padding=((2, 1), (1, 2)))
  x, condensed = make(problem)
  layer = prepare(condensed, backend="xla", gradients=gradients, input_dilation=(2, 3))
  floats = [leaf for leaf in jax.tree.leaves(layer) if leaf.dtype == jnp.float32]
  assert not gradients or len(floats) == 2
  expected = expected_conv(problem, condensed)
  g = np.random.default_rng(1).normal(size=expected(x).shape).astype(np.float32)

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1, 2))
  def gradient(x, values, bias):
    new = dataclasses.replace(condensed, values=values, bias=bias)
    new = dataclasses.replace(layer, condensed=new)
    return (g * condensed_conv(x, new, **options(problem))).sum()

  actual = gradient(x, condensed.values, condensed.bias)
  for got, wanted in zip(actual, expected.gradients(x, g), strict=True):
    reference.assert_close(got, wanted, 100)


def test_a_transposed_convolution_reads_no_zeros():
  """Concrete or prepared it convolves the image as it is: stride and window of 2 are a product."""
  problem = Problem((2, 8, 8, 4), (2, 2), 6, 6, 5, ONE, input_dilation=2)
  x, condensed = make(problem)
  prepared = prepare(condensed, backend="dense", input_dilation=2)
  for layer, backend in ((prepared, "auto"), (condensed, "dense")):
    run = lambda x: condensed_conv(x, layer, backend=backend, **options(problem))  # noqa: B023
    text = str(jax.make_jaxpr(run)(x))
    assert "conv_general_dilated" not in text and "dot_general" in text
    want = expected_conv(problem, condensed)(x, condensed.bias)
    reference.assert_close(run(x), want, condensed.fan_in)
  with pytest.raises(ValueError, match="prepared for a transposed convolution"):
    condensed_matmul(jnp.ones((1, 16)), prepared)


@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_types(backend, dtype, x_dtype):
  x, condensed = make(PROBLEMS["plain"], dtype=dtype)
  x, layer = x.astype(x_dtype), prepare(condensed, backend=backend)
  run = functools.partial(condensed_conv, layer=layer, padding=1, activation="relu")
  y, pull = jax.vjp(run, x)
  assert y.dtype == x_dtype and pull(y)[0].dtype == x_dtype
  z = expected_conv(PROBLEMS["plain"], condensed)(x, condensed.bias)
  reference.assert_close(y, np.maximum(z, 0), condensed.fan_in)


@pytest.mark.parametrize("leading", [(), (2, 1, 3)])
@pytest.mark.parametrize("backend", ["xla", "cpu"], indirect=True)
def test_any_leading_axes(backend, leading):
  problem = PROBLEMS["plain"]
  _, condensed = make(problem)
  x = jax.random.normal(jax.random.key(0), (*leading, *problem.shape[1:]))
  y = condensed_conv(x, prepare(condensed, backend=backend), padding=1)
  want = expected_conv(problem, condensed)(x.reshape(-1, *problem.shape[1:]), condensed.bias)
  reference.assert_close(y, want.reshape(*leading, *want.shape[1:]), condensed.fan_in)


def test_vmap_scan_and_layers(backend):
  problem = PROBLEMS["plain"]
  x, condensed = make(problem)
  layer = prepare(condensed, backend=backend)
  run = functools.partial(condensed_conv, padding=1)
  want = expected_conv(problem, condensed)(x, condensed.bias)
  close = functools.partial(reference.assert_close, expected=want, num_terms=condensed.fan_in)
  close(jax.jit(jax.vmap(run, in_axes=(0, None)))(x, layer))
  close(jax.lax.scan(lambda carry, image: (carry, run(image, layer)), 0, x)[1])
  stacked = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), layer)
  for y in jax.jit(jax.vmap(run, in_axes=(None, 0)))(x, stacked):
    close(y)


@pytest.mark.skipif(not targets(), reason="needs the native kernels")
def test_vmap_of_images_is_one_native_call():
  x, condensed = make(PROBLEMS["plain"])
  layer = prepare(condensed, backend="cpu")
  run = jax.jit(jax.vmap(lambda x: condensed_conv(x, layer, padding=1)))
  text = run.lower(x).as_text()
  assert text.count("custom_call @srigl_condensed_conv") == 1 and "while" not in text


def test_tiles_with_a_remainder(monkeypatch):
  monkeypatch.setattr(xla, "TEMPORARY_BYTES", 4 * 2 * 8 * 4 * 45 * 3 + 10_000)
  jax.clear_caches()
  check(PROBLEMS["plain"], "xla")
  jax.clear_caches()


def test_memory_of_the_portable_backend_is_bounded():
  problem = Problem((64, 64, 64, 64), (3, 3), 64, 64, 58, ONE)
  _, condensed = make(problem)
  x = jax.ShapeDtypeStruct(problem.shape, jnp.float32)
  run = functools.partial(condensed_conv, padding=1, backend="xla", activation="relu")
  used = jax.jit(run).lower(x, condensed).compile().memory_analysis().temp_size_in_bytes
  assert used <= xla.TEMPORARY_BYTES


@pytest.mark.parametrize("prepared_for", [1, 2])
def test_a_layer_prepared_for_other_groups_runs_on_xla(prepared_for):
  """Its native layout would be another layer's."""
  problem = PROBLEMS["groups"]._replace(groups=3 - prepared_for, shape=(2, 7, 6, 12))
  x, condensed = make(problem)
  layer = prepare(condensed, feature_group_count=prepared_for)
  y = jax.jit(lambda x, layer: condensed_conv(x, layer, **options(problem)))(x, layer)
  want = expected_conv(problem, condensed)(x, condensed.bias)
  reference.assert_close(y, want, condensed.fan_in)


def test_wrong_arguments():
  x, condensed = make(PROBLEMS["plain"])
  matrix = make_condensed(jnp.ones((4, 2)), [[0, 1]] * 4, range(4), kernel_shape=(5, 4))
  for changes, message in (
    ({"x": x[..., 1:]}, r"2 spatial axes and 5 channels.*\(2, 9, 8, 4\)"),
    ({"x": x[0, 0]}, "2 spatial axes and 5 channels"),
    ({"x": x.astype(jnp.float16)}, "`x` must be float32 or bfloat16, not float16"),
    ({"layer": matrix}, "must be a convolution.*condensed_matmul"),
    ({"strides": 0}, "`strides` must be an integer of at least 1"),
    ({"strides": (1, 1, 1)}, "each of the 2 spatial axes"),
    ({"kernel_dilation": 1.5}, "`kernel_dilation` must be"),
    ({"input_dilation": -1}, "`input_dilation` must be"),
    ({"input_dilation": 2}, "'SAME' has no meaning with an `input_dilation`"),
    ({"padding": "HALF"}, "`padding` must be one of"),
    ({"padding": "CAUSAL"}, "CAUSAL with one spatial axis only"),
    ({"padding": ((1, 1),)}, "`padding` must be one of"),
    ({"padding": ((1, 1), (1, 1, 1))}, "`padding` must be one of"),
    ({"feature_group_count": 2}, "divisor of the 7 neurons, not 2"),
    ({"feature_group_count": 0}, "divisor of the 7 neurons, not 0"),
    ({"feature_group_count": 7}, "35 channels"),
    ({"backend": "gpu"}, "`backend` must be 'auto' or one of"),
    ({"activation": "tanh"}, "`activation` must be one of"),
  ):
    kwargs = {"x": x, "layer": condensed, **changes}
    with pytest.raises(ValueError, match=message):
      condensed_conv(kwargs.pop("x"), kwargs.pop("layer"), **kwargs)
  with pytest.raises(ValueError, match="divisor of the 7 neurons"):
    prepare(condensed, feature_group_count=2)
