"""Attention in fused programs: found however it is written, the same, with the same derivative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import srigl_jax as sx
from srigl_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)


def normal(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def is_native(function, *args):
  text = str(jax.make_jaxpr(sx.fuse(function))(*args))
  return "srigl_attention" in text and "dot_general" not in text


def definition(q, k, v, mask=None, scale=None, fill=-np.inf):
  """In float64, of `[B, T, H, D]`."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  scores = np.einsum("bqhd,bkhd->bhqk", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
  scores = scores if mask is None else np.where(mask, scores, fill)
  powers = np.exp(scores - scores.max(-1, keepdims=True))
  return np.einsum("bhqk,bkhd->bqhd", powers / powers.sum(-1, keepdims=True), v)


def by_hand(q, k, v):
  weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 2.0, axis=-1)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v)


def keys_first(q, k, v):
  """Scores with the keys before the queries, and a softmax that is written out."""
  scores = 0.5 * jnp.einsum("bkhd,bqhd->hbkq", k, q)
  powers = jnp.exp(scores - scores.max(2, keepdims=True))
  return jnp.einsum("bkhd,hbkq->bqhd", v, powers / powers.sum(2, keepdims=True))


def masked(seen):
  """Of values of any width; where all is masked, all counts the same."""

  def attend(q, k, v):
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    scores = scores if seen is None else jnp.where(seen, scores, -1e30)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)

  return attend


WAYS = {
  "nnx": nnx.dot_product_attention,
  "jax": jax.nn.dot_product_attention,
  "causal": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True),
  "einsum": by_hand,
  "keys first": keys_first,
  "vmap": jax.vmap(lambda q, k, v: nnx.dot_product_attention(q, k, v)),
}


@pytest.mark.parametrize("name", WAYS)
def test_attention_is_found_and_the_same(name):
  q, k, v = normal(2, 7, 3, 4), normal(2, 7, 3, 4, seed=1), normal(2, 7, 3, 4, seed=2)
  way = WAYS[name]
  assert is_native(way, q, k, v)
  mask = np.tri(7, dtype=bool) if name == "causal" else None
  got = jax.jit(sx.fuse(way))(q, k, v)
  np.testing.assert_allclose(got, definition(q, k, v, mask), rtol=1e-5, atol=1e-6)
  loss = lambda f: lambda *args: (f(*args) ** 2).sum()
  gradients = [jax.grad(loss(f), (0, 1, 2))(q, k, v) for f in (way, jax.jit(sx.fuse(way)))]
  for a, b in zip(*gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
  stacked = [jnp.stack([x, 2 * x]) for x in (q, k, v)]
  twice = jax.jit(jax.vmap(sx.fuse(way)))(*stacked)
  np.testing.assert_allclose(twice[0], got, rtol=1e-6, atol=1e-7)
  np.testing.assert_allclose(twice[1], way(*(x[1] for x in stacked)), rtol=1e-5, atol=1e-6)


def test_vmap_makes_one_call_while_there_are_axes():
  q, k, v = normal(2, 3, 5, 2, 4), normal(2, 6, 2, 4, seed=1), normal(3, 6, 2, 4, seed=2)
  seen = jnp.asarray(np.random.default_rng(0).random((5, 6)) < 0.7).at[:, 0].set(True)
  attend = lambda q, k, v: masked(seen)(q[None], k[None], v[None])[0]
  over = lambda f: jax.vmap(jax.vmap(f, (0, None, 0)), (0, 0, None))
  native = over(sx.fuse(attend))
  np.testing.assert_allclose(jax.jit(native)(q, k, v), over(attend)(q, k, v), rtol=1e-5, atol=1e-6)
  assert "scan" not in str(jax.make_jaxpr(native)(q, k, v))
  more = lambda f: jax.vmap(jax.vmap(over(f), (0, None, None)), (None, 0, None))
  args = jnp.stack([q, 2 * q]), jnp.stack([k, -k]), v
  got, want = jax.jit(more(sx.fuse(attend)))(*args), more(attend)(*args)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert "scan" in str(jax.make_jaxpr(more(sx.fuse(attend)))(*args))


@settings(deadline=None, max_examples=20)
@given(
  st.tuples(*map(st.integers, (1, 1, 2, 1, 2), (3, 70, 70, 3, 40))),
  st.integers(2, 40),
  st.sampled_from(["none", "all", "queries", "heads", "keys"]),
  st.integers(0, 2**20),
)
def test_any_sizes_and_masks(sizes, width, mask, seed):
  b, t, s, h, d = sizes
  q, k, v = normal(b, t, h, d, seed=seed), normal(b, s, h, d, seed=1), normal(b, s, h, width)
  shape = {"all": (b, h, t, s), "queries": (1, 1, t, s), "heads": (b, h, 1, s)}
  shape = shape.get(mask, (1, 1, 1, s))
  seen = None
  if mask != "none":
    seen = jnp.asarray(np.random.default_rng(seed).random(shape) < 0.7)
  attend = masked(seen)
  assert is_native(attend, q, k, v)
  got = jax.jit(sx.fuse(attend))(q, k, v)
  want = definition(q, k, v, seen, fill=-1e30)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("keys", [512, 513, 1500])
def test_many_keys_are_taken_in_chunks(keys):
  q, k, v = 6 * normal(1, 300, 2, 24), normal(1, keys, 2, 24, seed=1), normal(1, keys, 2, 40)
  got = jax.jit(sx.fuse(masked(None)))(q, k, v)
  np.testing.assert_allclose(got, definition(q, k, v), rtol=1e-4, atol=1e-5)


def test_each_target_computes_it():
  q, k, v = normal(2, 21, 2, 19), normal(2, 37, 2, 19, seed=1), normal(2, 37, 2, 23)
  seen = jnp.asarray(np.random.default_rng(0).random((2, 1, 21, 37)) < 0.5)
  before = library.isa()
  try:
    for isa in ("generic", "avx2", "avx512"):
      try:
        library.set_isa(isa)
      except ValueError:
        continue
      attend = jax.jit(sx.fuse(masked(seen)))
      np.testing.assert_allclose(attend(q, k, v), definition(q, k, v, seen), rtol=1e-5, atol=1e-6)
  finally:
    library.set_isa(before)


def test_nan_and_inf_reach_the_queries_that_see_them():
  q, k, v = (np.array(normal(1, 5, 1, 8, seed=i)) for i in range(3))
  q[0, 1, 0, 0], v[0, 2, 0, 3] = np.nan, np.inf
  attend = jax.nn.dot_product_attention
  got, want = jax.jit(sx.fuse(attend))(q, k, v), attend(q, k, v)
  np.testing.assert_array_equal(np.isfinite(got), np.isfinite(want))
  hidden = lambda q, k, v: by_hand(q, k, jnp.where(jnp.arange(8) < 9, v, 0))
  k[0, 0] = np.inf  # infinity minus infinity
  np.testing.assert_array_equal(
    np.isnan(jax.jit(sx.fuse(hidden))(q, k, v)), np.isnan(hidden(q, k, v))
  )


def test_the_batch_may_be_left_open():
  (n,) = jax.export.symbolic_shape("n")
  argument = jax.ShapeDtypeStruct((n, 9, 2, 4), jnp.float32)
  attend = jax.jit(sx.fuse(lambda x: nnx.dot_product_attention(x, x, x)))
  checks = [jax.export.DisabledSafetyCheck.custom_call("srigl_attention")]
  exported = jax.export.export(attend, disabled_checks=checks)(argument)
  assert "srigl_attention" in exported.mlir_module()
  x = normal(3, 9, 2, 4)
  np.testing.assert_allclose(exported.call(x), definition(x, x, x), rtol=1e-5, atol=1e-6)


def with_weights(q, k, v):
  scores = jnp.einsum("bqhd,bkhd->bhqk", q, k)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum("bhqk,bkhd->bqhd", weights, v), weights


OTHERS = {
  "weights are returned": with_weights,
  "bias": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, bias=normal(1, 2, 6, 6)),
  "grouped": lambda q, k, v: jax.nn.dot_product_attention(q, k[:, :, :1], v[:, :, :1]),
  "over queries": lambda q, k, v: jnp.einsum(
    "bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=2), v
  ),
  "over heads": lambda q, k, v: jnp.einsum(
    "bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), axis=1), v
  ),
  "other sums": lambda q, k, v: (
    jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k)), k + v)
    + jnp.exp(jnp.einsum("bqhd,bkhd->bhqk", q, k)).sum()
  ),
  "bfloat16": lambda q, k, v: nnx.dot_product_attention(
    *(x.astype(jnp.bfloat16) for x in (q, k, v))
  ),
  "wide": lambda q, k, v: nnx.dot_product_attention(*(jnp.tile(x, 70) for x in (q, k, v))),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_attention_is_the_same_too(name):
  q, k, v = normal(2, 6, 2, 4), normal(2, 6, 2, 4, seed=1), normal(2, 6, 2, 4, seed=2)
  got, want = jax.jit(sx.fuse(OTHERS[name]))(q, k, v), OTHERS[name](q, k, v)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=2e-2, atol=2e-5)
  assert not is_native(OTHERS[name], q, k, v)


@pytest.mark.parametrize("backend", ["cpu", "xla", "dense"])
def test_models_of_other_backends_stay_portable(backend):
  kernel = normal(8, 8)
  layer = sx.prepare(sx.condense(kernel, np.ones((8, 8), bool)), backend=backend)

  def network(x):
    q = sx.condensed_matmul(x, layer).reshape(2, 5, 2, 4)
    return jax.nn.dot_product_attention(q, q, q)

  x = normal(2, 5, 8)
  text = str(jax.make_jaxpr(sx.fuse(network))(x))
  assert ("srigl_attention" in text) == (backend == "cpu")
  np.testing.assert_allclose(jax.jit(sx.fuse(network))(x), network(x), rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused():
  from srigl_kernels.backends.cpu.attention import Layout, attention

  x = normal(2, 5, 3, 4)
  axes = (0, 2, 1)
  good = Layout(axes, axes, axes, (), axes)
  attention(x, x, x, None, layout=good, shape=x.shape)
  wrong = [
    good._replace(q=(0, 1, 1)),
    good._replace(k=(0, 2, -1)),
    good._replace(v=(0, 1, 2)),
    good._replace(out=(0, -1, 1)),
    good._replace(q=(0, 2, 9)),
    good._replace(q=(0, 2)),
  ]
  for layout in wrong:
    with pytest.raises(Exception, match="do not fit each other"):
      attention(x, x, x, None, layout=layout, shape=x.shape)


def with_cache(q, cache_k, cache_v, k, v, layer, mask=None):
  """Attention to a layer's part of a cache `[layers, B, T, H, D]` and to what is new."""
  k, v = (
    jnp.concatenate([cache if layer is None else cache[layer], new], 1)
    for cache, new in ((cache_k, k), (cache_v, v))
  )
  return jax.nn.dot_product_attention(q, k, v, mask=mask)


@pytest.mark.parametrize("layer", [0, 2, -1, None])
@pytest.mark.parametrize(("past", "new"), [(7, 1), (40, 5), (1, 17)])
@pytest.mark.parametrize("is_masked", [False, True])
def test_a_cache_and_what_is_new_are_not_put_together(layer, past, new, is_masked):
  head = (3,) if layer is not None else ()
  caches = [normal(*head, 2, past, 4, 8, seed=seed) for seed in (1, 2)]
  q, k, v = (normal(2, new, 4, 8, seed=seed) for seed in (3, 4, 5))
  mask = jnp.tri(new, past + new, past, dtype=bool)[None, None] if is_masked else None
  function = lambda *arrays: with_cache(*arrays, layer, mask)
  arrays = (q, *caches, k, v)
  text = str(jax.make_jaxpr(sx.fuse(function))(*arrays))
  assert "srigl_attention" in text
  assert not any(f" {name}[" in text for name in ("concatenate", "slice", "squeeze"))
  keys, values = (
    np.concatenate([c if layer is None else c[layer], x], 1)
    for c, x in zip(caches, (k, v), strict=True)
  )
  fused = jax.jit(sx.fuse(function))
  want = definition(q, keys, values, mask)
  np.testing.assert_allclose(fused(*arrays), want, rtol=1e-5, atol=1e-5)
  loss = lambda f: lambda *arrays: (f(*arrays) ** 2).sum()
  places = tuple(range(len(arrays)))
  for got, exact in zip(
    jax.grad(loss(fused), places)(*arrays), jax.grad(loss(function), places)(*arrays), strict=True
  ):
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
  mapped = jax.jit(jax.vmap(fused, in_axes=(0, None, None, None, None)))
  several = jnp.stack([q, -q])
  np.testing.assert_allclose(mapped(several, *arrays[1:])[0], want, rtol=1e-5, atol=1e-5)


def test_keys_that_are_read_elsewhere_are_put_together():
  caches = [normal(3, 2, 7, 4, 8, seed=seed) for seed in (1, 2)]
  q, k, v = (normal(2, 1, 4, 8, seed=seed) for seed in (3, 4, 5))

  def function(q, cache_k, cache_v, k, v):
    keys = jnp.concatenate([cache_k[1], k], 1)
    values = jnp.concatenate([cache_v[1], v], 1)
    return jax.nn.dot_product_attention(q, keys, values), keys

  for got, want in zip(
    jax.jit(sx.fuse(function))(q, *caches, k, v), function(q, *caches, k, v), strict=True
  ):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_keys_and_values_may_be_parted_differently():
  q, *parts = (normal(2, n, 4, 8, seed=n) for n in (3, 7, 1, 2, 6))

  def function(q, k, new_k, v, new_v):
    keys, values = jnp.concatenate([k, new_k], 1), jnp.concatenate([v, new_v], 1)
    return jax.nn.dot_product_attention(q, keys, values)

  got = jax.jit(sx.fuse(function))(q, *parts)
  np.testing.assert_allclose(got, function(q, *parts), rtol=1e-5, atol=1e-5)


def test_other_concatenations_stay():
  q, k, v = (normal(2, 3, 4, 8, seed=seed) for seed in (3, 4, 5))

  def along(axis, count):
    def function(q, k, v):
      parts = [jnp.concatenate([x] * count, axis) for x in (k, v)]
      queries = jnp.concatenate([q] * count, axis) if axis != 1 else q
      return jax.nn.dot_product_attention(queries, *parts)

    return function

  for axis, count in ((0, 2), (2, 2), (1, 3)):
    function = along(axis, count)
    got = jax.jit(sx.fuse(function))(q, k, v)
    np.testing.assert_allclose(got, function(q, k, v), rtol=1e-5, atol=1e-5)
