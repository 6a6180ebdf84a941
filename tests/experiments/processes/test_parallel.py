"""The same run on one to eight devices and in two processes: the same losses, the same masks."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from configs import digits
from experiments import report
from experiments.processes.consistency import check_same_masks, mask_checksum
from experiments.processes.sharding import AXIS, replicate, shard_batches
from experiments.processes.signals import Interrupted
from experiments.training.loop import train
from experiments.training.steps import TrainFn
from experiments.workdir.metrics import read_metrics
from tests.experiments.tiny import (
  STEPS_PER_EPOCH,
  assert_same,
  devices,
  interrupted_at,
  part,
  quick_compiler,
  read_checkpoint,
  tiny_config,
)

EVERY_TWO = {"train.checkpoint_every_epochs": 2 / STEPS_PER_EPOCH, "train.keep_checkpoints": 99}


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  monkeypatch.setattr(report, "write_run_report", lambda workdir: None)


def losses(workdir, kind="train"):
  return {record["step"]: record["loss"] for record in read_metrics(workdir)[kind]}


def assert_same_training(actual, expected, steps, rtol=1e-4):
  """The same losses up to rounding, and the same masks after each of some steps."""
  for kind in ("train", "test"):
    a, b = losses(actual, kind), losses(expected, kind)
    assert a.keys() == b.keys() and a
    np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=rtol)
  for step in steps:
    masks = [part(read_checkpoint(workdir, step), "masks") for workdir in (actual, expected)]
    assert_same(*masks)


def convnet_config(changes):
  config = tiny_config({"model.name": "convnet", "train.total_epochs": 2.0} | changes)
  with config.unlocked():
    config.model.kwargs = ConfigDict({"widths": (8, 8), "convs_per_stage": 1})
  return config


@pytest.mark.slow  # test_loop.py compares one device with two and with eight
def test_one_to_eight_devices(tmp_path):
  for count in (1, 2, 8):  # 4 in another test, where a run goes on
    with devices(count):
      train(tiny_config(EVERY_TWO), tmp_path / str(count))
  for count in "28":
    assert_same_training(tmp_path / count, tmp_path / "1", range(2, 13, 2))


@pytest.mark.slow  # test_loop.py has one of eight devices
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batch_statistics_of_all_devices(tmp_path, accumulation):
  """Synchronised, they are those of the whole batch, so that even they agree."""
  changes = {"optimizer.accumulation_steps": accumulation, "optimizer.learning_rate": 0.02}
  config = convnet_config(changes | EVERY_TWO | {"train.sync_batch_norm": True})
  with quick_compiler():
    for count in (1, 4):
      with devices(count):
        train(config, tmp_path / str(count))
  assert_same_training(tmp_path / "4", tmp_path / "1", range(2, 9, 2), rtol=2e-3)
  four, one = (part(read_checkpoint(tmp_path / n), "model_state") for n in "41")
  for path, expected in one.items():
    np.testing.assert_allclose(four[path], expected, rtol=1e-2, atol=1e-4, err_msg=path)


@pytest.mark.slow
def test_local_batch_statistics_are_another_network(tmp_path):
  """Each device normalises by its own share: that is what `sync_batch_norm` is there for."""
  config = convnet_config({"train.total_epochs": 0.5})
  with quick_compiler():
    for count in (1, 4):
      with devices(count):
        train(config, tmp_path / str(count))
  one, four = (losses(tmp_path / n)[2] for n in "14")
  assert abs(one - four) > 1e-4


@pytest.mark.slow
def test_resumed_on_another_number_of_devices(tmp_path):
  with devices(1):
    train(tiny_config(EVERY_TWO), tmp_path / "whole")
  resumed = tmp_path / "resumed"
  for count, poll in ((8, 2), (2, 3)):
    with devices(count), interrupted_at(poll), pytest.raises(Interrupted):
      train(tiny_config(EVERY_TWO), resumed)
  with devices(4):
    train(tiny_config(EVERY_TWO), resumed)
  assert_same_training(resumed, tmp_path / "whole", range(2, 13, 2))


def test_the_loop_moves_nothing_between_host_and_devices(tmp_path, monkeypatch):
  """Between records, in a whole run: batches have been put where they are needed before."""
  calls, real = [], TrainFn.__call__

  def guarded(*arguments, **kwargs):
    calls.append(arguments)
    with jax.transfer_guard("disallow"):
      return real(*arguments, **kwargs)

  monkeypatch.setattr(TrainFn, "__call__", guarded)
  with devices(2):
    train(tiny_config(), tmp_path)
  assert len(calls) > 4


def stream_config():
  """Images that are not held in memory, mixed in pairs; 6 steps an epoch, 26 images to test on."""
  config = tiny_config(EVERY_TWO | {"train.total_epochs": 1.0, "method.sparse_init": ""})
  with config.unlocked():
    config.data.name = "synthetic_imagenet"
    config.data.kwargs = ConfigDict(
      {"image_size": 8, "mixup": 0.2, "cutmix": 1.0, "num_train": 100, "num_test": 26}
    )
  return config


@pytest.mark.slow
def test_streams_on_any_number_of_devices(tmp_path):
  for count in (1, 4):
    with devices(count):
      train(stream_config(), tmp_path / str(count))
  assert_same_training(tmp_path / "4", tmp_path / "1", (3, 6))
  with devices(2):
    with interrupted_at(3), pytest.raises(Interrupted):
      train(stream_config(), tmp_path / "resumed")
    train(stream_config(), tmp_path / "resumed")
  assert_same_training(tmp_path / "resumed", tmp_path / "1", (3, 6))
  # Every test image counts once: accuracies are multiples of 1 / 26.
  accuracy = read_metrics(tmp_path / "4")["test"][-1]["accuracy"]
  assert accuracy * 26 == pytest.approx(round(accuracy * 26), abs=1e-4)


# ---- two processes -----------------------------------------------------------------------------

DIGITS = {
  "model.kwargs.hidden": (16,),
  "train.total_epochs": 1.0,
  "train.checkpoint_every_epochs": 0.4,
  "train.keep_checkpoints": 9,
  "train.log_every_steps": 4,
  "method.update_every_steps": 4,
}


def run_command(workdir, *flags):
  """Runs `experiments.train` on digits; one virtual device in each process."""
  changes = [f"--config.{name}={value}" for name, value in DIGITS.items()]
  config = ["--config=configs/digits.py", *changes, f"--workdir={workdir}"]
  command = [sys.executable, "-m", "experiments.train", *config, *flags]
  flags = "--xla_backend_optimization_level=0"  # as in conftest.py, but one device
  environ = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
  return subprocess.run(
    command,
    cwd=Path(__file__).parents[3],
    env=environ,
    capture_output=True,
    text=True,
    timeout=300,
  )


@pytest.mark.slow
def test_two_processes(tmp_path):
  """On loopback, two devices in the one and one device in the other run; resumed, and refused."""
  config = digits.get_config()
  config.update_from_flattened_dict(DIGITS)
  with devices(1):
    train(config.lock(), tmp_path / "one")
  two = run_command(tmp_path / "two", "--processes=2", "--devices_per_process=2")
  assert two.returncode == 0, two.stderr
  steps = sorted(int(path.name) for path in (tmp_path / "one" / "checkpoints").iterdir())
  assert len(steps) > 2
  assert_same_training(tmp_path / "two", tmp_path / "one", steps)
  lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  assert len({(r["kind"], r["step"]) for r in records}) == len(records)  # process 0 alone writes
  assert two.stdout.count("test accuracy") == 1


@pytest.mark.slow
def test_two_processes_are_refused_together(tmp_path):
  assert run_command(tmp_path / "two", "--processes=2").returncode == 0
  refused = run_command(tmp_path / "two", "--processes=2", "--config.seed=1")
  assert refused.returncode == 2
  assert "holds a run of another config" in refused.stderr


_TOGETHER = """
import sys
from pathlib import Path
import jax, jax.numpy as jnp
from experiments.common import cli
from experiments.processes.consistency import check_same
port, i, folder = sys.argv[1:]
jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(i))
check_same(lambda: {"rate": 0.1, "size": [8, 2]})
try:
  check_same(lambda: {"rate": 0.1 + int(i), "size": [8, 2]})
except ValueError as error:
  print(error)
cli.use_compile_cache(Path(folder))
print(float(jax.jit(lambda x: jnp.sin(x) + 1)(0.0)))
"""


def test_what_two_processes_agree_on(tmp_path):
  """What they were told; and neither compiles what the other finds in a cache."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = str(s.getsockname()[1])
  start = lambda i: subprocess.Popen(
    [sys.executable, "-c", _TOGETHER, port, str(i), tmp_path / "compiled"],
    cwd=Path(__file__).parents[3],
    env=os.environ | {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    text=True,
  )
  processes = [start(i) for i in (0, 1)]
  printed = [process.communicate(timeout=120)[0].splitlines() for process in processes]
  for lines in printed:
    error, result = (line for line in lines if "Gloo" not in line)
    assert re.match(r"Not all .* as process 0: the rate \(processes 1\)\. They would", error)
    assert result == "1.0"
  assert not (tmp_path / "compiled").exists()


# ---- batches, masks ----------------------------------------------------------------------------


def test_batches_are_divided_in_order():
  batches = [{"x": np.arange(12) + 100 * step} for step in (0, 1)]
  with devices(4):
    divided = shard_batches(batches, 3)["x"]
  assert divided.shape == (4, 3, 3)  # devices, steps, share
  for device in range(4):
    for step in (0, 1):
      expected = batches[step]["x"][3 * device : 3 * device + 3]
      np.testing.assert_array_equal(divided[device, step], expected)
    np.testing.assert_array_equal(divided[device, 2], 0)
  assert [shard.data.shape[0] for shard in divided.addressable_shards] == [1] * 4
  with devices(5), pytest.raises(ValueError, match="12 examples in this process, which 5 devices"):
    shard_batches(batches, 2)


def masks_on(values):
  """Masks of which each device has its own copy, as a fault would leave them."""
  mesh = Mesh(np.asarray(jax.devices()[: len(values)]), (AXIS,))
  pieces = [jax.device_put(v, d) for v, d in zip(values, mesh.devices, strict=True)]
  sharding = NamedSharding(mesh, PartitionSpec())
  return {"w": jax.make_array_from_single_device_arrays(values[0].shape, sharding, pieces)}


def test_masks_that_differ_are_refused():
  mask = np.random.default_rng(0).random((5, 7)) < 0.5
  moved = mask.copy()
  moved[tuple(np.argwhere(mask)[0])], moved[tuple(np.argwhere(~mask)[0])] = False, True
  with devices(4):
    check_same_masks(replicate({"w": mask}))
    check_same_masks(masks_on([mask] * 4))
    with pytest.raises(RuntimeError, match=r"devices \[2\] of 4 differ .* No checkpoint"):
      check_same_masks(masks_on([mask, mask, moved, mask]))
  with devices(1):
    check_same_masks(replicate({"w": mask}))


def test_mask_checksums_tell_masks_apart():
  """Every mask of one and of two active weights, also across layers, has its own."""
  shapes = {"a": (4, 5), "b": (7,), "c": (20,)}
  sizes = [int(np.prod(shape)) for shape in shapes.values()]
  checksum = jax.jit(jax.vmap(mask_checksum))
  rows = [np.eye(sum(sizes), dtype=bool)]
  rows += [rows[0] | np.roll(rows[0], k, axis=1) for k in range(1, 24)]
  flat = np.unique(np.concatenate(rows), axis=0)
  split = np.split(flat, np.cumsum(sizes)[:-1], axis=1)
  masks = {
    path: jnp.asarray(x.reshape(-1, *shape))
    for (path, shape), x in zip(shapes.items(), split, strict=True)
  }
  found = np.asarray(checksum(masks))
  assert len(np.unique(found)) == len(flat)
