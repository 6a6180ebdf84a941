"""The benchmark of the input: what it measures is what it says; never its numbers."""

import io
import json
import os
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import benchmark_input as benchmark
from experiments import data
from experiments.benchmarks.input_cases import enlarge, model_step, open_stream
from experiments.data.crops import decode
from tests.experiments.data.test_imagenet import files, write_imagenet
from tests.experiments.tiny import devices, quick_compiler


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  write_imagenet(folder, files(23), files(3))
  return str(folder)


def test_images_are_enlarged(data_dir):
  kwargs = {"data_dir": data_dir, "num_workers": 0, "image_size": 14}
  small = open_stream("imagenet2012", 0, **kwargs)
  large = open_stream("imagenet2012", 100, **kwargs)
  assert large.num_train == small.num_train == 23
  for i in (0, 5, 22):
    encoded = large.train.records[i]
    assert encoded._replace(image=b"") == small.train.records[i]._replace(image=b"")
    width, height = decode(encoded.image).size
    assert min(width, height) == 100
    before = decode(small.train.records[i].image).size
    assert max(width, height) == round(100 * max(before) / min(before))
  (batch,) = large.train_batches(0, 1, batch_size=23, seed=0)
  assert batch["image"].shape == (23, 14, 14, 3)


@pytest.mark.parametrize(
  "name, shorter_side, message",
  [
    ("digits", 0, "'digits' is held in memory"),
    ("synthetic_imagenet", 100, "which 'synthetic_imagenet' does not have"),
  ],
)
def test_only_streams_of_files(name, shorter_side, message):
  with pytest.raises(ValueError, match=message):
    open_stream(name, shorter_side)


def test_stages_do_the_work(data_dir, monkeypatch):
  stream = data.load("imagenet2012", data_dir=data_dir, num_workers=0, image_size=14)
  seen = []
  monkeypatch.setattr(benchmark, "decode", lambda encoded: seen.append(encoded) or decode(encoded))
  with devices(2):
    rows = list(benchmark.stage_rows(stream, num_images=50, batch_size=8))
  names = ["read", "decode", "crop, flip, augment", "to the devices"]
  assert [row["name"] for row in rows] == names
  assert seen == [stream.train.records[i % 23].image for i in range(50)]
  assert all(row["ms_per_image"] * row["images_per_s"] == pytest.approx(1000) for row in rows)
  sizes = [np.prod(decode(encoded).size) for encoded in seen]
  assert rows[1]["median_pixels"] == int(np.median(sizes))


@pytest.mark.slow
def test_pipelines_are_compared_and_waiting_is_a_share(data_dir):
  stream = data.load("imagenet2012", data_dir=data_dir, image_size=14)
  with devices(1):
    rows = benchmark.pipeline_rows(stream, [0, 1], num_images=20, batch_size=8, rounds=2)
    assert [row["workers"] for row in rows] == [0, 1]
    for row in rows:
      low, high = row["quartiles"]
      assert 0 < low <= row["images_per_s"] <= high
    steps = []
    waiting = benchmark.waiting_row(
      stream, lambda batch: steps.append(batch) or time.sleep(0), "x", num_workers=0, steps=3,
      batch_size=8,
    )  # fmt: skip
  assert len(steps) == 4  # the first one is not counted
  assert steps[0]["image"].shape == (1, 8, 14, 14, 3)
  assert 0 <= waiting["waiting"] <= 1 and waiting["steps"] == 3


def test_the_model_is_trained():
  """On each device with its part of the batch, whose mean gradient is that of the whole."""
  stream = data.load("synthetic_imagenet", image_size=8, num_train=64)
  batches = list(stream.train_batches(0, 2, batch_size=8, seed=0))
  trained = []
  for count in (1, 2):
    with devices(count), quick_compiler():
      # An MLP: batch statistics would depend on the number of devices.
      step = model_step(stream, "mlp", hidden=(4,))
      for batch in batches:
        params, _ = jax.block_until_ready(step(data.put_on_devices(batch)))
      trained.append(jax.device_get(params))
  for path, leaf in trained[0].items():
    np.testing.assert_allclose(leaf, trained[1][path], rtol=1e-4, atol=1e-6)
  bias = next(leaf for path, leaf in trained[0].items() if path.endswith("head/bias"))
  assert np.abs(bias).max() > 0  # it was 0


@pytest.mark.slow
def test_the_command_runs(tmp_path, data_dir):
  out = tmp_path / "results.json"
  arguments = ["--quick", "--workers=0,1", "--batch_size=4", "--step_ms=1", "--recipe=vit"]
  done = subprocess.run(
    [sys.executable, "-m", "experiments.benchmark_input", *arguments, f"--out={out}"],
    env=os.environ | {"XLA_FLAGS": "", "TFDS_DATA_DIR": data_dir},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  results = json.loads(out.read_text())
  assert results.keys() >= {"command", "environment", "table"}
  assert "--recipe=vit" in results["command"]
  assert results["table"] in done.stdout
  assert [row["workers"] for row in results["pipeline"]] == [0, 1]
  assert results["waiting"][0]["step"] == "stand-in of 1 ms for 4 images"


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
  "argument, message",
  [
    ("--workers=-1", "--workers is '-1'; give numbers such as"),
    ("--step_ms=1,x", "--step_ms is '1,x'; give times such as"),
    ("--batch_size=100", "--batch_size is 100; it may be 23 at most"),
  ],
)
def test_the_command_refuses(command, monkeypatch, data_dir, argument, message):
  monkeypatch.setenv("TFDS_DATA_DIR", data_dir)
  code, _, errors = command("benchmark_input", "--quick", argument)
  assert code == 2
  assert message in errors


def test_enlarging_keeps_the_picture():
  image = Image.fromarray(np.tile(np.arange(20, dtype=np.uint8)[:, None, None] * 10, (1, 30, 3)))
  buffer = io.BytesIO()
  image.save(buffer, "PNG")
  large = decode(enlarge(buffer.getvalue(), 100))
  assert large.size == (150, 100)
  small = np.asarray(large.resize((30, 20), Image.Resampling.BOX)).astype(int)
  assert np.abs(small - np.asarray(image)).max() <= 6
