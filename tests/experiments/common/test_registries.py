"""What makes a method, a model or a data set known: one row each, and nothing else."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import data, models
from experiments.common.registry import check_arguments, choose
from experiments.data import synthetic
from experiments.training import methods
from experiments.training.loop import train
from experiments.training.methods import Method
from tests.experiments.tiny import tiny_config


class Linear(nnx.Module):
  """A model of one layer."""

  def __init__(self, *, num_classes, image_shape, dtype, rngs, scale: float = 1.0):
    self.head = nnx.Linear(int(np.prod(image_shape)), num_classes, dtype=dtype, rngs=rngs)
    self.scale = scale

  def __call__(self, x, *, train=False, rngs=None):
    return self.scale * self.head(x.reshape(len(x), -1)).astype(jnp.float32)


def load_coins(*, data_dir=None, num_train: int = 32):
  """A data set of two classes."""
  return synthetic.load_synthetic(
    data_dir=data_dir, num_classes=2, image_shape=(2, 2, 1), num_train=num_train, num_test=8
  )


def dropping_set(
  inner: optax.GradientTransformation,
  *,
  update_every: int,
  update_until: int,
  drop: float = 0.5,
  **how_sparse,
):
  """A method that calls another with a share of its own."""
  return sx.set_(
    inner,
    update_every=update_every,
    update_until=update_until,
    drop_fraction=drop,
    **how_sparse,
  )


def test_a_row_makes_each_known(one_device, monkeypatch, tmp_path):
  monkeypatch.setitem(models.MODELS, "linear", Linear)
  monkeypatch.setitem(data.DATASETS, "coins", load_coins)
  monkeypatch.setitem(methods.METHODS, "dropping_set", Method(dropping_set))
  config = tiny_config({"method.name": "dropping_set"})
  assert config.method.kwargs.to_dict() == {"drop": 0.5}
  with config.unlocked():
    config.model.name = "linear"
    config.model.kwargs = ConfigDict({"scale": 2.0})
    config.data.update({"name": "coins", "batch_size": 8})
    config.data.kwargs = ConfigDict({"num_train": 16})
  results = train(config, tmp_path)
  assert (results["method"], results["steps"]) == ("dropping_set", 6)
  assert [layer["path"] for layer in results["layers"]] == ["head/kernel"]
  assert results["sparsity"] == 0.5
  config.method.kwargs.drop = 1.5
  with pytest.raises(ValueError, match=r"drop_fraction is 1\.5"):
    train(config, tmp_path / "other")


def test_names_and_arguments():
  with pytest.raises(ValueError, match=r"^colour is 'rad'; .* red, green\. Did you mean 'red'\?$"):
    choose({"red": 1, "green": 2}, "rad", "colour")
  check = lambda *given: check_arguments(load_coins, given, reserved=["data_dir"], what="it")
  check("num_train")
  with pytest.raises(ValueError, match=r"it has 'num_trian'; .* num_train\. Did you mean"):
    check("num_trian")
  with pytest.raises(ValueError, match=r"it has 'how_sparse'; it may have update_every"):
    check_arguments(dropping_set, ["how_sparse"], reserved=["inner"], what="it")
