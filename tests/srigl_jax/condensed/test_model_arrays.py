import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from experiments import models
from tests.srigl_jax.condensed.test_condense_model import (
  MODELS,
  Transformer,
  assert_close,
  build,
  example,
  fresh,
  sparsify,
)


def settings(name, **kwargs):
  return {"num_classes": 5, "image_shape": (8, 8, 3), **MODELS[name], **kwargs}


def skeleton(name, **kwargs):
  return nnx.eval_shape(lambda: models.build(name, rngs=nnx.Rngs(0), **settings(name, **kwargs)))


@pytest.mark.parametrize(
  ("name", "folds", "dtype"),
  [
    ("mlp", False, "float32"),
    ("mlp", True, "bfloat16"),
    pytest.param("wide_resnet22_2", True, "float32", marks=pytest.mark.slow),
  ],
)
def test_a_model_through_a_file(name, folds, dtype, tmp_path):
  model = build(name, dtype=dtype)
  x = example(2, 8, 8, 3)
  condensed = sx.condense_model(model, sparsify(model), x if folds else None)
  layers, arrays = sx.split_condensed(condensed)
  sx.save_condensed(tmp_path / "model", layers, {"name": name}, arrays=arrays)
  file = sx.load_condensed_file(tmp_path / "model")
  assert file.metadata == {"name": name}
  assert sx.load_condensed(tmp_path / "model")[1] == file.metadata
  assert list(file.arrays) == list(arrays) and list(file.layers) == list(layers)
  again = sx.merge_condensed(skeleton(name, dtype=dtype), file.layers, file.arrays)
  assert nnx.graphdef(again) == nnx.graphdef(condensed)
  jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(condensed))
  run = lambda m: jax.jit(lambda x: m(x))(x)
  assert_close(run(again), run(condensed), 0)


def test_attention_and_random_state():
  model = fresh(Transformer)
  condensed = sx.condense_model(model, sparsify(model), example(2, 6, 12))
  layers, arrays = sx.split_condensed(condensed)
  assert "attention/query/kernel" in layers and not any("rngs" in path for path in arrays)
  again = sx.merge_condensed(model, layers, arrays)
  x = example(2, 6, 12, seed=1)
  assert_close(again(x), condensed(x), 0)
  assert sx.folding_report(model, again) == sx.folding_report(model, condensed)


def test_dense_layers_may_have_gained_a_bias():
  model = build("wide_resnet22_2")
  sparsify(model)
  condensed = sx.condense_model(model, {}, example(2, 8, 8, 3))
  layers, arrays = sx.split_condensed(condensed)
  assert not layers and "layer1/0/conv1/bias" in arrays and "layer1/0/bn2/scale" not in arrays
  again = sx.merge_condensed(skeleton("wide_resnet22_2"), layers, arrays)
  assert again.layer1[0].conv1.use_bias
  assert nnx.graphdef(again) == nnx.graphdef(condensed)


@pytest.fixture(scope="module")
def parts():
  model = build("convnet")
  return sx.split_condensed(sx.condense_model(model, sparsify(model)))


def without(mapping, name):
  return {key: value for key, value in mapping.items() if key != name}


CONV, HEAD, BN = "blocks/0/conv/kernel", "head/kernel", "blocks/0/bn/mean"
CHANGES = {
  "unknown layer": (lambda x, a: (x | {"tail/kernel": x[CONV]}, a), "layers names 'tail/kernel'"),
  "layer elsewhere": (lambda x, a: (x | {HEAD: x[CONV]}, a), "'head'.*cannot stand in the model"),
  "layer too large": (
    lambda x, a: ({CONV: x["blocks/1/conv/kernel"]}, a),
    "'blocks/0/conv'.*the settings",
  ),
  "layer missing": (lambda x, a: (without(x, CONV), a), f"lacks '{CONV}'"),
  "array missing": (lambda x, a: (x, without(a, HEAD)), f"lacks '{HEAD}'"),
  "array unknown": (
    lambda x, a: (x, a | {"tail/bias": a[HEAD]}),
    "arrays names 'tail/bias'",
  ),
  "array of a layer": (lambda x, a: (x, a | {CONV: a[HEAD]}), f"arrays names '{CONV}'"),
  "other type": (lambda x, a: (x, a | {HEAD: a[HEAD].astype(jnp.bfloat16)}), "of type bfloat16"),
  "too many classes": (lambda x, a: (x, a | {HEAD: jnp.ones((12, 6))}), r"shape \(12, 6\)"),
  "one axis": (lambda x, a: (x, a | {HEAD: jnp.ones(12)}), r"shape \(12,\)"),
  "kernel and bias": (lambda x, a: (x, a | {HEAD: jnp.ones((12, 4))}), "'head' do not go together"),
  "half a norm": (lambda x, a: (x, without(a, BN)), f"lacks '{BN}'"),
  "uneven norm": (lambda x, a: (x, a | {BN: jnp.ones(7)}), "'blocks/0/bn' do not go together"),
  "empty norm": (lambda x, a: (x, a | {BN: jnp.ones(0)}), r"shape \(0,\)"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_does_not_fit_the_model(name, parts):
  change, message = CHANGES[name]
  with pytest.raises(ValueError, match=message):
    sx.merge_condensed(skeleton("convnet"), *change(*parts))


@pytest.mark.parametrize("dtype", ("bfloat16", "int8", "int8_weights"))
def test_products_of_fewer_bits_survive_a_file(dtype, tmp_path):
  model = nnx.Linear(64, 16, dtype=jnp.float32, rngs=nnx.Rngs(0))
  mask = jnp.arange(64)[:, None] % 16 // 4 == jnp.arange(16)[None] % 4
  model.kernel.set_value(model.kernel.get_value() * mask)
  x = jax.random.normal(jax.random.key(0), (5, 64))
  condensed = sx.condense_model(model, {"kernel": mask}, dtype=dtype)
  y = condensed(x)
  np.testing.assert_allclose(y, model(x), atol=0.03)
  layers, arrays = sx.split_condensed(condensed)
  sx.save_condensed(tmp_path / "model", layers, arrays=arrays)
  file = sx.load_condensed_file(tmp_path / "model")
  merged = sx.merge_condensed(nnx.Linear(64, 16, rngs=nnx.Rngs(1)), file.layers, file.arrays)
  np.testing.assert_array_equal(merged(x), y)
