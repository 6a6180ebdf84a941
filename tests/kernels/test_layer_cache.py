"""A layer that nobody prepared: prepared once if it is concrete, a warning if it is traced."""

import dataclasses
import functools
import gc
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import (
  BACKENDS,
  auto,
  choose_backend,
  condensed_conv,
  condensed_matmul,
  layer_cache,
  make_condensed,
  prepare,
)
from srigl_kernels.problems import PROBLEMS, make_problem
from tests.kernels import reference

SMALL = PROBLEMS["odd_sizes"]


@pytest.fixture(autouse=True)
def warn_again():
  auto.warn_of_unprepared_layer.cache_clear()


@pytest.fixture
def packed(monkeypatch):
  """Names of the backends that made a layout, in order."""
  names = []
  for name, backend in BACKENDS.items():

    def pack(condensed, name=name, backend=backend):
      names.append(name)
      return backend.pack(condensed)

    monkeypatch.setitem(BACKENDS, name, backend._replace(pack=pack))
  return names


def unprepared_warnings(caught):
  return [str(w.message) for w in caught if "prepare(condensed)" in str(w.message)]


def test_it_is_prepared_once(packed):
  x, condensed = make_problem(SMALL)
  expected = reference.matmul(x, condensed, "relu")
  run = functools.partial(condensed_matmul, activation="relu")
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for y in (
      run(x, condensed),  # eagerly
      jax.jit(lambda x: run(x, condensed))(x),  # as a constant
      jax.jit(lambda x: run(2 * x, condensed))(x / 2),  # of another function
      jax.vmap(run, in_axes=(0, None))(x, condensed),
      run(x, jax.tree.map(lambda a: a, condensed)),  # taken apart and put together
      run(x, dataclasses.replace(condensed, bias=condensed.bias + 0)),
      jax.lax.scan(lambda carry, row: (carry, run(row, condensed)), 0, x)[1],
    ):
      reference.assert_close(y, expected, condensed.fan_in)
  chosen = {choose_backend(condensed, rows)[0] for rows in (15, 1)}  # the scan's calls have one
  assert sorted(packed) == sorted(chosen)
  assert not unprepared_warnings(caught)


def test_it_runs_as_if_it_were_prepared():
  x, condensed = make_problem(PROBLEMS["vit_ffn_up"])
  name, reason = choose_backend(condensed, 4)
  assert name == choose_backend(prepare(condensed), 4)[0] and "made once" in reason
  y = jax.jit(lambda x: condensed_matmul(x, condensed))(x)
  np.testing.assert_array_equal(y, condensed_matmul(x, prepare(condensed, backend=name)))


def test_a_named_backend_is_kept_too(packed):
  x, condensed = make_problem(SMALL)
  for _ in range(2):
    condensed_matmul(x, condensed, backend="dense")
    condensed_matmul(x, condensed, backend="xla")
  assert packed == ["dense", "xla"]


def test_layers_that_share_values_are_told_apart():
  x, condensed = make_problem(SMALL)
  indices = np.sort((np.asarray(condensed.indices, int) + 1) % condensed.in_features, 1)
  other = dataclasses.replace(condensed, indices=jnp.asarray(indices, condensed.indices.dtype))
  for layer in (condensed, other, condensed):
    reference.assert_close(condensed_matmul(x, layer), reference.matmul(x, layer), layer.fan_in)


def test_gradients():
  x, condensed = make_problem(SMALL)
  g = np.ones((*x.shape[:-1], condensed.out_features))
  dx, dvalues, dbias = reference.gradients(x, condensed, g)
  loss = lambda x, layer: condensed_matmul(x, layer).sum()
  reference.assert_close(jax.grad(loss)(x, condensed), dx, condensed.num_active)

  def of_weights(values, bias):
    return loss(x, dataclasses.replace(condensed, values=values, bias=bias))

  for transform in (lambda f: f, jax.jit):
    found = transform(jax.grad(of_weights, (0, 1)))(condensed.values, condensed.bias)
    reference.assert_close(found[0], dvalues, 15)
    reference.assert_close(found[1], dbias, 15)


def test_a_traced_layer_warns_once():
  x, condensed = make_problem(SMALL)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for factor in range(3):
      y = jax.jit(lambda x, layer, factor=factor: condensed_matmul(x, layer) * factor)(x, condensed)
  reference.assert_close(y, 2 * reference.matmul(x, condensed), condensed.fan_in)
  (message,) = unprepared_warnings(caught)
  assert "outside of jit" in message and "gradients=True" in message


def test_a_prepared_layer_and_a_named_backend_do_not_warn():
  x, condensed = make_problem(SMALL)
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    jax.jit(condensed_matmul)(x, prepare(condensed))
    jax.jit(lambda x, layer: condensed_matmul(x, layer, backend="xla"))(x, condensed)
  assert not unprepared_warnings(caught)


@pytest.mark.parametrize("backend", ["auto", "reference", "xla", "structured"])
def test_memory_is_released_with_the_layer(backend):
  gc.collect()
  before = len(layer_cache._ENTRIES)
  x, condensed = make_problem(SMALL)
  layouts = lambda: [e.made for e in layer_cache._ENTRIES.values()][before:]
  condensed_matmul(x, condensed, backend=backend)
  assert len(layer_cache._ENTRIES) == before + 1
  assert any(layouts()) == (backend != "reference")  # its layout is the layer
  del condensed
  gc.collect()
  assert len(layer_cache._ENTRIES) == before


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_is_prepared_once(packed, groups):
  rng = np.random.default_rng(0)
  condensed = make_condensed(
    rng.normal(size=(3, 5)).astype(np.float32),
    np.sort(rng.random((3, 18)).argsort(1)[:, :5], 1),
    [0, 2, 3],
    kernel_shape=(3, 3, 2, 4),
  )
  x = jnp.asarray(rng.normal(size=(2, 8, 8, 2 * groups)), jnp.float32)
  run = functools.partial(condensed_conv, feature_group_count=groups)
  expected = run(x, prepare(condensed, backend="dense", feature_group_count=groups))
  packed.clear()
  for y in (run(x, condensed), jax.jit(lambda x: run(x, condensed))(x)):
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
  assert len(packed) == 1
