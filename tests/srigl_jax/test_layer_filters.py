import warnings

import jax
import jax.numpy as jnp
import pytest

from srigl_jax import layer_filters
from srigl_jax.layer_filters import all_but, only
from srigl_jax.layers import Axes


def layers_of(shapes, **kwargs):
  params = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
  return layer_filters.find_layers(params, **kwargs)


RESNET = {
  "conv1/kernel": (3, 3, 3, 8),
  "conv1_1/kernel": (3, 3, 8, 8),
  "layer1/0/conv1/kernel": (3, 3, 8, 8),
  "layer1/0/bn/scale": (8,),
  "layer2/0/shortcut/kernel": (1, 1, 8, 16),
  "layer10/0/depthwise/kernel": (3, 3, 1, 16),
  "linear/kernel": (16, 10),
  "linear/bias": (10,),
}
VIT = {
  "cls": (1, 1, 12),
  "conv_proj/kernel": (4, 4, 3, 12),
  "pos_embedding": (1, 5, 12),
  **{
    f"blocks/{i}/{name}": shape
    for i in range(2)
    for name, shape in {
      "attn/query/kernel": (12, 3, 4),
      "attn/key/kernel": (12, 3, 4),
      "attn/value/kernel": (12, 3, 4),
      "attn/value/bias": (3, 4),
      "attn/out/kernel": (3, 4, 12),
      "mlp/dense1/kernel": (12, 24),
      "mlp/dense2/kernel": (24, 12),
    }.items()
  },
  "head/kernel": (12, 10),
}
MLP = {f"Dense_{i}/kernel": (8, 8) for i in (0, 1, 2, 10)}


def both(*names):
  return {f"blocks/{i}/{name}/kernel" for i in range(2) for name in names}


@pytest.mark.parametrize(
  ("shapes", "preset", "expected"),
  [
    (RESNET, "first", {"conv1/kernel"}),
    (RESNET, "head", {"linear/kernel"}),
    (RESNET, "depthwise", {"layer10/0/depthwise/kernel"}),
    # A stem that sees one channel is not depthwise.
    (RESNET | {"conv1/kernel": (3, 3, 1, 8)}, "depthwise", {"layer10/0/depthwise/kernel"}),
    (VIT, "first", {"conv_proj/kernel"}),
    (VIT, "head", {"head/kernel"}),
    (VIT, "query", both("attn/query")),
    (VIT, "key", both("attn/key")),
    (VIT, "value", both("attn/value")),
    (VIT, "attention_out", both("attn/out")),
    (VIT, "attention", both("attn/query", "attn/key", "attn/value", "attn/out")),
    (VIT, "mlp", both("mlp/dense1", "mlp/dense2")),
    (MLP, "first", {"Dense_0/kernel"}),
    (MLP, "head", {"Dense_10/kernel"}),
  ],
)
def test_presets(shapes, preset, expected):
  layers = layers_of(shapes)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert layer_filters.select(only(preset), layers, name="sparse") == expected
    assert layer_filters.select(all_but(preset), layers, name="sparse") == set(layers) - expected


def test_presets_under_the_params_of_a_linen_dict():
  layers = layers_of({f"params/{path}": shape for path, shape in RESNET.items()})
  select = lambda preset: layer_filters.select(only(preset), layers, name="sparse")
  assert select("first") == {"params/conv1/kernel"}
  assert select("head") == {"params/linear/kernel"}


def test_a_classifier_of_several_layers_ends_with_its_last():
  layers = layers_of({"classifier/0/kernel": (4, 4), "classifier/10/kernel": (4, 4)})
  assert layer_filters.select(only("head"), layers, name="sparse") == {"classifier/10/kernel"}


def test_head_without_a_name_is_guessed_with_a_warning():
  layers = layers_of(
    {"conv1/kernel": (3, 3, 3, 8), "encode/kernel": (8, 8), "readout/kernel": (8, 4)}
  )
  with pytest.warns(UserWarning, match=r"'readout/kernel', the last of \[.*ablate=all_but"):
    assert layer_filters.select(only("head"), layers, name="ablate") == {"readout/kernel"}


def test_first_without_a_name_is_an_error():
  layers = layers_of({"encode/kernel": (8, 8), "readout/kernel": (8, 4)})
  with pytest.raises(ValueError, match=r"'first' cannot tell.*encode/kernel, readout/kernel"):
    layer_filters.select(all_but("first"), layers, name="sparse")


def test_kinds_of_rules():
  layers = layers_of(RESNET)
  select = lambda rule: layer_filters.select(rule, layers, name="sparse")
  assert select(True) == set(layers)
  assert select(False) == set()
  assert select(lambda path, shape: shape[-1] == 16) == {
    "layer2/0/shortcut/kernel",
    "layer10/0/depthwise/kernel",
  }
  assert select(only(r"^layer\d+/", "head")) == {
    "layer1/0/conv1/kernel",
    "layer2/0/shortcut/kernel",
    "layer10/0/depthwise/kernel",
    "linear/kernel",
  }
  assert select(all_but(r"conv1/kernel")) == {
    "conv1_1/kernel",
    "layer2/0/shortcut/kernel",
    "layer10/0/depthwise/kernel",
    "linear/kernel",
  }


def test_a_pattern_that_fits_nothing_is_an_error():
  layers = layers_of(RESNET)
  with pytest.raises(ValueError, match=r"ablate names 'haed'.*mean 'head'.*Presets: first, head"):
    layer_filters.select(all_but("haed"), layers, name="ablate")
  with pytest.raises(ValueError, match=r"sparse names 'attention', .*layers: conv1/kernel"):
    layer_filters.select(only("attention"), layers, name="sparse")


@pytest.mark.parametrize("rule", ["head", None, ["head"], 1.0])
def test_a_rule_of_no_known_kind_is_an_error(rule):
  with pytest.raises(ValueError, match=r"sparse is .*all_but\(\.\.\.\) with presets \(first, head"):
    layer_filters.select(rule, layers_of(RESNET), name="sparse")


def test_layers_that_count():
  assert list(layers_of(RESNET)) == [
    "conv1/kernel",
    "conv1_1/kernel",
    "layer1/0/conv1/kernel",
    "layer2/0/shortcut/kernel",
    "layer10/0/depthwise/kernel",
    "linear/kernel",
  ]
  assert len(layers_of(VIT)) == 2 + 2 * 6


def test_a_function_can_ask_for_unusual_leaves():
  asked = layers_of(VIT, sparse=lambda path, shape: "embedding" in path)
  assert set(asked) == {*layers_of(VIT), "pos_embedding"}
  # Vectors are no matrices, whoever asks.
  assert "linear/bias" not in layers_of(RESNET, sparse=lambda *_: True)


def test_axes_are_passed_on():
  layers = layers_of({"w": (8, 4)}, axes=lambda path, shape: Axes((0,)))
  assert (layers["w"].num_neurons, layers["w"].dense_fan_in) == (8, 4)


def test_no_layer_at_all_is_an_error():
  with pytest.raises(ValueError, match=r"No leaf .*\{'bias': \(3,\)\}.*Pass the parameters"):
    layers_of({"bias": (3,)})
