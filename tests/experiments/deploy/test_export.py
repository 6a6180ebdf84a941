"""Exporting a trained network, and running what was exported."""

import functools
import json
import os
import shutil

import numpy as np
import pytest

import srigl_jax as sx
from configs import digits
from experiments.common.files import read_json
from experiments.deploy import formats
from experiments.deploy.exported import load_data, load_exported
from experiments.deploy.inference import accuracy, largest_difference, predict
from experiments.export import export
from experiments.infer import infer, write_report
from experiments.models.import_torch import MODULE_NAMES, read_state_dict
from experiments.training.load_run import load_run
from experiments.training.loop import train
from tests.experiments.common.test_old_configs import old_form
from tests.experiments.tiny import quick_compiler, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(scope="module")
def exported_run(finished_run, tmp_path_factory):
  """A finished run's directory, its network and what was exported of it."""
  workdir, _ = finished_run
  trained = load_run(workdir)
  path = tmp_path_factory.mktemp("exported") / "folder" / "model.safetensors"
  return workdir, trained, export(trained, path)


def test_a_trained_network_is_the_one_that_was_evaluated(finished_run):
  workdir, results = finished_run
  trained = load_run(workdir)
  data = trained.run.data
  logits, labels = predict({"last": trained.model}, data)
  assert accuracy(logits["last"], labels) == pytest.approx(results["test_accuracy"])
  assert trained.step == results["steps"]
  assert trained.masks.keys() == {
    layer["path"] for layer in results["layers"] if layer["density"] < 1
  }
  best = load_run(workdir, which="best")
  logits, labels = predict({"best": best.model}, data)
  assert accuracy(logits["best"], labels) == pytest.approx(results["best_test_accuracy"])


@pytest.mark.slow
def test_digits_in_fewer_bits(tmp_path):
  """Of 450 images 0.1 points is none and 0.3 points is one."""
  train(digits.get_config(), tmp_path / "run")
  trained = load_run(tmp_path / "run")
  models = {
    dtype: export(trained, tmp_path / dtype, dtype=dtype).model
    for dtype in ("float32", "bfloat16", "int8", "int8_weights")
  }
  logits, labels = predict(models, trained.run.data)
  rates = {dtype: accuracy(x, labels) for dtype, x in logits.items()}
  for dtype, points in (("bfloat16", 0.1), ("int8", 0.3), ("int8_weights", 0.3)):
    assert abs(rates[dtype] - rates["float32"]) <= points / 100, rates


def test_reading_changes_nothing(finished_run, tmp_path):
  files = lambda folder: {p.relative_to(folder): p.stat().st_mtime_ns for p in folder.rglob("*")}
  shutil.copytree(finished_run[0], tmp_path / "run")
  before = files(tmp_path / "run")
  load_run(tmp_path / "run")
  assert files(tmp_path / "run") == before


def test_an_exported_network_computes_the_same(exported_run):
  _, trained, exported = exported_run
  data = trained.run.data
  portable = load_exported(exported.path, backend="xla").model
  logits, labels = predict(
    {"trained": trained.model, "exported": exported.model, "portable": portable}, data, batch_size=7
  )
  np.testing.assert_array_equal(labels, data.test_labels)
  assert logits["exported"].shape == (data.num_test, data.num_classes)
  assert largest_difference(logits["exported"], logits["trained"]) < 1e-5
  assert largest_difference(logits["portable"], logits["trained"]) < 1e-5


def test_it_says_where_it_comes_from(exported_run):
  _, trained, exported = exported_run
  assert exported.config.seed == trained.run.config.seed
  assert exported.metadata["step"] == trained.step
  assert exported.metadata["environment"]["jax"]
  assert "data_dir" not in exported.metadata["config"]["data"]


def test_an_existing_file_is_kept(exported_run):
  _, trained, exported = exported_run
  before = exported.path.read_bytes()
  with pytest.raises(FileExistsError):
    export(trained, exported.path)
  assert exported.path.read_bytes() == before
  export(trained, exported.path, overwrite=True)


@pytest.mark.parametrize("give_workdir", [True, False])
def test_infer(exported_run, tmp_path, give_workdir):
  workdir, trained, exported = exported_run
  dtypes = ["int8"] if give_workdir else []
  results = infer(
    exported,
    batch_sizes=[1, 3],
    rounds=2,
    dtypes=dtypes,
    workdir=workdir if give_workdir else None,
  )
  rounded = [f"condensed {dtype}" for dtype in dtypes]
  errors = [results["largest_difference"].pop(name) for name in rounded]
  assert all(1e-4 < error < 0.1 for error in errors)
  logits, labels = predict({"trained": trained.model}, trained.run.data)
  exact = [x for name, x in results["accuracy"].items() if name not in rounded]
  assert {*exact} == {accuracy(logits["trained"], labels)}
  assert len(results["accuracy"]) == 3 + len(dtypes)
  assert max(results["largest_difference"].values()) < 1e-5
  assert results["bytes_on_disk"]["condensed"] == exported.path.stat().st_size
  assert results["table"].count("\n") == 3
  path = write_report(results, tmp_path)
  assert results["table"] in path.read_text()
  assert (tmp_path / "latency.png").stat().st_size > 1000
  assert read_json(tmp_path / "results.json")["accuracy"] == results["accuracy"]


def test_a_file_of_an_earlier_version(exported_run):
  """Its config is in the form of then; it still belongs to its run."""
  workdir, _, exported = exported_run
  config = old_form(load_run(workdir).run.config, gamma_sal=0.9)
  earlier = exported._replace(metadata=exported.metadata | {"config": config})
  infer(earlier, batch_sizes=[1], rounds=1, workdir=workdir)


def test_another_runs_directory_is_refused(exported_run, tmp_path):
  with quick_compiler():
    train(tiny_config({"seed": 5}), tmp_path)
  with pytest.raises(ValueError, match="was not exported from the last checkpoint of"):
    infer(exported_run[2], batch_sizes=[1], rounds=1, workdir=tmp_path)


def test_bad_workdirs(tmp_path):
  with pytest.raises(ValueError, match=r"holds no run: it has no config\.json"):
    load_run(tmp_path)
  (tmp_path / "srigl" / "seed0").mkdir(parents=True)
  (tmp_path / "srigl" / "seed0" / "config.json").write_text("{}")
  with pytest.raises(ValueError, match=r"It is a sweep's: its runs are .*seed0"):
    load_run(tmp_path)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"method.name": "dense"}, "is dense: there is nothing to condense"),
    ({"method.name": "rigl"}, "was trained by 'rigl' and cannot.*must have one fan-in"),
  ],
)
def test_what_cannot_be_condensed(tmp_path, changes, message):
  with quick_compiler():
    train(tiny_config(changes), tmp_path)
  with pytest.raises(ValueError, match=message):
    export(load_run(tmp_path), tmp_path / "model.safetensors")
  assert not (tmp_path / "model.safetensors").exists()


def test_a_missing_file_says_how_to_make_one(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"no file .*experiments\.export --workdir"):
    load_exported(tmp_path / "model.safetensors")


def test_a_file_of_layers_alone_is_refused(tmp_path):
  mask = np.eye(4, dtype=bool)
  sx.save_condensed(tmp_path / "layers", {"a": sx.condense(mask.astype(np.float32), mask)})
  with pytest.raises(ValueError, match=r"does not say which network it holds"):
    load_exported(tmp_path / "layers")


# ---- files that are not to be trusted ----------------------------------------------------------


def change(metadata, path, value):
  """Metadata with another value at a path."""
  metadata = json.loads(json.dumps(metadata))
  *sections, name = path.split("/")
  functools.reduce(dict.__getitem__, sections, metadata)[name] = value
  return metadata


DEEP = functools.reduce(lambda inner, _: [inner], range(300), 1)
HOSTILE = {
  "escape codes in a type": ("config/model/dtype", "\x1b[2J\x1b]0;title\x07"),
  "escape codes in a name": ("config/name", "\x1b[31mred"),
  "escape codes in a key": ("config/\x1b[31m", 1),
  "a config that is none": ("config", 5),
  "no model": ("config/model", {}),
  "another model": ("config/model/name", "convnet"),
  "a model that is none": ("config/model/name", "__init__"),
  "two billion classes": ("num_classes", 2_000_000_000),
  "too many classes": ("num_classes", 20_000),
  "no classes": ("num_classes", 0),
  "classes in words": ("num_classes", "4"),
  "a huge image": ("image_shape", [2**20, 2**20, 3]),
  "a large image": ("image_shape", [2048, 2048, 1]),
  "an image of one axis": ("image_shape", [16]),
  "an image of nothing": ("image_shape", [0, 4, 1]),
  "a key of Python's": ("config/__init__", 1),
  "a key of Python's inside": ("config/model/kwargs/__class__", 1),
  "a key of ConfigDict's": ("config/model/kwargs/update", 1),
  "many layers": ("config/model/kwargs/hidden", 100_000 * [1]),
  "infinite layers": ("config/model/kwargs/hidden", [1e300]),
  "layers in words": ("config/model/kwargs/hidden", "8" * 100_000),
  "layers that are lists": ("config/model/kwargs/hidden", DEEP),
  "an argument of another model": ("config/model/kwargs/depth", 10**9),
  "arguments that are none": ("config/model/kwargs", 3),
  "many images": ("config/data/kwargs/num_train", 10**9),
  "data that are none": ("config/data/kwargs", []),
  "no step": ("step", None),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_metadata(exported_run, tmp_path, name):
  """One line of error, soon, and nothing of what is in the file is printed raw."""
  file = sx.load_condensed_file(exported_run[2].path)
  path, metadata = tmp_path / "model.safetensors", change(file.metadata, *HOSTILE[name])
  sx.save_condensed(path, file.layers, metadata, arrays=file.arrays)
  with pytest.raises(ValueError) as raised:
    load_data(load_exported(path))
  assert len(str(raised.value)) < 1000 and str(raised.value).isprintable()


@pytest.mark.parametrize(
  "name, kwargs",
  [
    ("synthetic", {"num_train": 10**7, "image_shape": [100, 100, 3]}),
    ("synthetic", {"num_test": -1}),
    ("synthetic", {"num_train": "many"}),
    ("synthetic_imagenet", {"num_different": 10**6}),
    ("synthetic_imagenet", {"image_size": 10**6}),
    ("synthetic_imagenet", {"num_workers": 10**6, "image_size": 0}),
    ("cifar10", {"normalize": True, "fetch": "x"}),
    ("no such", {}),
  ],
)
def test_hostile_data(exported_run, name, kwargs):
  exported = exported_run[2]
  metadata = change(exported.metadata, "config/data/name", name)
  with pytest.raises(ValueError):
    load_data(exported._replace(metadata=change(metadata, "config/data/kwargs", kwargs)))


def test_what_is_no_file(tmp_path):
  os.mkfifo(tmp_path / "model")
  with pytest.raises(ValueError, match="no regular file"):
    load_exported(tmp_path / "model")


def test_other_formats_are_written(exported_run, tmp_path):
  _, trained, exported = exported_run
  data, path = trained.run.data, tmp_path / "c" / "net.c"
  written = formats.write_c(exported.model, data, path, overwrite=False, arithmetic="int8")
  assert {p.name for p in written.paths} == {"net.c", "net.h"} and "int8" in written.note
  with pytest.raises(ValueError, match=r"NAME\.c"):
    formats.write_c(exported.model, data, tmp_path / "net", overwrite=False)
  path = tmp_path / "torch.safetensors"
  if trained.run.config.model.name in (*MODULE_NAMES, "mlp", "convnet"):
    formats.write_torch(trained, path, overwrite=False)
    weights = read_state_dict(path)
    density = {key: np.mean(x != 0) for key, x in weights.items() if x.ndim > 1}
    assert min(density.values()) < 1
    with pytest.raises(FileExistsError):
      formats.write_torch(trained, path, overwrite=False)
