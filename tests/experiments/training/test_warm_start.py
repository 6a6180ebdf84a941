"""Runs that start from another run's weights: pruned at once, or as they are."""

import shutil

import numpy as np
import pytest

import srigl_jax as sx
from configs import cifar10_prune_pretrained
from experiments.training import loop
from experiments.training.load_run import load_run
from experiments.training.loop import train
from experiments.training.setup import prepare
from tests.experiments.tiny import part, quick_compiler, read_checkpoint, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  monkeypatch.setattr(loop, "write_run_report", lambda workdir: None)


@pytest.fixture(scope="module")
def dense_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("dense")
  with pytest.MonkeyPatch.context() as patch, quick_compiler():
    patch.setattr(loop, "write_run_report", lambda workdir: None)
    train(tiny_config({"method.name": "dense"}), workdir)
  return workdir


def pruned_config(dense_run, **changes):
  return tiny_config(
    {
      "method.name": "prune_pretrained",
      "method.kwargs.gamma_sal": 0.9,
      "model.init_from": str(dense_run),
      "train.total_epochs": 1.0,
      **changes,
    }
  )


def test_a_dense_run_is_pruned_and_fine_tuned(dense_run, tmp_path):
  source = shutil.copytree(dense_run, tmp_path / "dense")
  trained = part(read_checkpoint(source), "params")
  with quick_compiler():
    _, first = prepare(pruned_config(source))
    results = train(pruned_config(source), tmp_path / "run")
  masks = sx.get_masks(first.opt_state)
  expected = sx.prune_to_fan_in(trained, 0.5, gamma_sal=0.9)
  assert masks.keys() == expected.keys()
  for path, mask in expected.items():
    np.testing.assert_array_equal(masks[path], mask)
    np.testing.assert_array_equal(first.params[path], trained[path] * mask)
  assert results["active_neurons"] < 1 and 0.4 < results["sparsity"] < 0.7
  last = read_checkpoint(tmp_path / "run")
  for path, mask in part(last, "masks").items():
    np.testing.assert_array_equal(mask, masks[path])
    assert not part(last, "params")[path][~mask].any()
  shutil.rmtree(source)  # which a finished run does not need
  loaded = load_run(tmp_path / "run")
  assert loaded.run.config.model.init_from == str(source)
  sx.condense_model(loaded.model, loaded.masks)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model.init_from": ""}, "init_from is empty, and prune_pretrained would prune random"),
    ({"model.init_from": "nowhere"}, "holds no run with a checkpoint"),
    ({"model.kwargs": {"hidden": (9,)}}, r"another network: 'head/kernel' has shape \(8, 4\)"),
    ({"model.kwargs": {"hidden": (8, 8)}}, "another network: .* has no such array there"),
    ({"method.engine": "condensed"}, "prune_pretrained starts from a dense network"),
  ],
)
def test_what_cannot_be_started_from(dense_run, changes, message):
  with pytest.raises(ValueError, match=message):
    prepare(pruned_config(dense_run, **changes))


def test_other_methods_start_warm_too(dense_run):
  """As they would from weights of their own: `sparse_init` empty keeps them."""
  config = tiny_config({"model.init_from": str(dense_run), "method.sparse_init": ""})
  _, state = prepare(config)
  trained = part(read_checkpoint(dense_run), "params")
  for path, mask in sx.get_masks(state.opt_state).items():
    np.testing.assert_array_equal(state.params[path], trained[path] * np.asarray(mask))
  config.method.engine = "condensed"
  config.method.sparse_init = "he_normal"
  with pytest.raises(ValueError, match="dense weights are never made"):
    prepare(config)


@pytest.mark.parametrize("network", ["quick", "tiny", "resnet18"])
def test_the_config_names_the_run_that_it_starts_from(network):
  config = cifar10_prune_pretrained.get_config(network)
  assert config.model.init_from == f"runs/{network}-dense"
  assert config.method.name == "prune_pretrained" and not config.method.sparse_init
