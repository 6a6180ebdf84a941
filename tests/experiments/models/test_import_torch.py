"""PyTorch checkpoints: our networks compute with them what PyTorch's do, and no key is lost."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments.models.export_torch import to_state_dict, write_state_dict
from experiments.models.import_torch import import_torch, read_state_dict
from tests.experiments.models import torch_reference
from tests.experiments.tiny import abstract_model, quick_compiler
from tests.helpers import mostly_slow

IMAGE_SHAPE = (16, 16, 3)
NUM_CLASSES = 5
TINY = {
  "resnet50": {"stage_sizes": (1, 2), "width": 4},
  "resnet18": {"stage_sizes": (1, 2), "width": 4},
  "wide_resnet22_2": {"depth": 10, "widen": 1},
  "mobilenet_v3_small": {
    "blocks": ((3, 16, 16, True, False, 2), (5, 24, 16, False, True, 1)),
    "hidden": 12,
  },
  "mobilenet_v3_large": {
    "blocks": ((3, 24, 24, False, False, 1), (3, 40, 24, True, True, 1)),
    "hidden": 10,
  },
  "vit_b16": {"patch_size": 4, "depth": 2, "width": 12, "num_heads": 3, "mlp_width": 20},
}


def ours(name):
  return abstract_model(name, num_classes=NUM_CLASSES, image_shape=IMAGE_SHAPE, **TINY[name])


@functools.cache
def theirs(name):
  """A random state dict, images `[B, H, W, C]`, and the logits that PyTorch would give."""
  state = torch_reference.State()
  images = np.random.default_rng(1).normal(size=(2, *IMAGE_SHAPE))
  network = torch_reference.NETWORKS[name]
  logits = network(state, images.transpose(0, 3, 1, 2), num_classes=NUM_CLASSES, **TINY[name])
  return state.arrays, images, logits


@pytest.mark.parametrize("name", TINY)
def test_an_imported_network_computes_what_pytorch_computes(name):
  state_dict, images, expected = theirs(name)
  apply, params, model_state = import_torch(ours(name), state_dict, name=name)
  assert {leaf.dtype for leaf in (params | model_state).values()} == {jnp.dtype("float32")}
  with quick_compiler():
    logits, _ = jax.jit(apply, static_argnames="train")(
      params, model_state, jnp.asarray(images, jnp.float32), train=False
    )
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  assert np.abs(expected).std() > 0.01


# Entries of torchvision's state dicts; 53, 34 and 46 of them count batches, one a normalisation.
ENTRIES = {
  "resnet50": (320, 53),
  "mobilenet_v3_small": (244, 34),
  "mobilenet_v3_large": (312, 46),
  "vit_b16": (152, 0),
}


@pytest.mark.parametrize("name", mostly_slow(ENTRIES, {"mobilenet_v3_small"}))
def test_the_true_networks_want_as_many_entries_as_torchvision_writes(name):
  """The message names every key that an empty checkpoint lacks."""
  model = abstract_model(name, num_classes=1000, image_shape=(224, 224, 3))
  with pytest.raises(ValueError) as error:
    import_torch(model, {}, name=name)
  missing = set(re.findall(r"^  (\S+) is missing", str(error.value), re.MULTILINE))
  total, counters = ENTRIES[name]
  assert len(missing) == total - counters


def test_every_fault_is_listed():
  state_dict = dict(theirs("resnet50")[0])
  state_dict["fc.weight"] = state_dict["fc.weight"].T
  state_dict["conv1.weight"] = np.ones(state_dict["conv1.weight"].shape, np.int32)
  del state_dict["layer1.0.bn2.running_var"]
  state_dict["layer9.0.conv1.weight"] = np.ones(3)
  with pytest.raises(ValueError) as error:
    import_torch(ours("resnet50"), state_dict, name="resnet50")
  message = str(error.value)
  assert "does not fit resnet50 (4 keys)" in message
  assert "fc.weight is float64 (32, 5), not floating (5, 32)" in message
  assert "conv1.weight is int32 (4, 3, 7, 7), not floating (4, 3, 7, 7)" in message
  assert "layer1.0.bn2.running_var is missing (it becomes layer1/0/bn2/var)" in message
  assert "layer9.0.conv1.weight belongs nowhere" in message


def test_a_fused_projection_of_the_wrong_shape_is_listed_once():
  state_dict = dict(theirs("vit_b16")[0])
  key = "encoder.layers.encoder_layer_1.self_attention.in_proj_weight"
  state_dict[key] = state_dict[key][:24]
  with pytest.raises(ValueError, match=r"in_proj_weight is float64 \(24, 12\), not .*\(36, 12\)$"):
    import_torch(ours("vit_b16"), state_dict, name="vit_b16")


def test_only_known_networks_can_be_imported():
  with pytest.raises(ValueError, match=r"the model to import is 'mlp'; it must be one of resnet50"):
    import_torch(ours("resnet50"), {}, name="mlp")


def test_names_of_distributed_training_and_of_older_torchvisions():
  state_dict = theirs("vit_b16")[0]
  old = {
    "module." + key.replace("mlp.0", "mlp.linear_1").replace("mlp.3", "mlp.linear_2"): array
    for key, array in state_dict.items()
  }
  expected = import_torch(ours("vit_b16"), state_dict, name="vit_b16")
  found = import_torch(ours("vit_b16"), old, name="vit_b16")
  for path, array in expected.params.items():
    np.testing.assert_array_equal(found.params[path], array, err_msg=path)


def test_files(tmp_path):
  arrays = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray(3)}
  safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
  np.savez(tmp_path / "model.npz", **arrays)
  for suffix in ("safetensors", "npz"):
    found = read_state_dict(tmp_path / f"model.{suffix}")
    assert found.keys() == arrays.keys()
    for key, array in arrays.items():
      np.testing.assert_array_equal(found[key], array)
  with pytest.raises(ValueError, match=r"model\.pt is neither a \.safetensors nor a \.npz file"):
    read_state_dict(tmp_path / "model.pt")
  with pytest.raises(FileNotFoundError):
    read_state_dict(tmp_path / "none.npz")


@pytest.mark.parametrize("name", TINY)
def test_an_exported_network_is_the_one_that_was_imported(name, tmp_path):
  state_dict, _, _ = theirs(name)
  model = import_torch(ours(name), state_dict, name=name)
  state = to_state_dict({**model.params, **model.model_state}, name=name)
  path = tmp_path / "new" / "model.safetensors"
  write_state_dict(path, state)
  read = read_state_dict(path)
  counters = {key for key in read if key.endswith("num_batches_tracked")}
  assert len(counters) == sum(key.endswith("running_mean") for key in read)
  again = import_torch(ours(name), read, name=name)
  for before, after in zip(jax.tree.leaves(model[1:]), jax.tree.leaves(again[1:]), strict=True):
    np.testing.assert_array_equal(before, after)
  for key, array in state_dict.items():  # and every array is where it came from
    if key not in counters:
      np.testing.assert_array_equal(read[key], np.asarray(array, np.float32))
